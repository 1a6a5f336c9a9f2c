"""The example of the page on fleets, run as it is written."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from small_networks import TinyNet

import oskt_torchreid as oskt

PAGE = Path(__file__).resolve().parents[1] / "docs" / "fleet.md"


def test_a_server_and_its_devices(tiny_net, tmp_path, monkeypatch, capsys):
    for package in ("onnxruntime", "onnxscript"):
        pytest.importorskip(package)
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    teacher = TinyNet(5).eval()
    oskt.WeightChain.from_teacher(teacher, 0.5, input_size=(3, 32, 16)).save("chain.safetensors")
    load = oskt.WeightChain.load
    monkeypatch.setattr(oskt.WeightChain, "load", lambda path: load(path, model=teacher))
    enrolled = np.random.default_rng(0).standard_normal((4, 3, 32, 16), np.float32)
    exec(compile(code, str(PAGE), "exec"), {"enrolled": enrolled, "seen": enrolled[2:3]})
    gate, hall, yard, again = capsys.readouterr().out.splitlines()[-4:]
    assert [line.split()[0] for line in (gate, hall, yard)] == ["gate", "hall", "yard"]
    assert again.startswith("[") and len(again.split(",")) == 4, "all that are enrolled"
    assert sorted(path.name for path in tmp_path.glob("*.onnx")) == [
        "gate.onnx",
        "hall.onnx",
        "server.onnx",
        "yard.onnx",
    ]
