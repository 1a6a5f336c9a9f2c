"""Controls of VKD: a teacher that is trained on, and a student that learns from labels alone."""

import json
import math
import shutil

import pytest
import torch
from sets import SetManager, tiny
from test_sets_run import configured
from test_tools import tool

from oskt_torchreid.files import load_checkpoint, sha256
from oskt_torchreid.host.engine import TransferEngine
from oskt_torchreid.host.vkd_engine import VKDEngine
from oskt_torchreid.report.protocols import SetRow, gain_table, gains, read_set_rows, run_bars
from oskt_torchreid.runs import run
from oskt_torchreid.runs.vkd.analysis import open_run

CONTROLS = "vkd.controls=True"


@pytest.fixture(scope="module")
def finished(data_root, tiny_net, tmp_path_factory):
    """A run with controls, as its folder."""
    folder = tmp_path_factory.mktemp("controls")
    run(configured(data_root, folder, CONTROLS, "vkd.teacher_stage.num_views=1", "vkd.protocols=['V2V', 'I2V']"))
    return folder


def test_rows_and_files(finished):
    rows = read_set_rows(finished / "results.json")
    assert [(row.name, row.kind, row.views, row.beside) for row in rows] == [
        ("teacher", "teacher", 1, ""),
        ("student", "student", 2, ""),
        ("student without distillation", "control", 2, "student"),
        ("teacher trained on", "control", 1, "student"),
    ]
    assert all((finished / folder / "network.pth").is_file() for folder in ("undistilled", "trained-on"))
    report = (finished / "results.md").read_text(encoding="utf-8")
    gained = 100 * (rows[1].protocols["I2V"]["mAP_interpolated"] - rows[2].protocols["I2V"]["mAP_interpolated"])
    line = next(line for line in report.splitlines() if "student - student without distillation" in line)
    assert line.split("|")[3].strip() == f"{gained:+.1f}"
    assert (finished / "protocols.png").read_bytes().startswith(b"\x89PNG")


def test_the_undistilled_student_is_that_of_no_weights(finished, data_root, tiny_net, tmp_path):
    """To the bit: the same start, sets and views as a run without both terms, from the same teacher."""
    weights = ["vkd.alpha=0.0", "vkd.beta=0.0", f"vkd.teacher={finished / 'teacher' / 'network.pth'}"]
    run(configured(data_root, tmp_path, *weights, "vkd.protocols=['V2V', 'I2V']"))
    assert sha256(tmp_path / "student" / "network.pth") == sha256(finished / "undistilled" / "network.pth")
    assert sha256(finished / "student" / "network.pth") != sha256(finished / "undistilled" / "network.pth")


def test_the_teacher_is_trained_on_from_where_it_ended(finished, data_root, tiny_net, tmp_path):
    """With a rate of next to nothing it keeps every weight, its classifier's as well; the student has its own rate."""
    given = f"vkd.teacher={finished / 'teacher' / 'network.pth'}"
    run(configured(data_root, tmp_path, CONTROLS, given, "vkd.trained_on_lr=1e-30", "vkd.protocols=['V2V']"))
    kept = load_checkpoint(tmp_path / "undistilled" / "network.pth")["state_dict"]
    whole = load_checkpoint(finished / "undistilled" / "network.pth")["state_dict"]
    assert all(torch.equal(tensor, whole[name]) for name, tensor in kept.items())
    before, after, student = (
        load_checkpoint(path / "network.pth")["state_dict"]
        for path in (finished / "teacher", tmp_path / "trained-on", tmp_path / "student")
    )
    learnt = [name for name in before if "running" not in name and "num_batches" not in name]
    assert all(torch.equal(before[name], after[name]) for name in learnt)
    assert not torch.equal(before["classifier.weight"], student["classifier.weight"])


@pytest.mark.parametrize("given", [False, True], ids=["trained here", "given"])
def test_each_sees_its_own_views(finished, data_root, tiny_net, tmp_path, monkeypatch, given):
    """A teacher of single frames goes on with single frames, whether this run has trained it or not."""
    shapes = []
    prepare = TransferEngine.prepare

    def recording(engine, data):
        shapes.append(data["img"].shape[0])
        return prepare(engine, data)

    options = [f"vkd.teacher={finished / 'teacher' / 'network.pth'}"] * given
    monkeypatch.setattr(TransferEngine, "prepare", recording)
    run(configured(data_root, tmp_path, CONTROLS, *options, "vkd.teacher_stage.num_views=1", "vkd.protocols=['V2V']"))
    batches = [4] * 3 * (not given) + [12] * 3 + [12] * 3 + [4] * 3
    assert shapes == batches, "teacher; student and control on sets of three; the teacher again"


