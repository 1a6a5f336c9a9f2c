"""Ladders: chains of students of chains, the maps composed, and the nearest chain for every width."""

from __future__ import annotations

import copy
import inspect
from dataclasses import replace

import numpy as np
import pytest
import torch
from backbones import REST, build, input_size, one_of_each_kind
from runs import TINY
from small_networks import of_everything
from tensors import same_tensors
from test_identity import collapse, logits, random_labels
from torch import nn
from torch.nn import functional

import oskt_torchreid as oskt
from oskt_torchreid import files
from oskt_torchreid.chain.chain import WeightChain
from oskt_torchreid.chain.expansion import expand_to_plan
from oskt_torchreid.chain.ladder import Ladder, nearest_rung
from oskt_torchreid.chain.lineage import composed, origins_per_channel
from oskt_torchreid.chain.sstudent import Refinement
from oskt_torchreid.config import load_config
from oskt_torchreid.errors import ChainError, ConfigError, GraphError, WidthError
from oskt_torchreid.graph.plans import balanced, ratio_plan
from oskt_torchreid.host import models
from oskt_torchreid.runs import run

NAME, SIZE = "osnet_x0_25", (3, 64, 32)
SOME = ("resnet18", "osnet_x0_25", "shufflenet_v2_x0_5")  # the last one adapts code to its widths

# Large ones, whose ties smaller ones have, too, or the identity of one chain covers.
LARGE = ("resnext50_32x4d", "se_resnet50", "mlfn", "inceptionv4", "nasnsetmobile", "osnet_ain_x0_25")
STOCK = ("osnet_x0_5", "osnet_x0_25")


def one_per_group(graph):
    """The narrowest clusters that any width lies above."""
    return {group.name: np.arange(group.size) if group.fixed else np.zeros(group.size, int) for group in graph.groups}


def sstudent_of(chain):
    return expand_to_plan(chain, chain.widths)


def narrowed(chain, ratio):
    """Half of what the chain has left, where it may be narrowed."""
    kept = {group.name: 1.0 if group.fixed else ratio for group in chain.graph.groups}
    return balanced(chain.graph, {name: max(1, int(kept[name] * width)) for name, width in chain.widths.items()})


def rungs(teacher, size, count=3):
    chains = [WeightChain.from_teacher(teacher, 0.5, input_size=size)]
    while len(chains) < count:
        chains.append(WeightChain.from_student(sstudent_of(chains[-1]), chains[-1], narrowed(chains[-1], 0.5)))
    return tuple(chains)


@pytest.fixture(scope="module")
def ladder():
    return Ladder(rungs(build(NAME), SIZE))


