"""Thresholds for false accept rates, with intervals over identities."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from small_networks import TinyNet

import oskt_torchreid as oskt
from oskt_torchreid.deploy import pairs, read_metadata
from oskt_torchreid.deploy.threshold import Calibration, calibrate
from oskt_torchreid.errors import CheckpointError, DataError


def at_angles(*degrees):
    """Features whose cosine similarities are those of the angles between them."""
    radians = torch.deg2rad(torch.tensor(degrees, dtype=torch.float64))
    return 3 * torch.stack([radians.cos(), radians.sin()], 1)


def test_a_worked_example():
    """Identities 0 at 0 and 20 degrees, 1 at 50 and 90: impostors 30, 50, 70 and 90 degrees apart."""
    found = calibrate(at_angles(0, 20, 50, 90), [0, 0, 1, 1], rates=(0.25, 0.5), repeats=0)
    assert (found.identities, found.genuine, found.impostors) == (2, 2, 4)
    quarter, half = found.at(0.25), found.at(0.5)
    # One impostor may pass: the threshold is just above the second, of 50 degrees. Genuine pairs are 20 and 40 apart.
    assert np.cos(np.deg2rad(50)) < quarter.similarity < np.cos(np.deg2rad(49.99)) and quarter.tar == 1
    assert np.cos(np.deg2rad(70)) < half.similarity < np.cos(np.deg2rad(69.99)) and half.tar == 1
    assert (quarter.low, quarter.high) == (quarter.similarity, quarter.similarity)
    strict = calibrate(at_angles(0, 20, 50, 90), [0, 0, 1, 1], rates=(0.24,), repeats=0)
    assert strict.thresholds == (), "less than one impostor"


def test_pairs_of_one_camera_do_not_count():
    with_cameras = calibrate(at_angles(0, 20, 50, 90), [0, 0, 1, 1], [0, 1, 0, 1], rates=(0.5,), repeats=0)
    assert (with_cameras.genuine, with_cameras.impostors) == (2, 2), "20-50 and 0-90 are left"
    assert np.cos(np.deg2rad(90)) < with_cameras.at(0.5).similarity < np.cos(np.deg2rad(89.9))


@pytest.mark.parametrize("cameras", [False, True])
def test_rates_are_kept_and_parts_are_everything(monkeypatch, cameras):
    """Against all pairs at once; the highest impostors alone are kept."""
    random = np.random.default_rng(0)
    pids, camids = random.integers(0, 30, 400), random.integers(0, 3, 400)
    features = random.standard_normal((30, 8))[pids] + 0.8 * random.standard_normal((400, 8))
    monkeypatch.setattr(pairs, "_ROWS", 37)
    monkeypatch.setattr(pairs, "_SAMPLE", 20_000)
    found = calibrate(features, pids, camids if cameras else None, "made", rates=(1e-3, 1e-2))
    vectors = (features / np.linalg.norm(features, axis=1, keepdims=True)).astype(np.float32)
    first, second = np.triu_indices(400, 1)
    counted = camids[first] != camids[second] if cameras else np.ones(len(first), bool)
    alike, same = (vectors @ vectors.T)[first, second][counted], (pids[first] == pids[second])[counted]
    assert (found.genuine, found.impostors) == (same.sum(), (~same).sum()) and found.data == "made"
    assert [each.far for each in found.thresholds] == [1e-2, 1e-3]
    for each in found.thresholds:
        passed = int(each.far * found.impostors)
        impostors = np.sort(alike[~same])[::-1]
        assert impostors[passed] - 1e-6 < each.similarity < impostors[passed - 1] + 1e-6, "as many as may pass"
        assert each.tar == pytest.approx((alike[same] >= each.similarity).mean(), abs=2e-3)
        assert each.low < each.similarity < each.high and each.tar_low < each.tar < each.tar_high


def test_intervals_are_of_identities():
    """Copies of pictures tell nothing new of people: intervals stay as wide."""
    random = np.random.default_rng(1)
    pids = np.repeat(np.arange(20), 4)
    features = random.standard_normal((20, 6))[pids] + 0.7 * random.standard_normal((80, 6))
    widths = []
    for copies in (1, 3):
        each = calibrate(np.tile(features, (copies, 1)), np.tile(pids, copies), rates=(1e-2,), repeats=300).at(1e-2)
        widths.append(each.high - each.low)
    assert widths[1] == pytest.approx(widths[0], rel=0.25)


def test_a_calibration_in_plain_values():
    found = calibrate(at_angles(0, 20, 50, 90), [0, 0, 1, 1], data="four", rates=(0.25, 0.5))
    assert Calibration.from_dict(found.to_dict()) == found
    with pytest.raises(DataError, match="no threshold was measured for a false accept rate of 0.1; known: 0.5, 0.25"):
        found.at(0.1)


@pytest.mark.parametrize(
    ("features", "pids", "camids", "rates", "message"),
    [
        (at_angles(0, 1), [0, 1], None, (0.1,), "0 pairs of one identity and 1 of two"),
        (at_angles(0, 1), [0, 0], None, (0.1,), "1 pairs of one identity and 0 of two"),
        (
            at_angles(0, 1, 2),
            [0, 0, 1],
            [0, 0, 0],
            (0.1,),
            "0 pairs of one identity and 0 of two",
        ),
        (at_angles(0, 1), [0], None, (0.1,), "there are 1 identities and 1 cameras; give one of each per picture"),
        (at_angles(0, 1), [0, 1], [0], (0.1,), "there are 2 identities and 1 cameras"),
        (torch.full((2, 2), float("nan")), [0, 0], None, (0.1,), "features are NaN or infinite"),
        (at_angles(0, 1), [0, 0], None, (), r"rates are \[\]; give some between 0 and 1"),
        (at_angles(0, 1), [0, 0], None, (1.0,), r"rates are \[1.0\]; give some between 0 and 1"),
    ],
)
def test_what_cannot_be_calibrated(features, pids, camids, rates, message):
    with pytest.raises(DataError, match=message):
        calibrate(features, pids, camids, rates=rates)


# ---- with a network ------------------------------------------------------------------------------------------------


def batches():
    generator = torch.Generator().manual_seed(0)
    for pid in range(6):
        images = torch.randn(1, 3, 32, 16, generator=generator) + 0.5 * torch.randn(4, 3, 32, 16, generator=generator)
        yield {"img": images, "pid": torch.full((4,), pid), "camid": torch.arange(4)}


def test_thresholds_are_kept_with_a_student(tmp_path):
    pytest.importorskip("onnxscript")
    teacher = TinyNet(5).eval()
    student = oskt.expand(oskt.WeightChain.from_teacher(teacher, 0.5, input_size=(3, 32, 16)), 0.75).train()
    found = oskt.calibrate_threshold(student, batches(), "six", rates=(0.1, 0.01), repeats=20)
    assert student.training and found.data == "six" and found.identities == 6
    student.eval()
    data = list(batches())
    features = torch.cat([student(batch["img"]) for batch in data]).detach()
    pids = torch.cat([batch["pid"] for batch in data]).numpy()
    cameras = torch.cat([batch["camid"] for batch in data]).numpy()
    assert found == calibrate(features, pids, cameras, "six", rates=(0.1, 0.01), repeats=20)
    oskt.save_student(student, tmp_path / "student.pth")
    loaded = oskt.load_student(tmp_path / "student.pth", model=teacher)
    assert Calibration.from_dict(loaded.student_record.thresholds["own"]) == found
    exported = oskt.export(loaded, tmp_path / "student.onnx")
    assert Calibration.from_dict(read_metadata(exported.path, "onnx")["thresholds"]) == found
    lifted = oskt.export(loaded, tmp_path / "lifted.onnx", feature="teacher")
    assert "thresholds" not in read_metadata(lifted.path, "onnx"), "they are those of its own features"
    whole = oskt.lifted(loaded)
    again = oskt.calibrate_threshold(whole, batches(), "six", rates=(0.1,), repeats=0)
    both = {"own": found.to_dict(), "teacher": again.to_dict()}
    assert loaded.student_record.thresholds == both and whole.student_record.thresholds == both
    for network in (whole, loaded):
        again_exported = oskt.export(network, tmp_path / "whole.onnx", feature="teacher")
        assert Calibration.from_dict(read_metadata(again_exported.path, "onnx")["thresholds"]) == again
    content = torch.load(tmp_path / "student.pth", weights_only=True)
    torch.save({**content, "oskt": {**content["oskt"], "thresholds": {"own": {"data": 3}}}}, tmp_path / "damaged.pth")
    torch.save({**content, "oskt": {**content["oskt"], "thresholds": {"none": found.to_dict()}}}, tmp_path / "odd.pth")
    for name in ("damaged", "odd"):
        with pytest.raises(CheckpointError, match="no student of this package"):
            oskt.load_student(tmp_path / f"{name}.pth", model=teacher)


def test_two_networks():
    """Queries by one and a gallery by another: every picture by the first against every other by the second."""
    first, second = at_angles(0, 20, 50, 90), at_angles(0, 30, 50, 80)
    found = pairs.pairs_of(first, [0, 0, 1, 1], None, 0.5, second)
    degrees = np.round(np.rad2deg(np.arccos(found.genuine))).astype(int)
    assert sorted(degrees) == [20, 30, 30, 40], "0-30, 20-0, 50-80 and 90-50"
    assert found.impostors == 8 and len(found.high) == 8
    highest = np.round(np.rad2deg(np.arccos(found.high))).astype(int)
    assert highest.tolist() == [20, 30, 50, 50, 60, 60, 80, 90], "50-30, 20-50, 0-50, 50-0, 20-80, 90-30, 0-80, 90-0"
    assert found.rates_at(np.cos(np.deg2rad(35))) == (2 / 8, 3 / 4)
    with pytest.raises(DataError, match=r"features have the shape \(4, 2\), the others have \(2, 2\)"):
        pairs.pairs_of(first, [0, 0, 1, 1], None, 0.5, second[:2])


def test_any_network_and_loaders_of_something_else():
    assert oskt.calibrate_threshold(TinyNet(5), batches(), rates=(0.1,), repeats=0).thresholds
    with pytest.raises(DataError, match="the loader gave no batch"):
        oskt.calibrate_threshold(TinyNet(5), [])
    with pytest.raises(DataError, match="its items must be dicts"):
        oskt.calibrate_threshold(TinyNet(5), [torch.zeros(2, 3, 32, 16)])
