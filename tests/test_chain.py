"""The weight chain: what it holds, that it is pure, and that only whole, fitting files are read."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch
from backbones import build
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file
from small_networks import Head, conv, of_everything
from torch import nn

import oskt_torchreid as oskt
from oskt_torchreid import files, graph
from oskt_torchreid.chain.chain import WeightChain
from oskt_torchreid.chain.chain_file import VERSION
from oskt_torchreid.errors import ChainError, GraphError, WidthError
from oskt_torchreid.graph.plans import ratio_plan

NAME = "osnet_x0_25"
SIZE = (3, 64, 32)


@pytest.fixture(scope="module")
def teacher():
    return build(NAME)


@pytest.fixture(scope="module")
def chain(teacher):
    return WeightChain.from_teacher(teacher, 0.5, input_size=SIZE)


@pytest.fixture(scope="module")
def stored(chain, tmp_path_factory):
    path = tmp_path_factory.mktemp("chain") / "chain.safetensors"
    chain.save(path)
    return path


def tensors_of(chain):
    """Every tensor and array of a chain under one name each, copied."""
    found = {f"labels {name}": torch.from_numpy(labels).clone() for name, labels in chain.teacher_to_chain.items()}
    for kind in ("rows", "vectors", "fixed", "statistics"):
        found.update({f"{kind} {name}": tensor.clone() for name, tensor in getattr(chain, kind).items()})
    return found


def same(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def small(width=4):
    torch.manual_seed(0)
    return nn.Sequential(conv(3, width, bias=True), nn.BatchNorm2d(width), nn.ReLU(), conv(width, 3), Head(3)).eval()


# ---- what it holds -----------------------------------------------------------------------------------------------


def test_rows_are_means_of_clusters_and_keep_the_teachers_columns():
    model = small()
    labels = {"0": np.array([0, 1, 0, 1]), "3": np.array([0, 0, 1]), "4.classifier": np.arange(2)}
    made = WeightChain.from_labels(model, graph.trace_module(model, (3, 8, 8)), labels)
    first, second = model[0].weight, model[3].weight
    assert torch.allclose(made.rows["0.weight"], torch.stack([first[[0, 2]].mean(0), first[[1, 3]].mean(0)]))
    assert torch.allclose(made.rows["3.weight"], torch.stack([second[:2].mean(0), second[2]]))
    assert made.rows["3.weight"].shape == (2, 4, 1, 1)
    assert torch.equal(made.rows["4.classifier.weight"], model[4].classifier.weight)
    expected = {"0.bias", "1.weight", "1.bias", "1.running_mean", "1.running_var", "4.classifier.bias"}
    assert made.vectors.keys() == expected
    assert all(torch.equal(made.vectors[name], model.state_dict()[name]) for name in expected)
    assert made.fixed.keys() == {"1.num_batches_tracked"}
    assert made.widths == {"0": 2, "3": 2, "4.classifier": 2}
    assert made.spec is None and made.statistics == {}


def test_from_teacher_has_the_widths_asked_for(teacher, chain):
    assert chain.widths == ratio_plan(chain.graph, 0.5)
    assert chain.spec.name == NAME and chain.spec.num_classes == 7
    assert chain.input_size == SIZE
    name = next(group.name for group in chain.graph.groups if not group.fixed)
    one = WeightChain.from_teacher(teacher, {name: 3}, graph=chain.graph)
    assert one.widths == {**chain.graph.sizes, name: 3}


def test_the_teacher_is_untouched_bit_for_bit():
    model = build(NAME).train()
    model.conv1.eval()
    before = copy.deepcopy(model.state_dict())
    modes = [module.training for module in model.modules()]
    made = WeightChain.from_teacher(model, 0.5, input_size=SIZE)
    assert same(before, model.state_dict())
    assert modes == [module.training for module in model.modules()]
    memory = {tensor.untyped_storage().data_ptr() for tensor in model.state_dict().values()}
    for kind in ("rows", "vectors", "fixed"):
        assert memory.isdisjoint(t.untyped_storage().data_ptr() for t in getattr(made, kind).values())


@pytest.mark.parametrize("width", [0.5, 0.75, 1.0])
def test_expanding_leaves_the_chain_as_it_was(chain, width):
    before = tensors_of(chain)
    student = oskt.expand(chain, width)
    with torch.no_grad():
        for tensor in student.state_dict().values():
            tensor.zero_()
    assert same(before, tensors_of(chain))
    assert all(tensor.is_meta for tensor in chain.model.state_dict().values())


def test_a_refined_chain_is_a_new_one(chain):
    before = tensors_of(chain)
    rows = {name: tensor + 1 for name, tensor in chain.rows.items()}
    refined = chain.with_tensors(rows, chain.vectors, {})
    assert same(before, tensors_of(chain))
    assert all(torch.equal(refined.rows[name], rows[name]) for name in rows)
    rows[next(iter(rows))].zero_()
    assert not any(torch.equal(refined.rows[name], torch.zeros_like(rows[name])) for name in rows)


# ---- what it refuses ---------------------------------------------------------------------------------------------


def labels_of(size, **changed):
    return {"0": np.arange(4) % 2, "3": np.arange(3), "4.classifier": np.arange(2), **changed}


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({"0": np.array([0, 2, 0, 2])}, "labels of group '0' are not whole numbers 0..K-1, each in use"),
        ({"0": np.array([-1, 0, 0, 1])}, "labels of group '0' are not whole numbers 0..K-1"),
        ({"0": np.array([0, 1])}, "group '0' of 4 channels has no label for each of them"),
        ({"0": None}, "group '0' of 4 channels has no label"),
        ({"4.classifier": np.array([0, 0])}, r"width 1 of group '4.classifier' is outside of \[2, 2\]"),
    ],
)
def test_labels_that_do_not_fit(labels, message):
    model = small()
    with pytest.raises((ChainError, WidthError), match=message):
        WeightChain.from_labels(model, graph.trace_module(model, (3, 8, 8)), labels_of(4, **labels))


def test_a_graph_of_another_network():
    wide = graph.trace_module(small(6), (3, 8, 8))
    with pytest.raises(
        ChainError, match="channel graph belongs to another network: axis 0 of '0.weight' must be 6 long"
    ):
        WeightChain.from_teacher(small(), 0.5, graph=wide)
    with pytest.raises(ChainError, match="the network has no such tensor"):
        WeightChain.from_teacher(nn.Sequential(conv(3, 6)), 0.5, graph=wide)


@pytest.mark.parametrize("width", [0.0, -0.5, 1.5, float("nan")])
def test_a_ratio_out_of_range(teacher, chain, width):
    with pytest.raises(WidthError, match=r"width ratio .* is outside of \(0, 1\]"):
        WeightChain.from_teacher(teacher, width, graph=chain.graph)


@pytest.mark.parametrize(
    ("width", "message"),
    [
        ({"nowhere": 3}, r"unknown: \['nowhere'\] \(see graph.summary"),
        ({"conv1.conv": 0}, r"width 0 of group 'conv1.conv' is outside of \[1, 16\]"),
        ({"classifier": 2}, r"outside of \[7, 7\] \(the group is fixed: output of the network"),
    ],
)
def test_a_plan_out_of_range(teacher, chain, width, message):
    with pytest.raises(WidthError, match=message):
        WeightChain.from_teacher(teacher, width, graph=chain.graph)


def test_a_teacher_that_is_not_finite():
    model = small()
    with torch.no_grad():
        model[1].running_var[2] = float("nan")
    with pytest.raises(ChainError, match="vector '1.running_var' has values that are NaN or infinite"):
        WeightChain.from_teacher(model, 0.5, input_size=(3, 8, 8))
    with torch.no_grad():
        model[0].weight[1] = float("inf")
    with pytest.raises(ChainError, match="NaN or infinite"):
        WeightChain.from_teacher(model, 0.5, input_size=(3, 8, 8))


def test_shared_tensors_are_refused():
    model = nn.Sequential(conv(3, 3), conv(3, 3), Head(3))
    model[1].weight = model[0].weight
    with pytest.raises(ChainError, match="'0.weight' and '1.weight' are one shared tensor"):
        WeightChain.from_teacher(model, 0.5, input_size=(3, 8, 8))


def test_a_network_that_cannot_be_traced():
    model = nn.Sequential(conv(3, 3), nn.PixelShuffle(1), nn.ChannelShuffle(3), Head(3))
    with pytest.raises(GraphError, match="operator '.*shuffle' in module '.' has no rule"):
        WeightChain.from_teacher(model, 0.5, input_size=(3, 8, 8), unknown="refuse")


# ---- files -------------------------------------------------------------------------------------------------------


def test_a_loaded_chain_is_equal_and_gives_bit_identical_students(chain, stored):
    loaded = WeightChain.load(stored)
    assert same(tensors_of(loaded), tensors_of(chain))
    assert (loaded.spec, loaded.widths, loaded.input_size) == (chain.spec, chain.widths, chain.input_size)
    assert loaded.graph.summary() == chain.graph.summary()
    for width in (0.5, 0.75):
        assert same(oskt.expand(loaded, width).state_dict(), oskt.expand(chain, width).state_dict())


def test_saving_again_gives_the_same_bytes(stored, tmp_path):
    WeightChain.load(stored).save(tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == stored.read_bytes()


def test_a_network_that_is_not_registered_must_be_given(tmp_path):
    model = of_everything().eval()
    made = WeightChain.from_teacher(model, 0.5, input_size=(3, 8, 8))
    made.save(tmp_path / "chain.safetensors")
    with pytest.raises(ChainError, match=r"not a registered model; pass the teacher's network: WeightChain.load\(path"):
        WeightChain.load(tmp_path / "chain.safetensors")
    before = copy.deepcopy(model.state_dict())
    loaded = WeightChain.load(tmp_path / "chain.safetensors", model=model)
    assert same(model.state_dict(), before)
    assert same(tensors_of(loaded), tensors_of(made))
    assert same(oskt.expand(loaded, 0.5).state_dict(), oskt.expand(made, 0.5).state_dict())
    with pytest.raises(ChainError, match="channel graph belongs to another network"):
        WeightChain.load(tmp_path / "chain.safetensors", model=small())


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_a_truncated_file(stored, tmp_path, share):
    path = tmp_path / "chain.safetensors"
    content = stored.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ChainError, match="not a whole safetensors file.*(truncated or of another|it is an empty file)"):
        WeightChain.load(path)


def test_foreign_files(tmp_path):
    path = tmp_path / "other.safetensors"
    save_file({"x": torch.zeros(1)}, path)
    with pytest.raises(ChainError, match="safetensors file of another program"):
        WeightChain.load(path)
    torch.save({"x": torch.zeros(1)}, path)
    with pytest.raises(ChainError, match="not a whole safetensors file"):
        WeightChain.load(path)
    with pytest.raises(ChainError, match="no file at '.*missing.safetensors'"):
        WeightChain.load(tmp_path / "missing.safetensors")


def read(path):
    with safe_open(str(path), "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, json.loads(file.metadata()["oskt"])  # noqa: SIM118


def put(name, value):
    return lambda tensors, metadata: tensors.update({name: value(tensors[name])})


def forget(name):
    return lambda tensors, metadata: tensors.pop(name)


def poisoned(tensor):
    tensor = tensor.clone()
    tensor.view(-1)[-1] = float("nan")
    return tensor


DAMAGES = {
    "version": (lambda t, m: m.update(version=1), f"no weight chain of version {VERSION} .*version 1"),
    "format": (lambda t, m: m.update(format="recipe"), "says format 'recipe'"),
    "shape": (put("rows/fc.0.weight", lambda t: t[:, 1:]), r"chain row 'fc.0.weight' has shape .* it must be"),
    "nan": (put("vectors/fc.1.weight", poisoned), "vector 'fc.1.weight' has values that are NaN or infinite"),
    "row": (forget("rows/fc.0.weight"), r"1 chain rows are missing \['fc.0.weight'\]"),
    "vector": (forget("vectors/fc.1.bias"), r"1 vectors are missing \['fc.1.bias'\]"),
    "surplus": (lambda t, m: t.update({"fixed/x": torch.zeros(1)}), r"1 unexpected \['x'\]"),
    "kind": (lambda t, m: t.update({"notes/x": torch.zeros(1)}), "tensor 'notes/x' of unknown kind"),
    "statistic": (lambda t, m: t.update({"statistics/x": torch.zeros(1)}), r"1 unexpected \['x'\]"),
    "labels": (put("graph/teacher_to_chain", lambda t: t + 1), "labels of group .* are not whole numbers 0..K-1"),
    "negative labels": (
        put("graph/teacher_to_chain", lambda t: t - 1),
        "labels of group .* are not whole numbers 0..K-1",
    ),
    "few labels": (put("graph/teacher_to_chain", lambda t: t[1:]), r"it labels \(\d+,\) channels, its graph has"),
    "no labels": (forget("graph/teacher_to_chain"), r"it labels \(0,\) channels"),
    "axes": (put("graph/axes", lambda t: t + 10**6), "names unknown channels"),
    "no graph": (lambda t, m: m.pop("graph"), "stored channel graph is damaged"),
    "model": (lambda t, m: m["model"].update(name="osnet_x9_9"), "cannot be built here: unknown model 'osnet_x9_9'"),
    "other model": (lambda t, m: m["model"].update(name="osnet_x0_5"), "channel graph belongs to another network"),
    "classes": (lambda t, m: m["model"].update(num_classes=9), "axis 0 of 'classifier.weight' must be 7 long"),
    "matrix": (lambda t, m: m["graph"]["matrices"].append("x"), "damaged"),
    "tie": (lambda t, m: m["graph"]["ties"][0].__setitem__(0, "x"), "belongs to another network.*no such tensor"),
    "axis": (lambda t, m: m["graph"]["ties"][0].__setitem__(1, 7), "belongs to another network: axis 7"),
    "head": (lambda t, m: m["graph"]["heads"].append("x"), "damaged"),
}


@pytest.mark.parametrize(("change", "message"), DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_file_says_what_is_wrong(stored, tmp_path, change, message):
    tensors, metadata = read(stored)
    change(tensors, metadata)
    path = tmp_path / "chain.safetensors"
    files.save_tensors(path, tensors, metadata)
    with pytest.raises(ChainError, match=message):
        WeightChain.load(path)


VALUES = st.sampled_from([None, -1, 10**9, 1.5, "row", [], {}, [[]], [["x"]], True])


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_damage_of_the_metadata_is_a_chain_error_or_harmless(stored, tmp_path_factory, data):
    tensors, metadata = read(stored)
    node = metadata
    while True:
        key = data.draw(st.sampled_from(list(node) if isinstance(node, dict) else list(range(len(node)))))
        if not isinstance(node[key], (list, dict)) or not node[key] or data.draw(st.integers(0, 3)) == 0:
            break
        node = node[key]
    node[key] = data.draw(VALUES)
    path = tmp_path_factory.mktemp("damaged") / "chain.safetensors"
    files.save_tensors(path, tensors, metadata)
    try:
        loaded = WeightChain.load(path)
    except ChainError as error:
        assert str(path) in str(error)
    else:
        oskt.expand(loaded, 0.5)
