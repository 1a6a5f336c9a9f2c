"""Budgets: the widest student within one, and messages about those that cannot be met."""

from __future__ import annotations

import functools
import logging
import sys
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch
from backbones import NUM_CLASSES
from chains import arbitrary_chain
from hypothesis import given
from hypothesis import strategies as st
from small_networks import Head, Network, TinyNet, conv
from torch import nn

import oskt_torchreid as oskt
from oskt_torchreid.chain.budgets import _bisect, parse_amount, ratios_of, show_amount
from oskt_torchreid.chain.counting import Costs
from oskt_torchreid.chain.expansion import choose_widths, expand_to_plan
from oskt_torchreid.deploy import measure_latency
from oskt_torchreid.errors import ConfigError, ExportError, WidthError
from oskt_torchreid.graph.plans import check_plan, ratio_plan, rounded_down, show_ratio
from oskt_torchreid.host import models

SIZE = (3, 64, 32)


@pytest.fixture(scope="module", params=["osnet_x0_5", "shufflenet", "densenet121"])
def chain(request):
    return arbitrary_chain(models.build(request.param, NUM_CLASSES), 0.25, SIZE)


@pytest.fixture(scope="module")
def small():
    return arbitrary_chain(models.build("osnet_x0_25", NUM_CLASSES), 0.5, SIZE)


@pytest.fixture(scope="module")
def tiny():
    """For what is exported, which takes long for networks of many layers, however small."""
    return arbitrary_chain(TinyNet(NUM_CLASSES), 0.5, SIZE)


# ---- counted budgets ---------------------------------------------------------------------------------------------


def costs_of(chain, way, half=False):
    """A function of width plans, by another way than the search takes it: sizes are those of files on the disk."""
    costs = Costs(chain)

    def size(plan):
        with TemporaryDirectory() as folder:
            oskt.save_student(expand_to_plan(chain, plan), f"{folder}/student.pth", half)
            return Path(folder, "student.pth").stat().st_size

    return size if way == "size" else (lambda plan: getattr(costs.count([plan]), way)[0])


@pytest.mark.parametrize("way", ["params", "flops", "size"])
@pytest.mark.parametrize("share", [0.1, 0.8])
def test_the_widest_plan_within_the_budget(chain, way, share):
    cost, ratios = costs_of(chain, way), ratios_of(chain)
    least, most = cost(chain.widths), cost(chain.graph.sizes)
    budget = int(least + share * (most - least))
    choice = choose_widths(chain, **{way: budget})
    assert choice.cost == cost(choice.widths) <= budget
    wider = ratios[np.searchsorted(ratios, choice.ratio) + 1]
    assert cost(ratio_plan(chain.graph, wider)) > budget
    assert choice.widths == ratio_plan(chain.graph, choice.ratio) == oskt.chain.width_plan(chain, choice.ratio)
    assert choice.cost > 0.9 * budget or len(ratios) < 50


def test_budgets_that_are_met_to_the_last_number(small):
    params = int(Costs(small).count([ratio_plan(small.graph, 0.75)]).params[0])
    assert choose_widths(small, params=params).widths == ratio_plan(small.graph, 0.75)
    assert choose_widths(small, params=params - 1).ratio < 0.75
    assert choose_widths(small, params=1e12).widths == small.graph.sizes
    narrowest = int(Costs(small).count([small.widths]).params[0])
    assert choose_widths(small, params=narrowest).widths == small.widths


def test_a_file_is_within_its_budget(small, tmp_path):
    for budget, half in (("700kB", False), ("400kB fp16", True)):
        student = oskt.expand(small, size=budget)
        oskt.save_student(student, tmp_path / "student.pth", half=half)
        written = (tmp_path / "student.pth").stat().st_size
        assert 0.97 * parse_amount("size", budget) < written <= parse_amount("size", budget)
    assert choose_widths(small, size="400kB fp16").half


