"""Latency of a run's networks and of stock models: table, file and picture."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
import torch
from matplotlib.image import imread
from runs import tiny
from test_tools import tool

import oskt_torchreid as oskt
from oskt_torchreid.config import save_resolved
from oskt_torchreid.deploy import Latency
from oskt_torchreid.errors import ConfigError
from oskt_torchreid.files import save_checkpoint
from oskt_torchreid.host import models
from oskt_torchreid.lab import latency
from oskt_torchreid.lab.latency import family
from oskt_torchreid.lab.latency_report import LatencyRow, latency_table, latency_vs_map
from oskt_torchreid.report import Row, write_results


@pytest.fixture
def folder(tiny_net, tmp_path):
    """What a run leaves of a teacher, a student and a control."""
    save_resolved(tiny(tmp_path, tmp_path), tmp_path)
    teacher = models.build(tiny_net, 6)
    save_checkpoint(tmp_path / "teacher" / "teacher.pth", {"state_dict": teacher.state_dict()})
    student = oskt.expand(oskt.WeightChain.from_teacher(teacher, 0.5), 0.5)
    oskt.save_student(student, tmp_path / "students" / "width=0.5" / "student.pth")
    rows = [
        Row("teacher", "teacher", 1000, 20_000, map_after=0.8),
        Row("width=0.5", "student", 300, 6000, 0.6, 0.7, 0.75, 0.8, 1),
        Row("scratch", "control", 300, 6000, map_after=0.1),
    ]
    write_results(tmp_path / "results.json", rows)
    return tmp_path


def test_the_networks_of_a_run(folder, capsys):
    for package in ("onnxruntime", "onnxscript", "openvino"):
        pytest.importorskip(package)
    command = ["latency", str(folder), "--batch", "1", "2", "--threads", "1", "--rounds", "3"]
    assert tool("benchmark").main([*command, "--stock", "tiny_net"]) == 0
    printed = capsys.readouterr().out
    rows = json.loads((folder / "latency.json").read_text())["rows"]
    assert [(row["name"], row["kind"], row["mean_ap"]) for row in rows] == [
        ("teacher", "teacher", 0.8),
        ("width=0.5", "student", 0.75),
        ("tiny_net", "stock", None),
    ]
    for row in rows:
        ways = [(seen["backend"], seen["batch"], seen["threads"]) for seen in row["seen"]]
        assert ways == [(name, count, 1) for name in ("pytorch", "onnxruntime", "openvino") for count in (1, 2)]
        assert all(0 < seen["median_ms"] <= seen["p95_ms"] for seen in row["seen"]) and row["file_size"] > 1000
        assert row["name"] in printed
    assert rows[2]["params"] == sum(
        p.numel() for n, p in models.build("tiny_net", 1).named_parameters() if "classifier" not in n
    )
    assert "| width=0.5 | 300 | " in " ".join((folder / "latency.md").read_text().split())
    assert imread(folder / "latency_vs_map.png").shape[0] > 400


def test_a_folder_without_a_run(folder, tmp_path, capsys):
    (folder / "teacher" / "teacher.pth").unlink()
    (folder / "students" / "width=0.5" / "student.pth").unlink()
    assert tool("benchmark").main(["latency", str(folder), "--backends", "pytorch", "--stock"]) == 2
    assert "has no networks of a run next to its results" in capsys.readouterr().err
    assert tool("benchmark").main(["latency", str(folder / "teacher")]) == 2
    assert "error: no file at" in capsys.readouterr().err


@pytest.fixture
def measured(monkeypatch):
    """What is measured, which must be nothing."""
    seen = []
    monkeypatch.setattr(latency.Timed, "measure", lambda *way, **options: seen.append(way))
    return seen


@pytest.mark.parametrize("missing", ["openvino", "onnxruntime", "onnxscript"])
def test_a_missing_package_is_named_before_anything_is_measured(folder, measured, capsys, monkeypatch, missing):
    monkeypatch.setitem(sys.modules, missing, None)  # as if it were not installed
    assert tool("benchmark").main(["latency", str(folder)]) == 2
    assert f"needs the package '{missing}'; install the extra: pip install" in capsys.readouterr().err
    teacher = models.build("tiny_net", 6)
    chain = str(folder / "chain.safetensors")
    oskt.WeightChain.from_teacher(teacher, 0.5).save(chain)
    backend = "openvino" if missing == "openvino" else "onnxruntime"
    for way in (["--table"], ["--latency", "5ms", "-o", str(folder / "student.pth")]):
        assert tool("expand").main([chain, *way, "--backend", backend]) == 2
        printed = capsys.readouterr()
        assert f"needs the package '{missing}'" in printed.err and not printed.out
    assert not measured


def test_what_cannot_be_measured_is_named_before_anything_is(folder, measured, capsys):
    assert tool("benchmark").main(["latency", str(folder), "--stock", "tiny_net", "tiny_nett"]) == 2
    assert "unknown model 'tiny_nett'; did you mean 'tiny_net'" in capsys.readouterr().err
    if not torch.cuda.is_available():
        assert tool("benchmark").main(["latency", str(folder), "--device", "cuda"]) == 2
        assert "torch finds no GPU here" in capsys.readouterr().err
    assert not measured


def test_stock_models_of_the_same_family():
    assert family("osnet_x0_5")[:4] == ["osnet_x1_0", "osnet_x0_75", "osnet_x0_5", "osnet_x0_25"]
    assert "resnet50" not in family("osnet_x0_5") and "resnet18" in family("resnet50")


# ---- table and picture ---------------------------------------------------------------------------------------------


def seen(backend, batch, threads, ms):
    return Latency(ms, 0.1, 1.2 * ms, batch, threads, "cpu", backend, 15)


def some_rows():
    ways = [("pytorch", 1, 1), ("pytorch", 16, 1), ("openvino", 1, 1), ("openvino", 16, 1)]
    facts = [
        ("teacher", "teacher", 0.82, 20.0),
        ("width=0.5", "student", 0.8, 8.0),
        ("osnet_x0_25", "stock", None, 9.0),
    ]
    return [
        LatencyRow(name, kind, 600_000, 68_000_000, 2_500_000, value, tuple(seen(*way, ms * way[1]) for way in ways))
        for name, kind, value, ms in facts
    ]


def test_the_table_has_a_line_per_network_and_backend():
    lines = latency_table(some_rows()).splitlines()
    assert "1 image, 1 thread" in lines[0] and "16 images, 1 thread" in lines[0] and len(lines) == 8
    assert lines[2].split()[:7] == ["teacher", "600", "k", "68.0", "M", "2.50", "MB"]
    assert lines[2].split()[8:] == ["pytorch", "20", "/", "24", "320", "/", "384"] and lines[3].split()[0] == "openvino"
    assert lines[6].split()[7] == "-", "a stock model has no mAP"


def test_the_picture_shows_every_network(tmp_path):
    latency_vs_map(some_rows(), tmp_path / "picture.png", "a run")
    colours = {
        tuple(pixel) for pixel in np.rint(imread(tmp_path / "picture.png")[..., :3] * 255).astype(int).reshape(-1, 3)
    }
    assert {(0, 158, 115), (0, 0, 0)} <= colours, "student and teacher"
    with pytest.raises(ConfigError, match="no network has an mAP"):
        latency_vs_map(some_rows()[2:], tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()
