"""Files of networks that were trained on other identities than the data have: as teachers, and to start from."""

from __future__ import annotations

import logging

import pytest
import torch
from runs import TINY, tiny, without_method

from oskt_torchreid.config import load_config
from oskt_torchreid.errors import CheckpointError, ConfigError
from oskt_torchreid.files import load_checkpoint
from oskt_torchreid.host import models
from oskt_torchreid.runs import run
from oskt_torchreid.runs.oskt.plan import make_plan
from oskt_torchreid.runs.vkd.plan import plan_sets, start_student

KNOWN, HERE = 9, 6


@pytest.fixture(scope="module")
def foreign(tiny_net, tmp_path_factory):
    """A checkpoint of nine identities."""
    path = tmp_path_factory.mktemp("foreign") / "teacher.pth"
    torch.manual_seed(3)
    torch.save({"state_dict": models.build(tiny_net, KNOWN).state_dict()}, path)
    return path


def planned(foreign, tmp_path, *options):
    return make_plan(tiny(tmp_path, tmp_path, f"oskt.teacher={foreign}", *options), HERE)


def test_a_teacher_of_other_identities_gives_its_body(foreign, tmp_path, caplog):
    with caplog.at_level(logging.INFO, "oskt_torchreid"):
        teacher = planned(foreign, tmp_path).teacher
    state = load_checkpoint(foreign)["state_dict"]
    assert teacher.classifier.out_features == HERE
    body = {name: tensor for name, tensor in teacher.state_dict().items() if not name.startswith("classifier.")}
    assert all(torch.equal(tensor, state[name]) for name, tensor in body.items())
    said = "teacher.pth' has 9 identities, the data have 6; everything is taken except the classifier (classifier"
    assert said in caplog.text


def test_the_fresh_classifier_is_that_of_the_seed(foreign, tmp_path):
    weights = [planned(foreign, tmp_path, f"train.seed={seed}").teacher.classifier.weight for seed in (1, 1, 2)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


def test_a_run_with_such_a_teacher(foreign, data_root, tmp_path):
    """Its feature is evaluated; chain and students are trained on the identities that are here."""
    results = run(tiny(data_root, tmp_path, f"oskt.teacher={foreign}"))
    assert [row.name for row in results.rows] == ["teacher", "width=0.5"] and results.rows[0].map_after > 0
    student = load_checkpoint(tmp_path / "students" / "width=0.5" / "student.pth")["state_dict"]
    assert len(student["classifier.weight"]) == HERE


@pytest.mark.parametrize(
    "choice",
    ["oskt.students=['kd++:width=0.5']", "oskt.controls=['kd++']", "oskt.distillation.of_chain=True"]
    + ["oskt.refine.distil_weight=0.25"],
)
def test_class_scores_of_other_identities_are_not_distilled(foreign, tmp_path, choice):
    message = "is trained by class scores of its teacher, which has 9 identities, but the data have 6; drop it"
    with pytest.raises(ConfigError, match=message):
        planned(foreign, tmp_path, choice)


def altered(tmp_path, foreign, **changes):
    state = {**load_checkpoint(foreign)["state_dict"], **changes}
    path = tmp_path / "altered.pth"
    torch.save({"state_dict": {name: tensor for name, tensor in state.items() if tensor is not None}}, path)
    return path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stem.weight": torch.zeros(8, 3, 1, 1)}, r"misshaped: stem.weight \(8, 3, 1, 1\) instead of"),
        ({"stem.weight": None}, "1 missing: stem.weight"),
        ({"classifier.weight": torch.zeros(KNOWN, 12)}, r"misshaped: classifier.weight \(9, 12\)"),
        ({"further": torch.zeros(2)}, "1 unexpected: further"),
    ],
)
def test_what_differs_in_more_is_refused(foreign, tmp_path, changes, message):
    with pytest.raises(CheckpointError, match=f"oskt.teacher cannot be the teacher 'tiny_net': .*{message}"):
        planned(altered(tmp_path, foreign, **changes), tmp_path)


def test_weights_to_start_from(foreign, data_root, tmp_path, caplog):
    """model.load_weights takes all but the classifier, too."""
    words = [*without_method(TINY), "engine=softmax", f"model.load_weights={foreign}"]
    with caplog.at_level(logging.INFO, "oskt_torchreid"):
        run(load_config(options=[*words, f"data.root={data_root}", f"data.save_dir={tmp_path}"]))
    state = load_checkpoint(tmp_path / "model" / "model.pth.tar-1")["state_dict"]
    assert len(state["classifier.weight"]) == HERE
    assert "classifier.weight" in caplog.text


def test_a_teacher_of_sets_keeps_its_classes(tiny_net, tmp_path):
    """A student of views learns from its distances; its own classifier is for the identities that are here."""
    path = tmp_path / "teacher.pth"
    torch.save(models.build("vkd_tiny_net", KNOWN, "triplet").state_dict(), path)
    words = [*without_method(TINY), "engine=vkd", "loss.name=triplet", f"vkd.teacher={path}"]
    config = load_config(options=words)
    plan = plan_sets(config, HERE)
    assert plan.teacher.classifier.out_features == KNOWN
    student = start_student(config, plan, plan.teacher, HERE)
    assert student.classifier.out_features == HERE
    assert torch.equal(student.backbone.stem.weight, plan.teacher.backbone.stem.weight)