def test_a_choice_says_what_it_costs(small, caplog):
    with caplog.at_level(logging.INFO, logger="oskt_torchreid"):
        choice = choose_widths(small, params="150k")
    assert str(choice) in caplog.text and "params=150k gives width ratio 0." in caplog.text
    assert choice.budget == 150_000 and choice.way == "params" and f"({choice.cost / 150_000:.1%})" in str(choice)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (
            {"params": 1000},
            r"params=1000 cannot be met: .* from 56.2k \(the chain's own widths, ratio 0.5\) to 202k \(th",
        ),
        ({"flops": "1k"}, r"flops='1k' cannot be met: .* from [\d.]+M .* to [\d.]+M"),
        ({"size": "1kB"}, r"size='1kB' cannot be met: .* from \d+kB .* to [\d.]+MB"),
        (
            {"params": "1 furlong"},
            "params='1 furlong' is no budget; .* one of the units k, K, M, G, T, such as params='1M'",
        ),
        ({"flops": -5}, "flops=-5 is no budget"),
        ({"size": "4Mb"}, "size='4Mb' is no budget; .* k, K, M, G, T, B, kB, KB, MB, GB, KiB, MiB, GiB"),
        ({"latency": "0ms"}, "latency='0ms' is no budget; .* us, ms, s"),
        ({"params": "nan"}, "params='nan' is no budget"),
        ({"params": 1e6, "flops": 1e6}, r"in exactly one way, not 2 \(params, flops\)"),
    ],
)
def test_budgets_that_cannot_be_met(small, how, message):
    with pytest.raises(WidthError, match=message):
        oskt.expand(small, **how)


@pytest.mark.parametrize(
    ("way", "text", "amount"),
    [
        ("params", "1M", 1e6),
        ("params", 2_000_000, 2e6),
        ("flops", "1.5 G", 1.5e9),
        ("flops", "2e8", 2e8),
        ("size", "4MB", 4e6),
        ("size", "4 MiB fp16", 4 * 2**20),
        ("latency", "5ms", 5.0),
        ("latency", 5, 5.0),
        ("latency", "0.2s", 200.0),
        ("latency", "300us", 0.3),
    ],
)
def test_amounts(way, text, amount):
    assert parse_amount(way, text) == pytest.approx(amount)


def test_amounts_are_shown():
    shown = [show_amount("params", 2_193_616), show_amount("size", 999_900), show_amount("flops", 12)]
    assert shown == ["2.19M", "1.00MB", "12"] and show_amount("latency", 4.8712) == "4.87ms"
    assert show_amount("latency", 1234) == "1.23s"


@pytest.mark.parametrize("way", ["params", "flops", "size"])
def test_the_budget_that_a_refusal_advises_is_met(small, way):
    with pytest.raises(WidthError) as refused:
        oskt.expand(small, **{way: "1k"})
    advised = str(refused.value).partition("ask for at least ")[2].partition(",")[0]
    assert choose_widths(small, **{way: advised}).ratio < 0.6


@given(st.floats(1e-2, 1e14), st.sampled_from(["params", "latency"]))
def test_an_amount_that_is_enough_is_never_below(amount, way):
    shown = parse_amount(way, show_amount(way, amount, at_least=True))
    assert amount * (1 - 1e-9) <= shown <= max(amount * 1.0101, amount + 1 if way == "params" else 0)


def test_units_as_people_write_them():
    assert parse_amount("params", "300K") == parse_amount("params", "300k") == 3e5
    assert parse_amount("size", "0.8 MB") == parse_amount("size", "800K") == parse_amount("size", "800kB") == 8e5


def test_ratios_are_those_at_which_widths_change(small):
    ratios = ratios_of(small)
    assert ratios[0] == 0.5 and ratios[-1] == 1 and (np.diff(ratios) > 0).all()
    plans = [ratio_plan(small.graph, ratio) for ratio in ratios]
    assert all(before != after for before, after in zip(plans, plans[1:], strict=False))
    between = [ratio_plan(small.graph, ratio) for ratio in (ratios[1:] + ratios[:-1]) / 2]
    assert between == plans[:-1]


