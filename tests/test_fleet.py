"""A fleet of a run's networks: queries of every width against galleries of every other, and thresholds."""

from __future__ import annotations

import json

import numpy as np
import pytest
from matplotlib.image import imread
from runs import configured, tiny
from test_tools import tool
from torch.nn import functional

import oskt_torchreid as oskt
from oskt_torchreid.deploy import Lifted
from oskt_torchreid.deploy.threshold import Calibration
from oskt_torchreid.errors import CheckpointError, ConfigError
from oskt_torchreid.host import models
from oskt_torchreid.lab.fleet import FINETUNED, RECALIBRATED, REFINED, TEACHER, UNTRAINED, Fleet, measure_fleet
from oskt_torchreid.lab.thresholds import measure_thresholds
from oskt_torchreid.runs import run
from oskt_torchreid.runs.trainer import Trainer

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


# ---- thresholds ----------------------------------------------------------------------------------------------------


def test_thresholds_of_a_run(folder, capsys):
    files = [folder / "students" / name / "student.pth" for name in ("width=0.5", "width=1.0")]
    before = [path.read_bytes() for path in files]
    assert tool("benchmark").main(["threshold", str(folder), "--rates", "0.2", "0.1", "--no-keep"]) == 0
    assert [path.read_bytes() for path in files] == before and "into the files" not in capsys.readouterr().out
    assert tool("benchmark").main(["threshold", str(folder), "--rates", "0.2", "0.1"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith((folder / "thresholds.md").read_text()[:300])
    assert "## One threshold for the fleet" in printed
    content = json.loads((folder / "thresholds.json").read_text())
    assert content["names"] == [REFINED, "width=0.5", "width=1.0"] and content["rates"] == [0.2, 0.1]
    for name, path in zip(content["names"][1:], files, strict=True):
        kept = oskt.load_student(path).student_record.thresholds
        alone = content["networks"][name]
        expected = {"own": alone["own"], "teacher": alone["lifted"], "fleet": content["fleet"]}
        assert kept == {kind: Calibration.from_dict(each).to_dict() for kind, each in expected.items()}
    assert imread(folder / "thresholds.png").std() > 0.05
    assert np.shape(content["curves"])[:2] == (3, 2)


def test_the_fleets_threshold_lets_no_more_pass(folder):
    found = measure_thresholds(folder, (0.2, 0.05), repeats=30)
    assert found.fleet.data == found.data and len(found.fleet.thresholds) == 2
    for place, each in enumerate(found.fleet.thresholds):
        assert each.similarity == pytest.approx(found.similarity[place].max())
        assert (found.far[place] <= each.far).all() and found.far[place].max() > 0
        assert each.tar == found.tar[place].min() and each.low <= each.similarity <= each.high
        for number, calibration in enumerate(found.lifted):
            own = calibration.thresholds[place]
            assert own.similarity == pytest.approx(found.similarity[place, number, number])
            assert found.tar[place, number, number] <= own.tar
    widest = [found.names.index(name) for name in (REFINED, "width=1.0")]
    assert found.own[widest[0]] == found.lifted[widest[0]], "a teacher's features are as long as a teacher's"


# ---- what is lost --------------------------------------------------------------------------------------------------


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


def test_fine_tuned_students_that_share_a_gallery(tiny_net, data_root, tmp_path):
    """Held to the widest student's features, a narrow one ends nearer to them."""
    apart = {}
    for weight in (0.0, 5.0):
        folder = tmp_path / f"{weight:g}"
        stages = ("oskt.refine.max_epoch=2", "oskt.finetune.max_epoch=8", "oskt.finetune.lr=0.01")
        config = tiny(data_root, folder, *OPTIONS, *stages, "oskt.nested=True", f"oskt.finetune.compatible={weight}")
        run(config)
        trainer, chain = Trainer(config), oskt.WeightChain.load(folder / "chain.safetensors")
        student = oskt.load_student(folder / "students" / "width=0.5" / "student.pth")
        gallery = [trainer.features(network)[1] for network in (student, oskt.expand(chain, 1.0))]
        alike = functional.cosine_similarity(oskt.lift(gallery[0], student), gallery[1])
        apart[weight] = float((1 - alike).mean())
    assert apart[5.0] < 0.7 * apart[0.0]


def test_what_cannot_share_a_gallery_is_refused_first(data_root, tmp_path):
    weight = "oskt.finetune.compatible=1.0"
    with pytest.raises(ConfigError, match="oskt.finetune.compatible is 1, but 'pcb_p4' returns several features"):
        run(tiny(data_root, tmp_path, weight, "model.name=pcb_p4", "data.height=64"))
    with pytest.raises(ConfigError, match="oskt.finetune.compatible is 1 and oskt.distance 'teacher'"):
        run(configured(data_root, tmp_path, weight, "oskt.distance=teacher"))
    assert not list(tmp_path.glob("**/*.pth"))


def test_students_with_their_teachers_features_from_a_configuration(tiny_net, data_root, tmp_path):
    config = tiny(data_root, tmp_path, *OPTIONS, "oskt.feature=teacher")
    rows = {row.name: row for row in run(config).rows}
    student = oskt.load_student(tmp_path / "students" / "width=0.5" / "student.pth")
    assert isinstance(student, Lifted) and student.student_record.feature == "teacher"
    assert rows["width=0.5"].map_after == Trainer(config).evaluate(student)["mAP"]
    assert rows["width=0.5"].params < rows["width=1.0"].params, "a gather has no parameters"
    (tuned,) = (fleet for fleet in measure_fleet(tmp_path) if fleet.state == FINETUNED)
    assert np.diag(tuned.mean_ap).tolist() == tuned.own.tolist(), "they are lifted already"
    with pytest.raises(ConfigError, match="oskt.feature is 'teacher' and oskt.distance 'chain'"):
        run(tiny(data_root, tmp_path, "oskt.feature=teacher", "oskt.distance=chain"))
