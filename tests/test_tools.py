"""The commands that show a channel graph and that measure costs."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path

import pytest

TOOLS = Path(__file__).resolve().parents[1] / "tools"
COMMANDS = {"main": "run", "benchmark": "bench"} | dict.fromkeys(["expand", "export", "graph", "visualize", "zoo"], "")
"""Files of `tools` that are doors to commands, and the commands, if their names are others."""


def command(name):
    """A command of `oskt` as a module."""
    return importlib.import_module(f"oskt_torchreid.commands.{name}")


def tool(name):
    """A command by the name of its file in `tools`, or a tool that is none, under a name that hides no module."""
    if name in COMMANDS:
        return command(COMMANDS[name] or name)
    spec = importlib.util.spec_from_file_location(f"{name}_command", TOOLS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", COMMANDS)
def test_a_file_of_tools_is_a_door_to_its_command(name):
    spec = importlib.util.spec_from_file_location(f"{name}_door", TOOLS / f"{name}.py")
    door = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(door)
    assert door.main is tool(name).main


def test_graph_command_prints_the_groups(capsys):
    assert tool("graph").main(["osnet_x0_25", "--size", "64", "32"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("3015 channels in 63 groups")
    assert printed[-4].split()[:2] == ["classifier", "751"]
    assert printed[-3:-1] == ["width grid: 575 plans; coarsest 1/2 (2 groups)", "students: exact"]


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


def test_graph_command_says_what_networks_of_sets_change(capsys):
    assert tool("graph").main(["--sets", "resnet18"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert [cell.strip() for cell in printed[-1].strip("|").split("|")] == ["resnet18", "yes", "yes, of 2 layers"]
    assert tool("graph").main(["--sets", "resnet19"]) == 2
    assert "unknown model 'resnet19'; did you mean 'resnet" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["osnet_x0_25", "--size", "0", "32"], ["osnet_x0_25", "--size", "64"], []])
def test_graph_command_refuses_bad_arguments(arguments):
    with pytest.raises(SystemExit) as stopped:
        tool("graph").main(arguments)
    assert stopped.value.code == 2


@pytest.mark.slow
def test_refining_and_expanding_are_measured(capsys):
    command = tool("benchmark")
    sizes = ["--rounds", "1", "--batch", "2", "--planes", "8", "--size", "64", "32"]
    assert command.main(["refine", "--method", "first", *sizes]) == 0
    row = capsys.readouterr().out.splitlines()[-1].split()
    assert row[:3] == ["first", "2", "8"] and all(float(value) > 0 for value in row[3:])
    assert command.main(["expand", "--rounds", "1", "--names", "res50-s1"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[3:]]
    assert [row[0] for row in rows] == ["res50-s1"] and all(float(row[3]) > 0 for row in rows)
    assert command.main(["expand", "--names", "res50-s7"]) == 2
    assert "no student is called 'res50-s7'; allowed: res50-s1, res50-s2" in capsys.readouterr().err
    assert command.main(["expand", "--all", "--names", "osnet_x0_25", "resnet18", "--rounds", "1"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[3:]]
    assert [row[0] for row in rows[:2]] == ["osnet_x0_25", "resnet18"] and all(float(row[3]) > 0 for row in rows[:2])
    fast = sum(float(row[3]) <= 100 for row in rows[:2])
    assert " ".join(rows[2]) == f"{fast} of 2 take at most 100 ms"


def test_drawing_views_is_measured_beside_a_scan(capsys):
    assert tool("benchmark").main(["views", "--rounds", "1", "--sets", "4", "--views", "3"]) == 0
    head, batch, _, _, *rows = capsys.readouterr().out.splitlines()
    assert head.startswith("8298 tracklets of 625 identities: index built in ")
    assert batch == "4 sets of 3 views, median of 1"
    costs = {name: float(cost) for name, cost in map(str.split, rows)}
    assert list(costs) == ["multiview", "temporal", "chunk", "random", "scan"]
    assert costs["multiview"] < costs["scan"]


def test_a_step_of_distillation_is_measured_beside_its_parts(capsys, tiny_net):
    arguments = ["vkd", "--backbone", tiny_net, "--sets", "8", "--views", "4", "--size", "32", "16", "--rounds", "5"]
    assert tool("benchmark").main(arguments) == 0
    head, _, _, *rows = capsys.readouterr().out.splitlines()
    assert head.startswith("tiny_net, 8 sets of 4 and 2 views at 32x16, ") and head.endswith("median of 5")
    teacher, student, step, ratio = (float(row.split()[-1]) for row in rows)
    assert min(teacher, student) > 0 and step > max(teacher, student)
    assert ratio == pytest.approx(step / (teacher + student), rel=0.05)
    assert tool("benchmark").main(["vkd", "--backbone", tiny_net, "--student-views", "9", "--rounds", "1"]) == 2
    assert "vkd.num_student_views is 9; allowed: 1 to vkd.num_views=8" in capsys.readouterr().err


def test_a_backbone_is_proved(capsys):
    command = tool("graph")
    assert command.main(["osnet_x0_25", "--prove", "--size", "64", "32"]) == 0
    out = capsys.readouterr().out
    assert "proof: students of " in out and "compute what their teacher does" in out
    assert "in every student: 4 of 3015 channels" in out
    with pytest.raises(SystemExit):
        command.main(["--support", "--prove"])
    assert "--prove needs the name of a model" in capsys.readouterr().err