def test_a_chain_of_uneven_widths_gives_its_own_widths_too():
    """Made like a stock model that keeps its feature whole; no group gets narrower than in the chain."""
    teacher = models.build("osnet_x0_5", NUM_CLASSES)
    top = arbitrary_chain(teacher, 0.25, SIZE)
    chain = arbitrary_chain(teacher, oskt.chain.width_plan(top, like="osnet_x0_25"), SIZE)
    ratios = ratios_of(chain)
    plans = [ratio_plan(chain.graph, ratio, chain.widths) for ratio in ratios]
    assert plans[0] == chain.widths and plans[-1] == chain.graph.sizes and ratios[0] < 0.6
    for narrow, wide in zip(plans, plans[1:], strict=False):
        check_plan(chain.graph, wide)
        assert narrow != wide and all(narrow[name] <= width for name, width in wide.items())
    own = int(Costs(chain).count([chain.widths]).params[0])
    choice = choose_widths(chain, params=own)
    assert choice.widths == chain.widths and choice.cost == own
    assert choice.held == 1 and "(1 groups wider, as in the chain)" in str(choice), "the feature"
    with pytest.raises(WidthError, match="cannot be met"):
        choose_widths(chain, params=own - 1)


def test_plans_that_no_group_goes_below():
    graph = oskt.trace(models.build("resnext50_32x4d", NUM_CLASSES), SIZE)
    least = ratio_plan(graph, 0.5)
    uneven = {**least, "conv1": 64}
    plan = ratio_plan(graph, 0.3, uneven)
    assert plan == uneven and ratio_plan(graph, 0.75, uneven)["conv1"] == 64
    assert ratio_plan(graph, 0.3)["conv1"] == 19, "without it they do"


def test_ratios_in_messages_can_be_typed_in():
    """A third of 96 channels is 32, but 0.333 of them are 31."""
    assert [show_ratio(ratio) for ratio in (1 / 3, 0.5, 1 / 2048, 0.3334, 1)] == [
        "0.3334",
        "0.5",
        "0.0005",
        "0.3334",
        "1",
    ]
    chain = arbitrary_chain(nn.Sequential(conv(3, 96), Head(96)), {"0": 32}, (3, 8, 8))
    with pytest.raises(WidthError, match="ask for a ratio of at least 0.3334, or"):
        oskt.chain.width_plan(chain, 0.333)
    assert oskt.chain.width_plan(chain, 0.3334) == chain.widths


def test_a_budget_whose_widths_had_to_be_lowered_says_so(caplog):
    """Norm blocks of 3 + 5 and 4 + 4 channels at half their width are 1 + 2 and 2 + 2: one channel gives way."""
    chain = arbitrary_chain(uneven_blocks(), {}, (3, 8, 8))
    chain = arbitrary_chain(uneven_blocks(), {g.name: 1 for g in chain.graph.groups if not g.fixed}, (3, 8, 8))
    asked = rounded_down(chain.graph, 0.5)
    plan = ratio_plan(chain.graph, 0.5)
    assert asked != plan
    with caplog.at_level(logging.WARNING, logger="oskt_torchreid"):
        choose_widths(chain, params=int(Costs(chain).count([plan]).params[0]))
    assert "widths lowered to the next legal ones" in caplog.text


def uneven_blocks():
    """A norm of two blocks of 8 channels that four layers produce: 3 + 5 and 4 + 4."""

    def forward(self, images):
        parts = torch.cat([self.a(images), self.b(images), self.c(images), self.d(images)], 1)
        return self.head(self.norm(parts))

    layers = {name: conv(3, width) for name, width in zip("abcd", (3, 5, 4, 4), strict=True)}
    return Network(forward, **layers, norm=nn.GroupNorm(2, 16), head=Head(16))


