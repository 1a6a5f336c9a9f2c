"""The main job on a tiny set: every stage once, its files, and what a second run does."""

import pytest
import torch
from runs import tiny
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from oskt_torchreid.chain.chain import WeightChain
from oskt_torchreid.chain.student_reading import load_student
from oskt_torchreid.files import load_checkpoint
from oskt_torchreid.host import models
from oskt_torchreid.report import read_results
from oskt_torchreid.runs import run
from oskt_torchreid.runs.recipes import Recipe
from oskt_torchreid.runs.stages import Stage

RECIPE, OTHER = Recipe({"seed": 1}, {}), Recipe({"seed": 2}, {})
STUDENTS_AND_CONTROLS = ("oskt.students=['width=0.5', 'width=0.75']", "oskt.controls=['scratch', 'slice']")


@pytest.fixture(scope="module")
def finished(tiny_net, data_root, tmp_path_factory):
    """A whole run with two students and both controls."""
    folder = tmp_path_factory.mktemp("run")
    config = tiny(data_root, folder, *STUDENTS_AND_CONTROLS)
    return folder, config, run(config)


def test_rows_and_files(finished):
    folder, _, results = finished
    assert [(row.name, row.kind, row.epochs) for row in results.rows] == [
        ("teacher", "teacher", 1),
        ("width=0.5", "student", 1),
        ("width=0.75", "student", 1),
        ("scratch", "control", 1),
        ("slice", "control", 1),
        ("scratch, 2 epochs", "control", 2),
        ("slice, 2 epochs", "control", 2),
    ]
    narrow, wide = results.rows[1:3]
    assert narrow.params < wide.params < results.rows[0].params
    assert narrow.flops < wide.flops < results.rows[0].flops
    assert narrow.params == results.rows[3].params == results.rows[4].params
    assert all(0 <= row.map_before <= 1 and 0 <= row.map_after <= 1 for row in results.rows[1:5])
    for name in ("config.yaml", "results.json", "results.md", "size_vs_map.png", "chain.safetensors"):
        assert (folder / name).stat().st_size > 0, name
    assert list((folder / "teacher").glob("events.out.tfevents*")), "TensorBoard"
    assert read_results(folder / "results.json").rows == results.rows
    assert "width=0.75" in (folder / "results.md").read_text()


def test_files_load_by_themselves(finished):
    folder, _, _ = finished
    chain = WeightChain.load(folder / "chain.safetensors")
    student = load_student(folder / "students" / "width=0.75" / "student.pth")
    assert chain.spec.name == "tiny_net"
    with torch.no_grad():
        assert student(torch.randn(2, 3, 32, 16)).shape == (2, student.feature_dim)


def test_the_second_time_nothing_is_trained(finished, monkeypatch):
    folder, config, results = finished
    stamps = {path: path.stat().st_mtime_ns for path in folder.rglob("*.pth")}
    monkeypatch.setattr("oskt_torchreid.runs.trainer.Trainer.train", _forbidden)
    assert run(config).rows == results.rows
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*.pth")} == stamps


def test_only_what_changed_is_made_again(finished, data_root):
    folder, _, results = finished
    stamps = {name: (folder / name / "stage.json").stat().st_mtime_ns for name in ("teacher", "refine")}
    options = ("oskt.students=['width=0.5']", "oskt.finetune.lr=0.002")
    changed = run(tiny(data_root, folder, *options))
    assert {name: (folder / name / "stage.json").stat().st_mtime_ns for name in stamps} == stamps
    assert changed.rows[1].map_before == results.rows[1].map_before
    assert changed.rows[1].map_after != results.rows[1].map_after


def test_seconds_of_interrupted_attempts_count(tmp_path, monkeypatch):
    clock = iter([0.0, 7.0, 100.0, 102.0])
    monkeypatch.setattr("oskt_torchreid.runs.stages.time.perf_counter", lambda: next(clock))

    def fail(continued: bool) -> dict:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Stage(tmp_path, RECIPE).complete(fail)
    assert Stage(tmp_path, RECIPE).complete(lambda continued: {})["seconds"] == 7 + 2


def test_a_given_teacher_is_not_trained(finished, data_root, tmp_path):
    folder, _, results = finished
    options = (f"oskt.teacher={folder / 'teacher' / 'teacher.pth'}", "oskt.finetune.max_epoch=0")
    given = run(tiny(data_root, tmp_path, *options))
    assert given.rows[0].epochs == 0
    assert given.rows[0].map_after == results.rows[0].map_after
    assert given.rows[1].map_after == given.rows[1].map_before


def test_engine_softmax_trains_one_network(tiny_net, data_root, tmp_path):
    results = run(tiny(data_root, tmp_path, "engine=softmax"))
    assert [row.kind for row in results.rows] == ["teacher"]
    network = models.build(tiny_net, 6)
    classifier = sum(parameter.numel() for parameter in network.classifier.parameters())
    assert results.rows[0].params == sum(parameter.numel() for parameter in network.parameters()) - classifier
    assert (tmp_path / "results.json").is_file()


def _forbidden(*_, **__):
    raise AssertionError("something was trained")


def test_the_same_seed_gives_the_same_networks(tiny_net, data_root, tmp_path):
    """Of a teacher, a refined chain and a student, bit for bit; another seed gives others."""
    states = []
    for name, seed in (("first", 1), ("second", 1), ("other", 2)):
        run(tiny(data_root, tmp_path / name, f"train.seed={seed}"))
        files = ("teacher/teacher.pth", "students/width=0.5/student.pth")
        state = {file: load_checkpoint(tmp_path / name / file)["state_dict"] for file in files}
        state["chain"] = WeightChain.load(tmp_path / name / "chain.safetensors").rows
        states.append(state)
    for file, tensors in states[0].items():
        assert all(torch.equal(tensor, states[1][file][key]) for key, tensor in tensors.items()), file
        assert not all(torch.equal(tensor, states[2][file][key]) for key, tensor in tensors.items()), file


def test_tensorboard_shows_losses_and_row_dispersion(finished):
    folder, _, results = finished
    refined = EventAccumulator(str(folder / "refine")).Reload()
    tags = set(refined.Tags()["scalars"])
    assert {"Train/loss_x", "Train/s_loss_x", "Train/refine", "Train/lambda", "Train/lr", "Test/synthped/mAP"} <= tags
    (dispersion,) = refined.Scalars("Train/row_dispersion")
    assert dispersion.value == pytest.approx(results.facts["refine"]["row_dispersion"])
    trained = EventAccumulator(str(folder / "teacher")).Reload()
    assert [event.step for event in trained.Scalars("Train/loss_x")] == [0, 1, 2]


def test_stage_is_made_again_when_its_file_is_gone(tmp_path):
    made = []

    def work(continued: bool) -> dict:
        made.append(continued)
        (tmp_path / "out.txt").write_text("x")
        return {"value": len(made)}

    stage = Stage(tmp_path, RECIPE, ("out.txt",))
    assert stage.complete(work)["value"] == 1
    assert stage.complete(work)["value"] == 1
    (tmp_path / "out.txt").unlink()
    assert stage.complete(work)["value"] == 2
    assert Stage(tmp_path, OTHER, ("out.txt",)).complete(work)["value"] == 3
    assert made == [False, False, False]


def test_interrupted_stage_is_told_to_go_on(tmp_path):
    seen = []

    def fail(continued: bool) -> dict:
        seen.append(continued)
        raise KeyboardInterrupt

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            Stage(tmp_path, RECIPE).complete(fail)
    with pytest.raises(KeyboardInterrupt):
        Stage(tmp_path, OTHER).complete(fail)
    assert seen == [False, True, False]
