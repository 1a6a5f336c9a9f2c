"""What channels contribute: measured by hand, clusters and leaders that follow, and students that stay exact."""

import numpy as np
import pytest
import torch
from backbones import build, input_size
from small_networks import Head, Network, conv
from test_identity import collapse, logits, plans, random_labels
from torch import nn

from oskt_torchreid.chain import WeightChain, expand, trace
from oskt_torchreid.chain.contributions import contributions
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
    (measured,) = contributions(model, graph, [images(1.0, -1.0)]).values()
    assert torch.allclose(measured.mass, torch.tensor([0.2, 0.8], dtype=torch.float64))
    products = torch.tensor([[4.0, -2], [-2, 1]], dtype=torch.float64) * 5 / 8
    assert torch.allclose(measured.points @ measured.points.T, products)
    assert torch.allclose(measured.importance, torch.full((2,), 0.5, dtype=torch.float64))


def test_clusters_and_leaders_by_hand():
    """Activations 2, 2, 0.1 and -1: equal ones cost nothing, and of the others 0.1 is nearer to -1."""
    model, graph = two_layers([2.0, 2.0, 0.1, -1.0], [1.0, 3.0, 1.0, 1.0])
    measured = contributions(model, graph, [images(1.0, -1.0)])
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
    measured = contributions(model, graph, [batch])
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
        contributions(model, graph, [])
    measured = contributions(model, graph, [images(1.0)])
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
    measured = contributions(model, graph, [batch])
    chain = WeightChain.from_teacher(model, {"first": 4}, graph=graph, nested=True, contributions=measured)
    assert chain.teacher_to_chain["first"].tolist() == [0, 1, 2, 3, 0, 1, 2, 3]
    assert torch.allclose(logits(expand(chain, {"first": 4}), batch), logits(model, batch), atol=1e-6)


def _by_first(labels):
    _, first, label = np.unique(labels, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[label]


def test_a_file_gives_leaders_back(tmp_path):
    model = build("osnet_x0_25")
    graph = trace(model, input_size("osnet_x0_25"))
    found = contributions(model, graph, [torch.randn(2, *input_size("osnet_x0_25"))])
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
    assert [found.points.shape[0] for found in contributions(model, graph, [torch.randn(2, 3, 4, 4)]).values()] == [4]
    assert model.training
