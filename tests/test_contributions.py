"""What channels contribute: measured by hand, clusters and leaders that follow, and students that stay exact."""

from functools import partial

import numpy as np
import pytest
import torch
from backbones import build, input_size
from small_networks import Head, Network, conv
from test_identity import collapse, logits, plans, random_labels
from torch import nn

from oskt_torchreid import files
from oskt_torchreid.chain import Ladder, Refinement, WeightChain, chain_file, expand, trace
from oskt_torchreid.chain.contributions import measure_contributions
from oskt_torchreid.chain.expansion import expand_to_plan
from oskt_torchreid.chain.nesting import tree_over
from oskt_torchreid.errors import ChainError, DataError
from oskt_torchreid.graph import trace_module

KINDS = ["osnet_x0_25", "resnet18", "shufflenet_v2_x0_5", "densenet121", "mobilenetv2_x1_0"]


def two_layers(first, second):
    """One number in; hidden channels with these weights; one number out."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(1, len(first), bias=False), nn.Linear(len(first), 1, bias=False))
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor(first)[:, None])
        model[2].weight.copy_(torch.tensor(second)[None])
    return model.eval(), trace_module(model, (1, 1, 1))


def images(*numbers):
    return torch.tensor(numbers).reshape(-1, 1, 1, 1)


def test_two_channels_by_hand():
    """Columns 1 and 2, activations 2 and -1: the output has the parts 2 and -2, of which each is one half."""
    model, graph = two_layers([2.0, -1.0], [1.0, 2.0])
    (measured,) = measure_contributions(model, graph, [images(1.0, -1.0)]).values()
    assert torch.allclose(measured.mass, torch.tensor([0.2, 0.8], dtype=torch.float64))
    products = torch.tensor([[4.0, -2], [-2, 1]], dtype=torch.float64) * 5 / 8
    assert torch.allclose(measured.points @ measured.points.T, products)
    assert torch.allclose(measured.importance, torch.full((2,), 0.5, dtype=torch.float64))


def test_clusters_and_leaders_by_hand():
    """Activations 2, 2, 0.1 and -1: equal ones cost nothing, and of the others 0.1 is nearer to -1."""
    model, graph = two_layers([2.0, 2.0, 0.1, -1.0], [1.0, 3.0, 1.0, 1.0])
    measured = measure_contributions(model, graph, [images(1.0, -1.0)])
    chain = WeightChain.from_teacher(model, {"1": 2}, graph=graph, nested=True, contributions=measured)
    assert chain.teacher_to_chain["1"].tolist() == [0, 0, 1, 1]
    assert np.allclose(chain.importance["1"] / chain.importance["1"][3], [4, 36, 0.01, 1])
    student = expand(chain, {"1": 2})
    assert student[1].weight.flatten().tolist() == [2, -1], "the leaders' rows"
    assert student[2].weight.flatten().tolist() == [4, 2], "all columns"
    assert expand(chain, {"1": 3})[2].weight.flatten().tolist() == [4, 1, 1]


def test_channels_of_convolutions_and_flattened_maps():
    """Against sums written out: places of an image count, and columns of every place of a flattened map."""
    torch.manual_seed(0)
    model = Network(
        lambda self, x: self.head(self.middle(self.first(x).relu()).relu().flatten(1)),
        first=conv(3, 4),
        middle=conv(4, 6, groups=2),
        head=nn.Linear(6 * 4, 2),
    ).eval()
    graph = trace_module(model, (3, 2, 2))
    batch = torch.randn(5, 3, 2, 2)
    measured = measure_contributions(model, graph, [batch])
    hidden = model.first(batch).relu().double()
    last = model.middle(hidden.float()).relu().double()
    for group in graph.groups:
        if group.name.startswith("middle"):
            block = slice(0, 3) if group.name.endswith("[0]") or ":0" in group.name else slice(3, 6)
            of_places = model.head.weight.double().unflatten(1, (6, 4)).pow(2).sum((0, 2))[block]
            products = torch.einsum("bihw,bjhw->ij", last[:, block], last[:, block])
        elif group.name.startswith("first"):
            block = slice(0, 2) if group.name.endswith("[0]") or ":0" in group.name else slice(2, 4)
            of_places = model.middle.weight.double().unflatten(0, (2, 3)).pow(2).sum((1, 3, 4)).flatten()[block]
            products = torch.einsum("bihw,bjhw->ij", hidden[:, block], hidden[:, block])
        else:
            continue
        found = measured[group.name]
        assert torch.allclose(found.mass, of_places.detach() / of_places.detach().sum())
        own = found.points @ found.points.T
        assert torch.allclose(own / own.trace(), (products / products.trace()).detach(), atol=1e-6)


def test_what_is_refused():
    model, graph = two_layers([2.0, -1.0], [1.0, 2.0])
    with pytest.raises(DataError, match="no batch of images"):
        measure_contributions(model, graph, [])
    measured = measure_contributions(model, graph, [images(1.0)])
    with pytest.raises(ChainError, match="contributions .* nested"):
        WeightChain.from_teacher(model, {"1": 1}, graph=graph, contributions=measured)
    other, other_graph = two_layers([2.0, -1.0, 1.0], [1.0, 2.0, 1.0])
    with pytest.raises(ChainError, match="group '1' of 3 channels"):
        WeightChain.from_teacher(other, {"1": 1}, graph=other_graph, nested=True, contributions=measured)


@pytest.mark.parametrize("name", KINDS)
def test_students_with_leaders_are_exact(name):
    """Equal rows in every cluster, equal outputs at every width, whatever the leaders."""
    model = build(name).double()
    batch = torch.randn(2, *input_size(name), dtype=torch.float64)
    graph = trace(model, input_size(name))
    labels = {name: _by_first(found) for name, found in random_labels(graph).items()}
    collapse(model, graph, labels)
    expected = logits(model, batch)
    generator = np.random.default_rng(1)
    importance = {name: generator.uniform(size=len(found)).astype(np.float32) for name, found in labels.items()}
    trees = {name: tree_over(found) for name, found in labels.items()}
    chain = WeightChain.from_labels(model, graph, labels, trees=trees, importance=importance)
    for widths in plans(graph, chain).values():
        student = expand_to_plan(chain, widths)
        assert float((logits(student, batch) - expected).abs().max() / expected.std()) <= 1e-4


def test_what_is_said_twice_is_merged_first():
    """Each channel of a layer and a copy of it, of another scale of columns; half the width loses nothing."""
    torch.manual_seed(0)
    model = Network(lambda self, x: self.head(self.first(x).relu()), first=conv(3, 8), head=Head(8)).eval()
    with torch.no_grad():
        model.first.weight[4:] = model.first.weight[:4]
    graph = trace_module(model, (3, 4, 4))
    batch = torch.randn(4, 3, 4, 4)
    measured = measure_contributions(model, graph, [batch])
    chain = WeightChain.from_teacher(model, {"first": 4}, graph=graph, nested=True, contributions=measured)
    assert chain.teacher_to_chain["first"].tolist() == [0, 1, 2, 3, 0, 1, 2, 3]
    assert torch.allclose(logits(expand(chain, {"first": 4}), batch), logits(model, batch), atol=1e-6)


def _by_first(labels):
    _, first, label = np.unique(labels, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[label]


def test_a_file_gives_leaders_back(tmp_path):
    model = build("osnet_x0_25")
    graph = trace(model, input_size("osnet_x0_25"))
    found = measure_contributions(model, graph, [torch.randn(2, *input_size("osnet_x0_25"))])
    chain = WeightChain.from_teacher(model, 0.5, graph=graph, nested=True, contributions=found)
    chain.save(tmp_path / "chain.safetensors")
    again = WeightChain.load(tmp_path / "chain.safetensors", model=model)
    for width in (0.5, 0.7, 1.0):
        one, other = (expand(each, width=width).state_dict() for each in (chain, again))
        assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())
    with_means = WeightChain.from_labels(model, graph, chain.teacher_to_chain, trees=chain.trees)
    assert any(not torch.equal(rows, chain.own[name]) for name, rows in with_means.own.items())


def test_heads_are_read(tmp_path):
    """The layer in front of a classifier is read by it, though evaluation does not run it."""
    model = Network(lambda self, x: self.head(self.first(x).relu()), first=conv(3, 4), head=Head(4)).train()
    graph = trace_module(model, (3, 4, 4))
    assert [
        found.points.shape[0] for found in measure_contributions(model, graph, [torch.randn(2, 3, 4, 4)]).values()
    ] == [4]
    assert model.training


@pytest.mark.parametrize(
    ("loader", "message"),
    [
        ([torch.full((2, 3, 4, 4), torch.nan)], "activations NaN or infinite"),
        ([torch.randn(0, 3, 4, 4)], "no batch of images"),
        ([torch.randn(2, 1, 4, 4)], "cannot take batch 1"),
        (5, "loader is 5"),
    ],
)
def test_images_that_measure_nothing(loader, message):
    model = Network(lambda self, x: self.head(self.first(x).relu()), first=conv(3, 4), head=Head(4))
    graph = trace_module(model, (3, 4, 4))
    with pytest.raises(DataError, match=message):
        measure_contributions(model, graph, loader)
    with pytest.raises(DataError, match="batches is 0"):
        measure_contributions(model, graph, [torch.randn(2, 3, 4, 4)], batches=0)


def test_every_image_counts_as_much():
    model, graph = two_layers([1.0, -1.0], [1.0, 1.0])
    model.insert(2, nn.ReLU())
    graph = trace_module(model, (1, 1, 1))
    for loader in ([images(1.0, 1.0, 1.0, -1.0)], [images(1.0, 1.0, 1.0), images(-1.0)]):
        (measured,) = measure_contributions(model, graph, loader).values()
        assert measured.importance.tolist() == pytest.approx([0.75, 0.25])


def test_a_chain_without_parts_of_it():
    """Trees and importance that do not fit, whoever gives them."""
    model = build("osnet_x0_25")
    graph = trace(model, input_size("osnet_x0_25"))
    nested = WeightChain.from_teacher(model, 0.5, graph=graph, nested=True)
    ones = {name: np.ones(size, np.float32) for name, size in graph.sizes.items()}
    first = next(iter(ones))
    make = partial(WeightChain.from_labels, model, graph, nested.teacher_to_chain)
    with pytest.raises(ChainError, match="only the slots of a nested chain have leaders"):
        make(importance=ones)
    for wrong in (ones[first][:-1], ones[first] * np.nan, None):
        with pytest.raises(ChainError, match=f"group '{first}' .* no finite importance"):
            make(trees=nested.trees, importance={**ones, first: wrong})
    for trees in ([1], {name: ([0], [0]) for name in ones}):
        with pytest.raises(ChainError, match="hierarch"):
            make(trees=trees)


@pytest.mark.parametrize("kind", ["matrix", "vector", "all", "added", "importance"])
def test_files_without_what_is_the_sstudents_own(tmp_path, kind):
    model = build("osnet_x0_25")
    graph = trace(model, input_size("osnet_x0_25"))
    nested = WeightChain.from_teacher(model, 0.5, graph=graph, nested=kind not in ("added", "importance"))
    Refinement(model, nested, vector_copies=True).to_chain().save(tmp_path / "chain.safetensors")
    tensors, metadata = chain_file.read(tmp_path / "chain.safetensors")
    own = [name for name in tensors if name.startswith("own/")]
    if kind == "added":
        tensors["own/conv1.conv.weight"] = tensors["rows/conv1.conv.weight"] * 0
    elif kind == "importance":
        tensors["graph/importance"] = torch.ones(graph.num_channels)
    else:
        chosen = {"matrix": "own/conv1.conv.weight", "vector": "own/conv1.bn.weight"}
        for name in own if kind == "all" else [chosen[kind]]:
            tensors.pop(name)
    files.save_tensors(tmp_path / "other.safetensors", tensors, metadata)
    with pytest.raises(ChainError, match="own tensors, others than it says|have leaders"):
        WeightChain.load(tmp_path / "other.safetensors")
    if kind == "all":
        metadata["own"] = []
        files.save_tensors(tmp_path / "other.safetensors", tensors, metadata)
        with pytest.raises(ChainError, match="own tensor"):
            WeightChain.load(tmp_path / "other.safetensors")


def test_vectors_of_one_width_fade_too():
    """Biases of classifiers and of gates: near the chain's width they are almost the S-student's."""
    model = build("osnet_x0_25")
    chain = WeightChain.from_teacher(model, 0.5, input_size=input_size("osnet_x0_25"), nested=True)
    refinement = Refinement(model, chain, vector_copies=True)
    for vector in refinement.sstudent.own_vectors.values():
        vector.data.fill_(7.0)
    refined = refinement.to_chain()
    of_teacher = model.classifier.bias[0].item()
    found = [expand(refined, width=width).classifier.bias[0].item() for width in (0.5, 0.52, 0.75, 1.0)]
    assert found[0] == 7 and found[3] == of_teacher
    assert found[1] == pytest.approx(7, abs=0.6) and found[2] == pytest.approx((7 + of_teacher) / 2, abs=0.5)
    level = Refinement(model, chain, vector_copies=True, levels=(0.5,))
    weights = level.sstudent.nested_weights(model, level.levels[0].narrowing)
    expected = level.sstudent.weights(model)
    assert all(torch.allclose(weights[name], expected[name], atol=1e-5) for name in expected)


def test_sizes_on_a_ladder_of_nested_chains():
    model = build("osnet_x0_25")
    above = WeightChain.from_teacher(model, 0.5, input_size=input_size("osnet_x0_25"), nested=True)
    below = WeightChain.from_student(expand_to_plan(above, above.widths), above, 0.5, nested=True)
    student = Ladder((above, below)).expand(size="600kB")
    assert sum(parameter.numel() for parameter in student.parameters()) * 4 <= 600_000