def test_analyses_show_the_student_beside_the_undistilled_one(finished, tiny_net, tmp_path, capsys):
    opened = open_run(finished)
    names = ["teacher", "student", "student without distillation"]
    rows = {row.name: row for row in read_set_rows(finished / "results.json")}
    assert list(opened.networks) == names
    for name in names:
        assert opened.trainer.protocols(opened.networks[name])["synthped_video"] == rows[name].protocols
    assert tool("visualize").main(["camera", str(finished), "--folds", "3"]) == 0
    assert [line.split("|")[1].strip() for line in capsys.readouterr().out.splitlines()[2:5]] == names


def test_other_weights_of_distillation_leave_controls_as_they_are(finished, data_root, tiny_net, tmp_path, monkeypatch):
    given = f"vkd.teacher={finished / 'teacher' / 'network.pth'}"
    run(configured(data_root, tmp_path, CONTROLS, given, "vkd.protocols=['V2V']"))
    trained, train = [], run.__globals__["Trainer"].train

    def recording(trainer, model, stage, folder, *arguments, **options):
        trained.append(folder.name)
        return train(trainer, model, stage, folder, *arguments, **options)

    monkeypatch.setattr("oskt_torchreid.runs.trainer.Trainer.train", recording)
    run(configured(data_root, tmp_path, CONTROLS, given, "vkd.protocols=['V2V']", "vkd.alpha=3.0"))
    assert trained == ["student"]


def test_every_generation_has_its_own(data_root, tiny_net, tmp_path):
    results = run(configured(data_root, tmp_path, CONTROLS, "vkd.generations=2", "vkd.protocols=['V2V']"))
    assert [row.name for row in results.rows] == [
        "teacher",
        "student",
        "student without distillation",
        "teacher trained on",
        "student-2",
        "student-2 without distillation",
        "student trained on",
    ]
    rows = read_set_rows(tmp_path / "results.json")
    assert [control.beside for control in rows if control.kind == "control"] == ["student"] * 2 + ["student-2"] * 2
    assert [row.views for row in rows] == [3, 2, 2, 3, 2, 2, 2]


@pytest.mark.slow
def test_student_and_controls_in_processes_of_their_own_are_the_same(data_root, tmp_path):
    options = [CONTROLS, "vkd.protocols=['V2V', 'I2V']"]
    here = run(configured(data_root, tmp_path / "here", *options, net="osnet_x0_25"))
    apart = run(configured(data_root, tmp_path / "apart", *options, "vkd.processes=2", net="osnet_x0_25"))
    for folder in ("teacher", "student", "undistilled", "trained-on"):
        digests = {sha256(tmp_path / place / folder / "network.pth") for place in ("here", "apart")}
        assert len(digests) == 1, folder
    assert [row.targets for row in apart.rows] == [row.targets for row in here.rows]
    assert "undistilled: begins" in (tmp_path / "apart" / "log.txt").read_text(encoding="utf-8")


def test_a_student_of_a_chain_has_controls(data_root, tiny_net, tmp_path):
    results = run(configured(data_root, tmp_path, CONTROLS, "vkd.student=width=0.5", "vkd.protocols=['V2V']"))
    teacher, student, undistilled, trained_on = results.rows
    assert student.name == "student (width=0.5)" and undistilled.name == "student (width=0.5) without distillation"
    assert student.params == undistilled.params < teacher.params == trained_on.params
    again = run(configured(data_root, tmp_path, CONTROLS, "vkd.student=width=0.5", "vkd.protocols=['V2V']"))
    assert again.rows == results.rows


def test_without_a_term_the_teacher_does_not_look():
    torch.manual_seed(0)
    student, teacher = tiny(), tiny()
    calls = []
    engine = VKDEngine(SetManager(), student, teacher=teacher, alpha=0.0, beta=0.0, use_gpu=False)
    engine.teacher.register_forward_hook(lambda *_: calls.append(1))
    batch = next(iter(engine.train_loader))
    torch.manual_seed(1)
    loss, terms = engine.compute_losses(*engine.prepare(batch))
    assert not calls and not terms.keys() & {"loss_kd", "loss_dp"}
    engine.beta = 1e-30
    torch.manual_seed(1)
    with_teacher, _ = engine.compute_losses(*engine.prepare(batch))
    assert calls and math.isclose(loss.item(), with_teacher.item(), rel_tol=1e-6)


