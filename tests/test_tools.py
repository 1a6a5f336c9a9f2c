"""The commands that show a channel graph and that measure costs."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from oskt_torchreid.host import models
from oskt_torchreid.oskt.network import trace
from oskt_torchreid.oskt.students import expand
from oskt_torchreid.report import benchmark

TOOLS = Path(__file__).resolve().parents[1] / "tools"


def tool(name):
    """A command as a module, under a name that hides no other module."""
    spec = importlib.util.spec_from_file_location(f"{name}_command", TOOLS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_graph_command_prints_the_groups(capsys):
    assert tool("graph").main(["osnet_x0_25", "--size", "64", "32"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("3015 channels in 63 groups")
    assert printed[-3].split()[:2] == ["classifier", "751"]
    assert printed[-2:] == ["width grid: 575 plans; coarsest 1/2 (2 groups)", "students: exact"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["osnet_x0_26"], "error: unknown model 'osnet_x0_26'; did you mean 'osnet_x0_25'"),
        (["resnet18", "--size", "1", "1"], None),
        (["hacnn", "--size", "64", "32"], "error: the network fails on one image of (3, 64, 32)"),
    ],
)
def test_graph_command_shows_errors_in_one_line(capsys, arguments, message):
    status = tool("graph").main(arguments)
    printed = capsys.readouterr()
    assert status == (2 if message else 0)
    assert not message or (printed.out == "" and printed.err.startswith(message) and printed.err.count("\n") == 1)


@pytest.mark.parametrize("arguments", [["osnet_x0_25", "--size", "0", "32"], ["osnet_x0_25", "--size", "64"], []])
def test_graph_command_refuses_bad_arguments(arguments):
    with pytest.raises(SystemExit) as stopped:
        tool("graph").main(arguments)
    assert stopped.value.code == 2


def test_the_series_has_the_published_sizes():
    teacher = models.build(benchmark.BACKBONE, benchmark.NUM_CLASSES)
    graph = trace(teacher, (3, 64, 32))
    published = {"S1": 0.37, "S2": 0.61, "S3": 1.48, "S4": 2.42, "S5": 5.89, "S6": 9.64}
    chain = benchmark.random_chain(teacher, 8)
    for name, (planes, base, multiples) in benchmark.SERIES.items():
        plan = benchmark.series_plan(graph, base, multiples)
        narrowest = graph.ratio_plan(planes / benchmark.TEACHER_PLANES)
        assert all(plan[group] >= width for group, width in narrowest.items())
        student = expand(chain, plan)
        backbone = sum(tensor.numel() for key, tensor in student.named_parameters() if "classifier" not in key)
        assert backbone / 1e6 == pytest.approx(published[name], abs=0.006)


@pytest.mark.slow
def test_refining_and_expanding_are_measured(capsys):
    command = tool("benchmark")
    assert command.main(["refine", "--rounds", "1", "--batch", "2", "--planes", "8", "--size", "64", "32"]) == 0
    row = capsys.readouterr().out.splitlines()[-1].split()
    assert row[:2] == ["2", "8"] and all(float(value) > 0 for value in row[2:])
    assert command.main(["expand", "--rounds", "1"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[3:]]
    assert [row[0] for row in rows] == [f"Res-50-S{number}" for number in range(1, 7)]
