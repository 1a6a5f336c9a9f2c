"""Public functions answer arguments of the wrong kind with a typed error that says what to give, and change nothing."""

import copy
import functools

import numpy as np
import pytest
import torch
from small_networks import TinyNet
from torch import nn

import oskt_torchreid as oskt
from oskt_torchreid.baselines import Baseline, register_baseline
from oskt_torchreid.chain import feature_scale, save_plain
from oskt_torchreid.chain.expansion import expand_to_plan
from oskt_torchreid.errors import ChainError, ConfigError, DataError, OsktError, TrainingError, WidthError
from oskt_torchreid.graph.plans import balanced, check_plan, ratio_plan

SIZE = (3, 32, 16)


@pytest.fixture(scope="module")
def teacher():
    torch.manual_seed(0)
    return TinyNet(num_classes=4).eval()


@pytest.fixture(scope="module")
def chain(teacher):
    return oskt.WeightChain.from_teacher(teacher, 0.5, SIZE)


@pytest.fixture
def student(chain):
    return oskt.expand(chain, 0.75)


def one_name(chain):
    return next(group.name for group in chain.graph.groups if not group.fixed)


def with_width(chain, width):
    return {**chain.graph.sizes, one_name(chain): width}


WRONG = {
    "no teacher": lambda t, c, s: oskt.WeightChain.from_teacher(None, 0.5, SIZE),
    "a teacher without weights": lambda t, c, s: oskt.WeightChain.from_teacher(copy.deepcopy(t).to("meta"), 0.5, SIZE),
    "another size than the graph's": lambda t, c, s: oskt.WeightChain.from_teacher(t, 0.5, "abc", graph=c.graph),
    "labels of no groups": lambda t, c, s: oskt.WeightChain.from_labels(t, c.graph, None),
    "labels that are None": lambda t, c, s: oskt.WeightChain.from_labels(t, c.graph, dict.fromkeys(c.teacher_to_chain)),
    "fractions as labels": lambda t, c, s: oskt.WeightChain.from_labels(
        t, c.graph, {name: labels + 0.5 for name, labels in c.teacher_to_chain.items()}
    ),
    "a student of nothing": lambda t, c, s: oskt.WeightChain.from_student(s, "c"),
    "a second graph": lambda t, c, s: oskt.WeightChain.from_student(s, c, graph=c.graph),
    "a file called None": lambda t, c, s: oskt.WeightChain.load(None),
    "a name as a network": lambda t, c, s: oskt.WeightChain.load("c.safetensors", model="osnet"),
    "truth as a width": lambda t, c, s: oskt.expand(c, True),
    "numbers as names": lambda t, c, s: oskt.expand(c, {1: 2}),
    "no chain": lambda t, c, s: expand_to_plan("c.safetensors", c.widths),
    "a ratio as a plan": lambda t, c, s: expand_to_plan(c, 0.5),
    "no plan": lambda t, c, s: expand_to_plan(c, None),
    "an empty attention": lambda t, c, s: oskt.expand(c, 0.5, attention=""),
    "no measuring function": lambda t, c, s: oskt.expand(c, latency="5ms", measure=3),
    "a measure without spread": lambda t, c, s: oskt.expand(c, latency="5ms", measure=lambda *_: 3.0),
    "a checkpoint of no network": lambda t, c, s: oskt.expand(c, like={"stem.weight": 3}),
    "scalars instead of weights": lambda t, c, s: oskt.expand(
        c, like={name: torch.zeros(()) for name in t.state_dict()}
    ),
    "text as a width": lambda t, c, s: check_plan(c.graph, with_width(c, "8")),
    "a fraction as a width": lambda t, c, s: check_plan(c.graph, with_width(c, 8.5)),
    "widths below one": lambda t, c, s: balanced(c.graph, with_width(c, -4)),
    "widths above all": lambda t, c, s: balanced(c.graph, with_width(c, 10**30)),
    "unknown groups": lambda t, c, s: balanced(c.graph, {**c.graph.sizes, "nope": 1}),
    "missing groups": lambda t, c, s: balanced(c.graph, {}),
    "a plan as a ratio": lambda t, c, s: ratio_plan(c.graph, c.widths),
    "least widths of others": lambda t, c, s: ratio_plan(c.graph, 0.5, {"nope": 1}),
    "a ratio as widths of a scale": lambda t, c, s: feature_scale(c, 0.5, "teacher"),
    "a chain as a ladder": lambda t, c, s: oskt.Ladder(c),
    "a path in a ladder": lambda t, c, s: oskt.Ladder(("c.safetensors",)),
    "a plan of nothing": lambda t, c, s: oskt.Ladder((c,)).nearest({}),
    "no teacher to refine": lambda t, c, s: oskt.Refinement(None, c),
    "no chain to refine": lambda t, c, s: oskt.Refinement(t, "c"),
    "a class as a network": lambda t, c, s: oskt.load_student("s.pth", model=TinyNet),
    "nowhere": lambda t, c, s: oskt.save_student(s, None),
    "a folder of the system": lambda t, c, s: oskt.save_student(s, "/proc/s.pth"),
    "nothing to save": lambda t, c, s: save_plain(None, "s.pth"),
    "a number as a mean": lambda t, c, s: oskt.export(s, "s.torchscript", mean=3),
    "no loader": lambda t, c, s: oskt.recalibrate(s, None),
    "text as a count": lambda t, c, s: oskt.recalibrate(s, [], batches="3"),
    "an engine without a class": lambda t, c, s: oskt.register_engine("a", 3),
    "an engine that cannot run": lambda t, c, s: oskt.register_engine("a", dict),
    "an engine without a name": lambda t, c, s: oskt.register_engine(None, nn.Module),
    "a rule that is a number": lambda t, c, s: oskt.graph.register_rule("mylib::a", 3),
    "a second rule": lambda t, c, s: oskt.graph.register_rule("relu", lambda *_: None),
    "a baseline without a name": lambda t, c, s: register_baseline(None, Baseline(lambda *_: t, "x")),
    "a baseline with a dot": lambda t, c, s: register_baseline("my.net", Baseline(lambda *_: t, "x")),
    "a baseline called file": lambda t, c, s: register_baseline("file", Baseline(lambda *_: t, "x")),
    "a function as a baseline": lambda t, c, s: register_baseline("fn", lambda *_: t),
}