def check_identity(name, dtype, bound):
    """A chain of a student keeps the identity property; errors are over the output's spread."""
    size = input_size(name)
    teacher = build(name).to(dtype)
    graph = oskt.trace(teacher, size)
    top = WeightChain.from_labels(teacher, graph, random_labels(graph))
    student = sstudent_of(top)
    graph = oskt.trace(student, size)
    labels = random_labels(graph)
    images = torch.randn(2, *size, dtype=dtype)
    before = logits(student, images)
    collapse(student, graph, labels)
    expected = logits(student, images)
    assert (before - expected).abs().max() > 1e-2 * expected.std()
    chain = WeightChain.from_student(student, top, {key: label.max() + 1 for key, label in labels.items()})
    middle = balanced(chain.graph, {k: (width + chain.graph.sizes[k]) // 2 for k, width in chain.widths.items()})
    for widths in (chain.widths, middle, chain.graph.sizes):
        error = (logits(expand_to_plan(chain, widths), images) - expected).abs().max() / expected.std()
        assert error < bound


@pytest.mark.parametrize("name", SOME)
def test_identity_of_a_chain_of_a_student(name):
    check_identity(name, torch.float64, 1e-10)


@REST
@pytest.mark.parametrize("name", [name for name in one_of_each_kind() if name not in (*SOME, *LARGE)])
def test_identity_of_a_chain_of_a_student_of_every_kind_of_backbone(name):
    """In single precision, which is several times as fast."""
    check_identity(name, torch.float32, 1e-4)


@pytest.mark.parametrize("name", ["resnet50_ibn_a", "shufflenet_v2_x0_5"])
def test_files_of_a_chain_of_a_student(name, tmp_path):
    """Networks whose code follows their widths: the files alone bring all of it back."""
    _, chain = rungs(build(name), input_size(name), 2)
    plan = balanced(chain.graph, {k: (width + chain.graph.sizes[k]) // 2 for k, width in chain.widths.items()})
    chain.save(tmp_path / "chain.safetensors")
    loaded = WeightChain.load(tmp_path / "chain.safetensors")
    assert all(np.array_equal(labels, chain.origin_to_chain[key]) for key, labels in loaded.origin_to_chain.items())
    student, images = expand_to_plan(loaded, plan), torch.ones(2, *input_size(name))
    oskt.save_student(student, tmp_path / "student.pth")
    for other in (expand_to_plan(chain, plan), oskt.load_student(tmp_path / "student.pth")):
        assert same_tensors(other, student)
        assert torch.equal(logits(other, images), logits(student, images))


# ---- maps --------------------------------------------------------------------------------------------------------


def test_the_worked_example():
    maps = composed({"a": np.array([0, 1, 0, 2])}, {"a": np.array([0, 1, 0])})
    assert maps["a"].tolist() == [0, 1, 0, 0]
    assert composed({}, {"a": np.array([0, 1])})["a"].tolist() == [0, 1]


def test_maps_lead_from_the_first_teacher_through_every_level(ladder):
    first, second, third = ladder.chains
    assert first.origin_to_teacher == {} and first.origin_to_chain == first.teacher_to_chain
    for group in first.graph.groups:
        to_first = first.layout.slots[group.name].teacher_to_slot
        assert np.array_equal(second.origin_to_teacher[group.name], to_first)
        to_second = second.layout.slots[group.name].teacher_to_slot[to_first]
        assert np.array_equal(third.origin_to_teacher[group.name], to_second)
        assert np.array_equal(third.origin_to_chain[group.name], third.teacher_to_chain[group.name][to_second])
    counts = origins_per_channel(third.graph, third.origin_to_teacher)
    assert counts.sum() == first.graph.num_channels and counts.min() >= 1
    assert np.array_equal(first.origins_per_channel, np.ones(first.graph.num_channels))


def test_distances_reach_back_to_the_first_teacher():
    """Two levels of equal rows: students of the second chain have the first teacher's distances."""
    teacher = build(NAME).double()
    top = WeightChain.from_teacher(teacher, 0.5, input_size=SIZE)
    below = WeightChain.from_student(sstudent_of(top), top, narrowed(top, 0.5))
    collapse(teacher, top.graph, below.origin_to_chain)
    top = WeightChain.from_labels(teacher, top.graph, top.teacher_to_chain)
    sstudent = sstudent_of(top)
    graph = below.graph
    below = replace(
        WeightChain.from_labels(sstudent, graph, below.teacher_to_chain), origin_to_teacher=below.origin_to_teacher
    )
    images = torch.randn(4, *SIZE, dtype=torch.float64)
    wanted = pair_distances(teacher, images)
    plan = balanced(graph, {name: (width + graph.sizes[name]) // 2 for name, width in below.widths.items()})
    assert torch.allclose(pair_distances(expand_to_plan(below, plan, distance="teacher"), images), wanted, rtol=1e-9)
    assert not torch.allclose(pair_distances(expand_to_plan(below, plan), images), wanted, rtol=1e-2)


def pair_distances(model, images):
    with torch.no_grad():
        features = model.eval()(images)
    return torch.cat([torch.pdist(features), torch.pdist(functional.normalize(features))])


# ---- what from_student refuses -----------------------------------------------------------------------------------


def test_the_student_and_its_chain_are_untouched(ladder):
    chain = ladder.chains[0]
    student = sstudent_of(chain)
    before, rows = copy.deepcopy(student.state_dict()), copy.deepcopy(chain.rows)
    WeightChain.from_student(student, chain, 0.5)
    assert all(torch.equal(tensor, before[name]) for name, tensor in student.state_dict().items())
    assert all(torch.equal(tensor, rows[name]) for name, tensor in chain.rows.items())


def test_students_of_other_chains_are_refused(ladder):
    chain = ladder.chains[0]
    with pytest.raises(ChainError, match=r"not expanded from this chain: it has no channel groups \['conv1.conv'"):
        WeightChain.from_student(build("resnet18"), chain, 0.5)
    narrow = sstudent_of(ladder.chains[1])
    with pytest.raises(WidthError, match=r"width \d+ is outside of"):
        WeightChain.from_student(narrow, chain, 0.5)
    scaled = oskt.expand(chain, 0.5, distance="teacher")
    with pytest.raises(ChainError, match="expanded with distance='teacher'; expand it with distance='none'"):
        WeightChain.from_student(scaled, chain, 0.5)


def test_a_network_that_is_not_registered(tmp_path):
    """Loading such a rung needs the first teacher's network, with any weights."""
    model = of_everything().eval()
    top = WeightChain.from_teacher(model, 0.5, input_size=(3, 8, 8))
    below = WeightChain.from_student(sstudent_of(top), top, narrowed(top, 0.5))
    below.save(tmp_path / "chain.safetensors")
    with pytest.raises(ChainError, match="not a registered model"):
        WeightChain.load(tmp_path / "chain.safetensors")
    loaded = WeightChain.load(tmp_path / "chain.safetensors", model=model)
    left, right = sstudent_of(loaded).state_dict(), sstudent_of(below).state_dict()
    assert all(torch.equal(tensor, right[name]) for name, tensor in left.items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t, m: m.update(origin=m["origin"][1:]), "its map from the first teacher has"),
        (lambda t, m: t["graph/origin_to_teacher"].zero_(), "does not say which channels of the first teacher"),
        (lambda t, m: m["code"].update(splits=[["nowhere", "half", 2]]), "structure cannot be rebuilt"),
        (lambda t, m: m.update(origin=[]), "belongs to another network"),
    ],
)
def test_damaged_files(ladder, tmp_path, change, message):
    path = tmp_path / "chain.safetensors"
    ladder.chains[1].save(path)
    tensors, metadata = files.load_tensors(path)
    change(tensors, metadata)
    files.save_tensors(path, tensors, metadata)
    with pytest.raises(ChainError, match=message):
        WeightChain.load(path)


# ---- choosing a rung ---------------------------------------------------------------------------------------------


def test_every_width_comes_from_the_nearest_chain(ladder):
    top = ladder.chains[0].graph
    for ratio, rung in ((0.5, 0), (0.3, 1), (0.125, 2)):
        widths = ratio_plan(top, ratio)
        widths = {name: max(width, ladder.chains[-1].widths[name]) for name, width in widths.items()}
        if rung == 1:  # rounding may leave single groups at the first chain's width, which both rungs have
            widths = {name: min(width, ladder.chains[0].widths[name]) for name, width in widths.items()}
        assert ladder.nearest(widths) is ladder.chains[rung], ratio
        student = ladder.expand(widths)
        expected = expand_to_plan(ladder.chains[rung], widths)
        assert same_tensors(student, expected)


def test_a_ladder_takes_what_expand_takes():
    """A ladder of the widths of stock models, which keep their feature whole."""
    teacher = build("osnet_x1_0")
    graph = oskt.trace(teacher, SIZE)
    any_width = WeightChain.from_labels(teacher, graph, one_per_group(graph))
    widths = [oskt.chain.width_plan(any_width, like=name) for name in STOCK]
    top = WeightChain.from_teacher(teacher, widths[0], graph=graph)
    below = WeightChain.from_student(sstudent_of(top), top, widths[1])
    ladder = Ladder((top, below))
    stock = models.build("osnet_x0_25", 7)
    student = ladder.expand(like="osnet_x0_25", distance="teacher")
    stock.load_state_dict(student.state_dict(), strict=True)
    assert student.feature_dim == 512
    wide, expected = ladder.expand(like="osnet_x0_75"), oskt.expand(top, like="osnet_x0_75").state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in wide.state_dict().items())
    with pytest.raises(WidthError, match="ask for a ratio of at least"):
        ladder.expand(0.2)


def test_nearest_rung():
    whole, two = {"a": 4, "b": 4}, [{"a": 2, "b": 2}, {"a": 1, "b": 1}]
    assert [nearest_rung(two, whole, {"a": width, "b": width}) for width in (4, 3, 2, 1)] == [0, 0, 0, 1]
    assert nearest_rung(two, whole, {"a": 1, "b": 2}) == 1
    with pytest.raises(WidthError, match=r"width 0 of group 'b' is outside of \[1, 4\], from the narrowest chain's"):
        nearest_rung(two, whole, {"a": 1, "b": 0})
    with pytest.raises(WidthError, match=r"no rung .* group 'a' \(1\) is narrower than chain 1's 2, and group 'b'"):
        nearest_rung(two, whole, {"a": 1, "b": 3})
    with pytest.raises(WidthError, match=r"no rung .* group 'a' \(1\) is narrower than chain 2's 2"):
        nearest_rung([{"a": 3, "b": 3}, {"a": 2, "b": 2}, {"a": 1, "b": 1}], whole, {"a": 1, "b": 3})


def test_chains_that_make_no_ladder(ladder):
    first, second, third = ladder.chains
    for chains, message in (
        ((), "at least one chain"),
        ((second,), "made of a student"),
        ((first, third), "chain 2 of the ladder was not made of the student"),
        ((first, first), "chain 2 of the ladder was not made of the student"),
    ):
        with pytest.raises(ChainError, match=message):
            Ladder(chains)


def test_summaries(ladder):
    lines = ladder.summary().splitlines()
    assert [line.split()[0] for line in lines[2:]] == ["1", "2", "3"]
    narrowest, widest = (float(number) for number in lines[3].split()[3:])
    assert 0.2 < narrowest < 0.27 and 0.45 < widest < 0.52, "tiny groups keep one channel"
    text = ladder.chains[1].summary()
    fewest, most = sum(ladder.chains[1].widths.values()), sum(ladder.chains[0].widths.values())
    assert text.startswith(f"students have {fewest} to {most} channels in {len(ladder.chains[1].widths)} groups")
    assert "conv1.conv" in text and "output of the network" in text


def test_a_rung_can_be_refined_like_any_chain(ladder):
    """The engine's module takes the S-student and its own chain, and gives a chain that knows its origin."""
    chain = ladder.chains[1]
    teacher = sstudent_of(ladder.chains[0])
    refinement = Refinement(teacher, chain).train()
    output, own = refinement(torch.randn(4, *SIZE))
    nn.functional.mse_loss(own, output.detach()).backward()
    refined = refinement.to_chain()
    assert refined.origin_to_chain.keys() == chain.origin_to_chain.keys()
    assert refined.statistics


HOW = {
    "attention": "paper",
    "distance": "teacher",
    "statistics": "initial",
    "vectors_over": "slots",
    "feature": "teacher",
    "measure": lambda network, size: None,
}


def test_a_ladder_takes_every_argument_of_expand(ladder):
    """A ladder of one chain gives what that chain gives."""
    ways = {"width": 0.75, "params": "100k", "flops": "3M", "size": "1MB", "like": ladder.chains[0].model}
    parameters = set(inspect.signature(oskt.expand).parameters) - {"chain", "latency"}
    assert parameters == ways.keys() | HOW.keys(), "a new argument is one of the ladder's as well"
    chain = ladder.chains[0]
    one = Ladder((chain,))
    plain = oskt.expand(chain, 0.75)
    for how in [{"width": 0.75, name: value} for name, value in HOW.items()] + [{way: ways[way]} for way in ways]:
        expected = oskt.expand(chain, **how)
        assert same_tensors(one.expand(**how), expected)
        if "statistics" in how:
            assert not same_tensors(expected, plain)
    with pytest.raises(ConfigError, match="statistics is 'ours'; allowed: own, merged, initial"):
        one.expand(0.75, statistics="ours")


# ---- in a run ----------------------------------------------------------------------------------------------------

LADDER = "oskt.ladder=[0.5, 0.25]"
RUN = [*TINY, "oskt.students=['width=0.75', 'width=0.3']", "oskt.finetune.max_epoch=0", "oskt.recalibrate=0"]


def configured(root, folder, *options):
    return load_config(options=[*RUN, f"data.root={root}", f"data.save_dir={folder}", *options])


@pytest.fixture(scope="module")
def finished(tiny_net, data_root, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    return data_root, folder, run(configured(data_root, folder, LADDER))


def test_a_run_refines_every_rung_and_expands_from_the_nearest(finished):
    root, folder, results = finished
    chains = [WeightChain.load(folder / name) for name in ("chain.safetensors", "chain-2.safetensors")]
    made = Ladder(tuple(chains))
    assert all(chain.statistics for chain in chains), "both were refined"
    assert [row.name for row in results.rows] == ["teacher", "width=0.75", "width=0.3"]
    assert len(results.facts["rungs"]) == 1
    assert "the nearest of 2 chains of widths 0.5, 0.25" in (folder / "results.md").read_text()
    for name in ("width=0.75", "width=0.3"):
        student = oskt.load_student(folder / "students" / name / "expanded.pth")
        expected = made.expand(float(name.partition("=")[2])).state_dict()
        assert all(torch.equal(tensor, expected[key]) for key, tensor in student.state_dict().items())


def test_a_finished_ladder_is_not_refined_again(finished, monkeypatch):
    root, folder, results = finished
    monkeypatch.setattr("oskt_torchreid.runs.trainer.Trainer.train", forbidden)
    assert run(configured(root, folder, LADDER)).rows == results.rows
    changed = run(configured(root, folder, LADDER, "oskt.distance=teacher", "oskt.recalibrate=1"))
    assert [row.name for row in changed.rows] == [row.name for row in results.rows]
    student = oskt.load_student(folder / "students" / "width=0.75" / "expanded.pth")
    assert student.student_record.distance == "teacher"
    tracked = [buffer for name, buffer in student.named_buffers() if name.endswith("num_batches_tracked")]
    assert set(map(int, tracked)) == {1}


def forbidden(*_, **__):
    raise AssertionError("something was trained")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            ["oskt.ladder=[0.25, 0.5]"],
            ConfigError,
            "oskt.ladder has 'width=0.5' after 'width=0.25', which is not narrow",
        ),
        (["oskt.ladder=[0.5, 0.5]"], ConfigError, "which is not narrower; order it from wide to narrow"),
        (["oskt.ladder=['wdith=0.5']"], ConfigError, "oskt.ladder has 'wdith=0.5'; did you mean 'width'"),
        (["oskt.ladder=[1.5]"], WidthError, r"width ratio 1.5 is outside of \(0, 1\]"),
        ([LADDER, "oskt.students=['width=0.2']"], WidthError, "is outside of"),
        (["oskt.distance=techer"], ConfigError, "oskt.distance is 'techer'; did you mean 'teacher'"),
        (["oskt.recalibrate=-1"], ConfigError, "oskt.recalibrate is -1"),
        (["model.name=mobilenetv2_x1_0", "oskt.distance=chain"], GraphError, "cannot be scaled for distance='chain'"),
    ],
)
def test_mistakes_are_found_before_training(finished, tmp_path, monkeypatch, options, error, message):
    monkeypatch.setattr("oskt_torchreid.runs.trainer.Trainer.train", forbidden)
    with pytest.raises(error, match=message):
        run(configured(finished[0], tmp_path, *options))


def test_a_ladder_that_is_evaluated_alone(tiny_net, data_root, tmp_path, monkeypatch, caplog):
    """Its students are known as those of its own chains, and nothing is trained."""
    results = run(configured(data_root, tmp_path, LADDER))
    monkeypatch.setattr("oskt_torchreid.runs.trainer.Trainer.train", None)
    rows = run(configured(data_root, tmp_path, LADDER, "test.evaluate=True")).rows
    assert [(row.name, row.map_before, row.map_after) for row in rows] == [
        (row.name, row.map_before, row.map_after) for row in results.rows
    ]
    assert "made with other settings" not in caplog.text
