"""Queries of every width of a run against galleries of every other."""

from __future__ import annotations

import json

import numpy as np
import pytest
from matplotlib.image import imread
from runs import tiny
from test_tools import tool

import oskt_torchreid as oskt
from oskt_torchreid.errors import CheckpointError, ConfigError
from oskt_torchreid.host import models
from oskt_torchreid.lab.fleet import FINETUNED, RECALIBRATED, REFINED, TEACHER, UNTRAINED, Fleet, measure_fleet
from oskt_torchreid.runs import run

OPTIONS = ("oskt.students=['width=0.5','width=1.0']", "oskt.recalibrate=2")


@pytest.fixture(scope="module")
def folder(tiny_net, data_root, tmp_path_factory):
    folder = tmp_path_factory.mktemp("fleet")
    run(tiny(data_root, folder, *OPTIONS))
    return folder


def test_every_pair_of_a_runs_networks(folder, capsys):
    assert tool("benchmark").main(["fleet", str(folder)]) == 0
    printed = capsys.readouterr().out
    fleets = json.loads((folder / "fleet.json").read_text())["fleets"]
    assert [fleet["state"] for fleet in fleets] == [UNTRAINED, RECALIBRATED, FINETUNED]
    for fleet in fleets:
        assert fleet["names"] == [TEACHER, REFINED, "width=0.5", "width=1.0"]
        pairs, own = np.array(fleet["mAP"]), np.array(fleet["own"])
        assert pairs.shape == (4, 4) and ((pairs > 0) & (pairs <= 1)).all()
        whole = [fleet["names"].index(name) for name in (TEACHER, REFINED, "width=1.0")]
        assert np.diag(pairs)[whole].tolist() == own[whole].tolist(), "nothing is merged in them"
        assert f"{100 * pairs[2, 3]:.1f}" in printed and f"## Students {fleet['state']}" in printed
    before = [np.array(fleet["mAP"])[:2, :2] for fleet in fleets]
    assert all(np.array_equal(each, before[0]) for each in before), "teachers are the same in all"
    assert printed.strip().startswith((folder / "fleet.md").read_text().strip()[:200])
    assert imread(folder / "fleet.png").std() > 0.05


def test_what_a_pair_loses():
    names = (TEACHER, "narrow", "wide")
    fleet = Fleet(
        UNTRAINED, names, np.array([0.9, 0.5, 0.8]), np.array([[0.9, 0.2, 0.3], [0.1, 0.5, 0.45], [0.2, 0.6, 0.8]])
    )
    lost = fleet.lost
    np.testing.assert_allclose(lost[1:, 1:], [[0, 0.05], [-0.1, 0]], atol=1e-12)
    np.testing.assert_allclose(fleet.between(lost), [0.05, -0.1], err_msg="pairs of two, without the first teacher")


def test_runs_without_a_fleet(folder, tiny_net, tmp_path, data_root):
    config = tiny(data_root, tmp_path / "other", "oskt.students=[]")
    run(config)
    with pytest.raises(ConfigError, match="other' is no run with students of a chain"):
        measure_fleet(tmp_path / "other")
    student = folder / "students" / "width=0.5" / "student.pth"
    kept = student.read_bytes()
    stranger = oskt.WeightChain.from_teacher(models.build(tiny_net, 6), 0.5)
    oskt.save_student(oskt.expand(stranger, 0.5), student)
    with pytest.raises(CheckpointError, match="student.pth' is not of the chain '.*chain.safetensors'; run"):
        measure_fleet(folder)
    student.write_bytes(kept)
