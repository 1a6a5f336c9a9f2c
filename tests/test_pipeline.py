"""The main job on a tiny set: every stage once, files whole, errors before anything is trained."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from oskt_torchreid.config import load_config
from oskt_torchreid.errors import CheckpointError, ConfigError, DataError, OsktError, TrainingError, WidthError
from oskt_torchreid.host import models
from oskt_torchreid.oskt.chain import WeightChain
from oskt_torchreid.oskt.students import load_student
from oskt_torchreid.pipeline import run
from oskt_torchreid.pipeline.stages import Stage
from oskt_torchreid.report import read_results

ROOT = Path(__file__).resolve().parents[1]
SMALL = [
    "engine=oskt",
    "model.name=osnet_x0_25",
    "model.pretrained=False",
    "data.sources=['synthped']",
    "data.targets=['synthped']",
    "data.height=32",
    "data.width=16",
    "data.workers=0",
    "synthped.num_train=6",
    "synthped.num_test=14",
    "synthped.cameras=4",
    "train.max_epoch=1",
    "train.batch_size=16",
    "oskt.width=0.5",
    "oskt.refine.max_epoch=1",
    "oskt.refine.batch_size=16",
    "oskt.finetune.max_epoch=1",
    "oskt.finetune.batch_size=16",
    "oskt.students=['width=0.5']",
    "use_gpu=False",
]


def configured(root: Path, folder: Path, *options: str):
    return load_config(options=[*SMALL, f"data.root={root}", f"data.save_dir={folder}", *options])


@pytest.fixture(scope="module")
def data_root(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def finished(data_root, tmp_path_factory):
    """A whole run with two students and both controls."""
    folder = tmp_path_factory.mktemp("run")
    options = ("oskt.students=['width=0.5', 'width=0.75']", "oskt.controls=['scratch', 'slice']")
    config = configured(data_root, folder, *options)
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
    assert chain.spec.name == "osnet_x0_25"
    with torch.no_grad():
        assert student(torch.randn(2, 3, 32, 16)).shape == (2, student.feature_dim)


def test_the_second_time_nothing_is_trained(finished, monkeypatch):
    folder, config, results = finished
    stamps = {path: path.stat().st_mtime_ns for path in folder.rglob("*.pth")}
    monkeypatch.setattr("oskt_torchreid.pipeline.training.Trainer.train", _forbidden)
    assert run(config).rows == results.rows
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*.pth")} == stamps


def test_only_what_changed_is_made_again(finished, data_root):
    folder, _, results = finished
    stamps = {name: (folder / name / "stage.json").stat().st_mtime_ns for name in ("teacher", "refine")}
    options = ("oskt.students=['width=0.5']", "oskt.finetune.lr=0.002")
    changed = run(configured(data_root, folder, *options))
    assert {name: (folder / name / "stage.json").stat().st_mtime_ns for name in stamps} == stamps
    assert changed.rows[1].map_before == results.rows[1].map_before
    assert changed.rows[1].map_after != results.rows[1].map_after


def test_a_given_teacher_is_not_trained(finished, data_root, tmp_path):
    folder, _, results = finished
    options = (f"oskt.teacher={folder / 'teacher' / 'teacher.pth'}", "oskt.finetune.max_epoch=0")
    given = run(configured(data_root, tmp_path, *options))
    assert given.rows[0].epochs == 0
    assert given.rows[0].map_after == results.rows[0].map_after
    assert given.rows[1].map_after == given.rows[1].map_before


def test_engine_softmax_trains_one_network(data_root, tmp_path):
    results = run(configured(data_root, tmp_path, "engine=softmax"))
    assert [row.kind for row in results.rows] == ["teacher"]
    network = models.build("osnet_x0_25", 6)
    classifier = sum(parameter.numel() for parameter in network.classifier.parameters())
    assert results.rows[0].params == sum(parameter.numel() for parameter in network.parameters()) - classifier
    assert (tmp_path / "results.json").is_file()


# Everything below fails before anything is trained.


@pytest.fixture
def untrained(monkeypatch):
    monkeypatch.setattr("oskt_torchreid.pipeline.training.Trainer.train", _forbidden)


def _forbidden(*_, **__):
    raise AssertionError("something was trained")


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        (["model.name=osnet_x0_26"], ConfigError, r"unknown model 'osnet_x0_26'; did you mean 'osnet_x0_25'"),
        (["oskt.students=['width=0.3']"], WidthError, r"is outside of \[.*ask for a ratio of at least 0.5"),
        (["oskt.students=['width=1.5']"], WidthError, r"width ratio 1.5 is outside of \(0, 1\]"),
        (["oskt.students=['like=resnet18']"], WidthError, r"'resnet18' is of another depth or family"),
        (["oskt.students=['like=osnet_x1_0']"], WidthError, r"width 64 of group .* is outside of"),
        (["oskt.students=['wdith=0.5']"], ConfigError, r"'wdith=0.5'; did you mean 'width'"),
        (["oskt.students=['width=half']"], ConfigError, r"the width is a ratio"),
        (["oskt.controls=['slize']"], ConfigError, r"did you mean 'slice'"),
        (["engine=triplet"], ConfigError, r"engine is 'triplet', but loss.name is 'softmax'"),
        (["engine=okst"], ConfigError, r"unknown engine 'okst'; did you mean 'oskt'"),
        (["data.sources=['market1501']"], DataError, r"data set 'market1501' is not at"),
        (["oskt.teacher=/nowhere/teacher.pth"], CheckpointError, r"no file at '/nowhere/teacher.pth'"),
    ],
)
def test_mistakes_are_found_before_training(data_root, tmp_path, untrained, options, error, match):
    with pytest.raises(error, match=match):
        run(configured(data_root, tmp_path, *options))


def test_checkpoint_of_another_backbone(data_root, tmp_path, untrained):
    path = tmp_path / "resnet18.pth"
    torch.save(models.build("resnet18", 6).state_dict(), path)
    with pytest.raises(CheckpointError, match=r"does not fit OSNet \(\d+ tensors\): \d+ missing: conv1.conv.weight"):
        run(configured(data_root, tmp_path / "run", f"oskt.teacher={path}"))


def test_missing_root_of_a_real_data_set(tmp_path, untrained):
    options = ("data.sources=['market1501']", "data.targets=['market1501']")
    with pytest.raises(DataError, match="no data root at"):
        run(configured(tmp_path / "nowhere", tmp_path / "run", *options))


def test_exploding_training_stops_and_says_where(data_root, tmp_path):
    with pytest.raises(TrainingError, match=r"loss is (nan|inf) at epoch \d+ of 9, iteration"):
        run(configured(data_root, tmp_path, "train.lr=1e30", "train.max_epoch=9"))
    assert not (tmp_path / "teacher" / "stage.json").exists()


def test_stage_is_made_again_when_its_file_is_gone(tmp_path):
    made = []

    def work(continued: bool) -> dict:
        made.append(continued)
        (tmp_path / "out.txt").write_text("x")
        return {"value": len(made)}

    stage = Stage(tmp_path, "digest", ("out.txt",))
    assert stage.complete(work)["value"] == 1
    assert stage.complete(work)["value"] == 1
    (tmp_path / "out.txt").unlink()
    assert stage.complete(work)["value"] == 2
    assert Stage(tmp_path, "other", ("out.txt",)).complete(work)["value"] == 3
    assert made == [False, False, False]


def test_interrupted_stage_is_told_to_go_on(tmp_path):
    seen = []

    def fail(continued: bool) -> dict:
        seen.append(continued)
        raise KeyboardInterrupt

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            Stage(tmp_path, "digest").complete(fail)
    with pytest.raises(KeyboardInterrupt):
        Stage(tmp_path, "another digest").complete(fail)
    assert seen == [False, True, False]


def main(*words: str) -> list[str]:
    return [sys.executable, str(ROOT / "tools" / "main.py"), *words]


def test_command_line_shows_typed_errors_in_one_line(tmp_path):
    result = subprocess.run(main("oskt.widht=0.5"), capture_output=True, text=True, cwd=tmp_path, check=False)
    assert result.returncode == 2
    assert result.stderr.splitlines()[-1].startswith("ConfigError: unknown key 'oskt.widht'")
    assert "did you mean 'oskt.width'" in result.stderr
    assert "Traceback" not in result.stderr


def test_flags_may_follow_the_options(tmp_path):
    words = main("data.sources=['nowhere']", "--root", str(tmp_path / "absent"))
    result = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert result.returncode == 2
    assert result.stderr.splitlines()[-1].startswith("ConfigError: unknown data set 'nowhere'")


@pytest.mark.slow
def test_ctrl_c_leaves_whole_files_and_the_next_run_goes_on(data_root, tmp_path):
    folder = tmp_path / "run"
    words = [*SMALL, f"data.root={data_root}", f"data.save_dir={folder}", "train.max_epoch=3"]
    process = subprocess.Popen(main(*words), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    kept = folder / "teacher" / "model" / "model.pth.tar-last"
    deadline = time.monotonic() + 120
    while not kept.is_file() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "run the same command again" in errors
    for path in folder.rglob("*"):
        assert not path.name.startswith("."), f"temporary file {path} is left"
        if path.suffix == ".json":
            json.loads(path.read_text())
    again = subprocess.run(main(*words), capture_output=True, text=True, timeout=300, check=False)
    assert again.returncode == 0, again.stderr
    assert "going on after epoch" in again.stderr
    assert len(read_results(folder / "results.json").rows) == 2


def test_every_error_of_the_package_is_one_family():
    assert all(issubclass(kind, OsktError) for kind in (ConfigError, DataError, WidthError, TrainingError))