def test_seeds_have_their_own_teachers(finished, data_root, tiny_net, tmp_path, capsys, monkeypatch):
    """The run itself is one of the seeds; means, deviations and paired differences by hand."""
    shutil.copytree(finished, tmp_path / "seed-1")
    options = ["--seeds", "1", "2", "--options", "vkd.controls=False", f"data.save_dir={tmp_path}"]
    command = ["vkd-controls", "--config-file", str(finished / "config.yaml"), *options]
    assert tool("benchmark").main(command) == 0
    printed = capsys.readouterr().out
    seeds = [read_set_rows(tmp_path / f"seed-{seed}" / "results.json") for seed in (1, 2)]
    assert seeds[0] == read_set_rows(finished / "results.json")
    assert sha256(tmp_path / "seed-1" / "teacher" / "network.pth") != sha256(
        tmp_path / "seed-2" / "teacher" / "network.pth"
    )
    content = json.loads((tmp_path / "controls.json").read_text(encoding="utf-8"))
    gained = [rows[1].mean_precisions["I2V"] - rows[3].mean_precisions["I2V"] for rows in seeds]
    found = content["student above it by"]["teacher trained on"]["I2V"]
    assert found["mean"] == pytest.approx(sum(gained) / 2) and found["count"] == 2
    line = next(line for line in printed.splitlines() if line.startswith("| teacher trained on"))
    error = abs(gained[0] - gained[1]) / 2  # the deviation of two values over the root of 2
    assert line.split("|")[5].strip() == f"{100 * found['mean']:+.1f} ± {100 * error:.1f}"
    values = [rows[1].mean_precisions["V2V"] for rows in seeds]
    line = next(line for line in printed.splitlines() if line.startswith("| student   "))
    assert line.split("|")[2].strip().startswith(f"{50 * sum(values):.1f} ± ")
    assert (tmp_path / "controls.png").read_bytes().startswith(b"\x89PNG")
    monkeypatch.setattr("oskt_torchreid.runs.trainer.Trainer.train", None)
    assert tool("benchmark").main(command) == 0, "nothing is trained twice"


def test_seeds_that_cannot_be_run(finished, tiny_net, tmp_path, capsys):
    command = ["vkd-controls", "--config-file", str(finished / "config.yaml"), "--seeds", "-1"]
    assert tool("benchmark").main(command) == 2
    assert "error: seeds are [-1]; give numbers from 0 on" in capsys.readouterr().err
    assert tool("benchmark").main([*command[:3], "--options", "engine=triplet"]) == 2
    assert "engine is 'triplet'; these controls belong to runs of engine 'vkd'" in capsys.readouterr().err


def row(name: str, kind: str, v2v: float, i2v: float, beside: str = "") -> SetRow:
    protocols = {"V2V": {"mAP_interpolated": v2v}, "I2V": {"mAP_interpolated": i2v}}
    return SetRow(name, kind, 1, 1, 2, protocols, 1, 1.0, {"toy": protocols}, beside)


def test_gains_by_hand():
    rows = [
        row("teacher", "teacher", 0.4, 0.3),
        row("student", "student", 0.52, 0.45),
        row("student without distillation", "control", 0.5, 0.46, "student"),
    ]
    ((control, student, gained),) = gains(rows)
    assert (control.name, student.name) == ("student without distillation", "student")
    assert gained == pytest.approx({"V2V": 0.02, "I2V": -0.01})
    assert [cell.strip() for cell in gain_table(rows).splitlines()[2].strip("|").split("|")] == [
        "student - student without distillation",
        "+2.0",
        "-1.0",
    ]
    bars = run_bars(rows)
    assert bars["student"]["V2V"].mean == pytest.approx(52) and not bars["student"]["V2V"].note
    assert bars["student without distillation"]["I2V"].note == "student -1.0"
    assert gain_table(rows[:2]) == ""


def test_results_of_earlier_versions_are_read(finished, tmp_path):
    content = json.loads((finished / "results.json").read_text(encoding="utf-8"))
    for each in content["rows"]:
        del each["beside"]
    (tmp_path / "results.json").write_text(json.dumps(content), encoding="utf-8")
    assert [each.beside for each in read_set_rows(tmp_path / "results.json")] == [""] * 4