def test_bisection_by_hand():
    costs = [1, 2, 4, 8]
    assert [_bisect(costs.__getitem__, 3, budget, budget) for budget in (1, 5, 7.9, 8, 100)] == [0, 2, 2, 3, 3]


# ---- names and patterns ------------------------------------------------------------------------------------------


def test_widths_by_pattern(small):
    sizes = small.graph.sizes
    plan = oskt.chain.width_plan(small, {"conv2.*": 0.5, "conv3.*": 0.75, "conv1.conv": 9})
    assert plan["conv1.conv"] == 9
    conv2 = [name for name in sizes if name.startswith("conv2.")]
    assert conv2 and all(plan[name] == max(1, sizes[name] // 2) for name in conv2)
    assert all(plan[name] == sizes[name] for name in sizes if name.startswith("conv4."))
    with pytest.raises(WidthError, match=r"names channel group 'conv9.\*', which this network does not have"):
        oskt.chain.width_plan(small, {"conv9.*": 0.5})
    for wrong in (1.5, "half", True, -0.5):
        with pytest.raises(WidthError, match="width of group 'conv1.conv' is .*; give a whole number up to 16, or a r"):
            oskt.chain.width_plan(small, {"conv1.conv": wrong})


# ---- latency -----------------------------------------------------------------------------------------------------


@dataclass
class Pretended:
    """What a measuring function returns, as it would be on an idle machine."""

    median_ms: float
    spread_ms: float = 0.0


def by_params(student, size, calls=None):
    """A latency of one millisecond per 10,000 parameters."""
    assert size == SIZE and not student.training
    params = sum(p.numel() for p in student.parameters())
    if calls is not None:
        calls.append(params)
    return Pretended(params / 1e4)


def test_latency_by_bisection_over_measured_students(small):
    calls = []
    measure = functools.partial(by_params, calls=calls)
    choice = choose_widths(small, latency="15ms", measure=measure)
    assert 0.95 * 15 <= choice.cost <= 15 and "within 5 % of the budget" in str(choice)
    assert len(calls) == len(set(calls)) <= 10, "no plan is measured twice"
    student = oskt.expand(small, latency="15ms", measure=by_params)
    assert by_params(student, SIZE).median_ms == choice.cost


def test_latency_that_jumps_gives_the_closest_below(small):
    def measure(student, size):
        return Pretended(1.0 if by_params(student, size).median_ms < 15 else 100.0)

    choice = choose_widths(small, latency=50, measure=measure)
    assert choice.cost == 1.0 and "the closest below the budget" in str(choice)
    wider = ratios_of(small)[np.searchsorted(ratios_of(small), choice.ratio) + 1]
    assert measure(oskt.expand(small, wider), SIZE).median_ms == 100.0


def test_doubtful_measurements_are_repeated(small):
    calls = []

    def measure(student, size):
        calls.append(by_params(student, size).median_ms)
        return Pretended(20.0 if len(calls) == 1 else 10.0, spread_ms=15.0)

    assert choose_widths(small, latency="12ms", measure=measure).widths == small.graph.sizes
    assert calls[0] == calls[1] != calls[2] and len(calls) == 3


def test_latency_that_cannot_be_met(small):
    with pytest.raises(WidthError, match=r"latency='1ms' cannot be met: .* from 5\.8ms .* to 20\.5ms"):
        oskt.expand(small, latency="1ms", measure=by_params)


def test_latency_is_measured_here(tiny):
    student = expand_to_plan(tiny, tiny.widths)
    student.train()
    threads = torch.get_num_threads()
    seen = measure_latency(student, SIZE, batch=2, threads=1, backend="pytorch", warmup=1, repeats=5)
    assert 0 < seen.median_ms < 5000 and seen.spread_ms >= 0 and (seen.batch, seen.repeats) == (2, 5)
    assert f"{seen.median_ms:.3g} ms (quartiles" in str(seen) and "2 image(s) by pytorch on cpu, 1 thread(s)" in str(
        seen
    )
    assert student.training and torch.get_num_threads() == threads
    choice = choose_widths(tiny, latency="1000s")
    assert choice.widths == tiny.graph.sizes and 0 < choice.cost < 1e6


@pytest.mark.parametrize("installed", [True, False])
def test_a_runtime_is_measured_where_there_is_one(tiny, monkeypatch, installed):
    """PyTorch's own time for small networks hardly depends on their width; the output says what measured."""
    if installed:
        pytest.importorskip("onnxruntime")
        pytest.importorskip("onnxscript")
    else:
        monkeypatch.setitem(sys.modules, "onnxruntime", None)
    expected = "onnxruntime" if installed else "pytorch"
    assert measure_latency(expand_to_plan(tiny, tiny.widths), SIZE, repeats=1).backend == expected
    choice = choose_widths(tiny, latency="1000s")
    assert choice.source == f"by {expected}" and f" by {expected} (" in str(choice)


class Weighing(nn.Module):
    """Its code depends on values, which no exporter follows."""

    def __init__(self):
        super().__init__()
        self.last = nn.Conv2d(3, 8, 1)

    def forward(self, images):
        return (self.last(images) if images.sum() > 0 else self.last(-images)).mean((2, 3))


def test_what_no_runtime_takes_is_measured_by_pytorch(caplog):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    with caplog.at_level(logging.INFO, "oskt_torchreid.deploy.latency"):
        assert measure_latency(Weighing(), SIZE, repeats=1).backend == "pytorch"
    assert "measured by PyTorch, for ONNX Runtime cannot run it: Weighing cannot be traced" in caplog.text
    with pytest.raises(ExportError, match="Weighing cannot be traced"):
        measure_latency(Weighing(), SIZE, backend="onnxruntime", repeats=1)


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_latency_of_an_exported_student(backend):
    for package in ("onnxruntime", "onnxscript", backend):
        pytest.importorskip(package)
    student = oskt.expand(arbitrary_chain(TinyNet(NUM_CLASSES), 0.5, SIZE), 0.75)
    seen = measure_latency(student, SIZE, batch=2, threads=1, backend=backend, warmup=1, repeats=5)
    assert (seen.backend, seen.batch, seen.repeats) == (backend, 2, 5) and 0 < seen.median_ms <= seen.p95_ms < 5000


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"backend": "tensorrt"}, "backend of a latency measurement is 'tensorrt'; allowed: pytorch, onnxruntime"),
        ({"backend": "openvino", "device": "cuda"}, "backend 'openvino' is measured on 'cpu' alone"),
        ({"device": "tpu"}, "device of a latency measurement is 'tpu'; allowed: cpu, cuda"),
        ({"batch": 0}, "batch of a latency measurement is 0; give 1 or more"),
        ({"threads": 0}, "threads of a latency measurement is 0"),
    ],
)
def test_measurements_that_cannot_be_made(small, monkeypatch, settings, message):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(ConfigError, match=message):
        measure_latency(expand_to_plan(small, small.widths), SIZE, **settings)


def test_a_missing_backend_names_what_to_install(small, monkeypatch):
    for backend in ("onnxruntime", "openvino"):
        monkeypatch.setitem(__import__("sys").modules, backend, None)
        with pytest.raises(ConfigError, match=rf"backend '{backend}' needs the package '.*oskt_torchreid\[export\]"):
            measure_latency(expand_to_plan(small, small.widths), SIZE, backend=backend, repeats=1)


def test_a_missing_gpu(small, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="torch finds no GPU here; measure on 'cpu'"):
        measure_latency(expand_to_plan(small, small.widths), SIZE, device="cuda")
