"""Latencies that a device measured: a table, and the students that it allows."""

from __future__ import annotations

import csv

import pytest
import torch
from small_networks import TinyNet
from test_tools import tool

import oskt_torchreid as oskt
from oskt_torchreid.chain import MeasuredTable, width_plan
from oskt_torchreid.chain.counting import Costs
from oskt_torchreid.chain.measured import table_to_fill
from oskt_torchreid.errors import ConfigError, WidthError
from oskt_torchreid.graph.plans import ratio_plan
from oskt_torchreid.host import models

SIZE = (3, 32, 16)
ROWS = ((0.25, 1.0), (0.5, 2.0), (1.0, 5.0))


@pytest.fixture(scope="module")
def chain():
    return oskt.WeightChain.from_teacher(TinyNet(5).eval(), 0.25, input_size=SIZE)


def test_between_two_widths(chain):
    """Interpolated along multiply-adds; beyond what was measured nothing is promised."""
    cost = MeasuredTable(ROWS[1:]).costs(chain)
    flops = {width: Costs(chain).count([ratio_plan(chain.graph, width)]).flops[0] for width in (0.25, 0.5, 0.75, 1.0)}
    assert cost(ratio_plan(chain.graph, 0.5)) == 2 and cost(ratio_plan(chain.graph, 1.0)) == 5
    between = 2 + 3 * (flops[0.75] - flops[0.5]) / (flops[1.0] - flops[0.5])
    assert cost(ratio_plan(chain.graph, 0.75)) == pytest.approx(between)
    assert cost(ratio_plan(chain.graph, 0.25)) == 2, "no more than the narrowest"
    assert MeasuredTable(ROWS[:2]).costs(chain)(ratio_plan(chain.graph, 0.75)) == float("inf")


@pytest.mark.parametrize(("budget", "width"), [("2ms", 0.5), ("1ms", 0.25), (7, 1.0)])
def test_the_widest_within_a_budget(chain, budget, width):
    table = MeasuredTable(ROWS, "device.csv")
    assert width_plan(chain, latency=budget, measure=table) == ratio_plan(chain.graph, width)
    narrow = MeasuredTable(ROWS[:2])
    expected = ratio_plan(chain.graph, min(width, 0.5))
    assert width_plan(chain, latency=budget, measure=narrow) == expected, "what was not measured is not chosen"


def test_a_budget_that_no_student_meets(chain):
    with pytest.raises(WidthError, match=r"students of this chain have from 1ms .* to 5ms"):
        width_plan(chain, latency="0.5ms", measure=MeasuredTable(ROWS))
    with pytest.raises(WidthError, match=r"from 1ms .* to what was not measured"):
        width_plan(chain, latency="0.5ms", measure=MeasuredTable(ROWS[:2]))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("width,ms\n0.5,2\n", r"has the columns \['width', 'ms'\]; it needs 'width' and 'milliseconds'"),
        ("", "it needs 'width' and 'milliseconds'"),
        ("width,milliseconds\n0.5,fast\n", "has a line that is not two numbers"),
        ("width,milliseconds\n,3\n", "has a line that is not two numbers"),
        ("width,milliseconds\n0.5,\n", "has no time in any of its 1 lines; fill in the milliseconds"),
        ("width,milliseconds\n0.5,2\n0.5,3\n", r"has the widths \[0.5, 0.5\]"),
        ("width,milliseconds\n1.5,2\n", "has 2 ms for width 1.5; widths are above 0 and at most 1"),
        ("width,milliseconds\n0.5,-2\n", "has -2 ms for width 0.5"),
        ("width,milliseconds\n0.5,nan\n", "has nan ms for width 0.5"),
        (b"\xff\xfe\x00", "the table of latencies .* is not text in UTF-8"),
    ],
)
def test_tables_that_cannot_be(tmp_path, text, message):
    path = tmp_path / "device.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ConfigError, match=message):
        MeasuredTable.read(path)


def test_a_table_of_a_spreadsheet(tmp_path):
    """A byte order mark, other columns, spaces, and a line that is not filled in."""
    path = tmp_path / "device.csv"
    path.write_bytes("\ufeffwidth, file, milliseconds\n0.25, a.onnx, 1.0\n0.5, b.onnx, 2\n0.75, c.onnx,\n".encode())
    assert MeasuredTable.read(path) == MeasuredTable(ROWS[:2], str(path))
    with pytest.raises(ConfigError, match="no table of latencies can be read at"):
        MeasuredTable.read(tmp_path / "none.csv")


def test_from_a_grid_of_files_to_a_student(tmp_path, tiny_net, capsys):
    """`oskt export --grid` writes what a device measures, `oskt expand --measured` takes what it gave."""
    pytest.importorskip("onnxscript")
    oskt.WeightChain.from_teacher(models.build(tiny_net, 6).eval(), 0.25).save(tmp_path / "chain.safetensors")
    files = tmp_path / "widths"
    command = [
        str(tmp_path / "chain.safetensors"),
        "--grid",
        "0.25",
        "0.5",
        "1",
        "-o",
        str(files),
        "--inputs",
        "static",
    ]
    assert tool("export").main(command) == 0
    assert sorted(path.name for path in files.iterdir()) == [
        "latency.csv",
        "width-0.25.onnx",
        "width-0.5.onnx",
        "width-1.onnx",
    ]
    lines = list(csv.DictReader((files / "latency.csv").open()))
    assert [(line["width"], line["file"], line["milliseconds"]) for line in lines] == [
        ("0.25", "width-0.25.onnx", ""),
        ("0.5", "width-0.5.onnx", ""),
        ("1", "width-1.onnx", ""),
    ]
    assert (files / "latency.csv").read_text() == table_to_fill([0.25, 0.5, 1], [line["file"] for line in lines])
    filled = "width,file,milliseconds\n" + "".join(f"{line['width']},x,{4 * float(line['width'])}\n" for line in lines)
    (files / "latency.csv").write_text(filled)
    student = tmp_path / "student.pth"
    capsys.readouterr()
    command = [str(tmp_path / "chain.safetensors"), "--latency", "2ms", "--measured", str(files / "latency.csv")]
    assert tool("expand").main([*command, "-o", str(student)]) == 0
    printed = capsys.readouterr().out
    assert f"latency 2ms of 2ms by '{files / 'latency.csv'}'" in printed
    expected = oskt.expand(oskt.WeightChain.load(tmp_path / "chain.safetensors"), 0.5).state_dict()
    state = torch.load(student, weights_only=True)["state_dict"]
    assert {name: tensor.shape for name, tensor in state.items()} == {n: t.shape for n, t in expected.items()}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--grid", "0.1", "-o", "folder"], "error: width 1 of group 'stem' is outside of [4, 16]"),
        (["--grid", "0.5", "-o", "folder", "--precision", "int8"], "error: files of a grid of widths are not written"),
        (["--grid", "0.5", "-o", "chain.safetensors"], "error: -o is 'chain.safetensors', a file; give a folder"),
    ],
)
def test_grids_that_cannot_be(tmp_path, tiny_net, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    oskt.WeightChain.from_teacher(models.build(tiny_net, 6).eval(), 0.25).save("chain.safetensors")
    assert tool("export").main(["chain.safetensors", *arguments]) == 2
    assert capsys.readouterr().err.startswith(message) and not (tmp_path / "folder").exists()


def test_a_spreadsheet_with_decimal_commas(tmp_path):
    (tmp_path / "device.csv").write_text("width;milliseconds\n0,5;3,25\n1,0;8\n")
    assert MeasuredTable.read(tmp_path / "device.csv").rows == ((0.5, 3.25), (1.0, 8.0))