@pytest.mark.parametrize("call", WRONG.values(), ids=WRONG)
def test_arguments_of_the_wrong_kind(teacher, chain, student, call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OsktError) as caught:
        call(teacher, chain, student)
    assert len(str(caught.value).split()) > 6, "which thing, what it got, what to do"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("labels", "got"),
    [
        (lambda rows, count: np.zeros(len(rows), int), "1 clusters"),
        (lambda rows, count: np.arange(len(rows)), "clusters"),
        (lambda rows, count: np.arange(count), "of shape"),
        (lambda rows, count: np.arange(len(rows)) % count + 0.7, "float64"),
        (lambda rows, count: np.full(len(rows), np.nan), "float64"),
        (lambda rows, count: ["a"] * len(rows), "<U1"),
    ],
)
def test_a_clustering_of_ones_own_gives_as_many_clusters_as_it_is_asked_for(teacher, labels, got):
    with pytest.raises(ChainError, match=f"gave .*{got}"):
        oskt.WeightChain.from_teacher(teacher, 0.5, SIZE, clustering=labels)


def test_a_clustering_of_ones_own_may_give_lists_and_tensors(teacher):
    widths = []
    for kind in (list, torch.tensor):
        labels = functools.partial(lambda kind, rows, count: kind([i % count for i in range(len(rows))]), kind)
        widths.append(oskt.WeightChain.from_teacher(teacher, 0.5, SIZE, clustering=labels).widths)
    assert widths[0] == widths[1] == ratio_plan(oskt.trace(teacher, SIZE), 0.5)


def test_losses_of_a_refinement_need_training_mode_and_a_scalar(teacher, chain):
    refinement = oskt.Refinement(copy.deepcopy(teacher), chain)
    for batch in (2, 3):
        with pytest.raises(TrainingError, match="train"):
            refinement.eval().losses(torch.randn(batch, *SIZE), lambda output: output.mean())
    with pytest.raises(TrainingError, match=r"shape \(2, 4\).*scalar"):
        refinement.train().losses(torch.randn(2, *SIZE), lambda output: output)


def test_pictures_that_are_not_numbers_leave_a_student_as_it_was(student):
    before = copy.deepcopy(student.state_dict())
    with pytest.raises(DataError, match="batch 2 "):
        oskt.recalibrate(student, [torch.rand(2, *SIZE), torch.full((2, *SIZE), float("nan"))])
    assert all(torch.equal(tensor, before[name]) for name, tensor in student.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_budgets_of_chains_in_other_types_of_numbers(teacher, dtype):
    chain = oskt.WeightChain.from_teacher(copy.deepcopy(teacher).to(dtype), 0.5, SIZE)
    full = sum(parameter.numel() for parameter in teacher.parameters())
    student = oskt.expand(chain, params=0.7 * full)
    assert sum(parameter.numel() for parameter in student.parameters()) < full
    with pytest.raises(WidthError, match="cannot be met"):
        oskt.expand(chain, flops=1)


def test_a_checkpoint_as_torch_loads_it_is_a_likeness(teacher, chain):
    student = oskt.expand(chain, like={"state_dict": teacher.state_dict()})
    assert {name: t.shape for name, t in student.state_dict().items()} == {
        name: t.shape for name, t in teacher.state_dict().items()
    }


def test_a_ladder_takes_lists_and_all_that_expand_takes(chain):
    ladder = oskt.Ladder([chain])
    assert ladder.chains == (chain,)
    student, expected = ladder.expand(0.75, statistics="initial"), oskt.expand(chain, 0.75, statistics="initial")
    assert all(torch.equal(t, expected.state_dict()[name]) for name, t in student.state_dict().items())
    with pytest.raises(ConfigError, match="statistics"):
        ladder.expand(0.75, statistics="x")


def test_chains_and_graphs_are_shown_in_one_line(chain):
    assert repr(chain).startswith("<WeightChain of TinyNet: ") and len(repr(chain)) < 100
    assert repr(chain.graph).startswith("<ChannelGraph of ") and len(repr(chain.graph)) < 100


def test_files_may_be_read_by_those_that_the_system_lets(chain, student, tmp_path):
    chain.save(tmp_path / "c.safetensors")
    oskt.save_student(student, tmp_path / "s.pth")
    (tmp_path / "plain").write_text("")
    modes = {path.name: path.stat().st_mode for path in tmp_path.iterdir()}
    assert len(modes) == 3 and len(set(modes.values())) == 1
