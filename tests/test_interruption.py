"""Ctrl-C and SIGTERM in the middle of every stage: complete files are left, at once, and the same command resumes."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from runs import SMALL, TINY, without_method
from test_tools import tool

from oskt_torchreid.chain.chain import WeightChain
from oskt_torchreid.config import load_config
from oskt_torchreid.datasets import drawn_folder
from oskt_torchreid.errors import Terminated
from oskt_torchreid.files import load_checkpoint
from oskt_torchreid.host import termination
from oskt_torchreid.host.engine import TransferEngine
from oskt_torchreid.report import read_results
from oskt_torchreid.runs import run

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def interruptible():
    """SIGINT does what it does in a terminal; in the background it is ignored, by what is started there too."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def command():
    """`oskt run` as a function of its words."""
    return tool("main").main


def check_whole(folder: Path) -> None:
    """No temporary files, and everything that is there can be read."""
    for path in folder.rglob("*"):
        assert not path.name.startswith("."), f"temporary file {path} is left"
        if path.suffix == ".json":
            json.loads(path.read_text())
        elif path.suffix == ".pth" or path.name.startswith("model.pth.tar"):
            load_checkpoint(path)
        elif path.suffix == ".safetensors":
            WeightChain.load(path)


@pytest.fixture(scope="module")
def uninterrupted(tiny_net, data_root, tmp_path_factory):
    """Words of a run of two epochs in every stage, and its rows where nothing stops it."""
    epochs = [f"{stage}.max_epoch=2" for stage in ("train", "oskt.refine", "oskt.finetune")]
    words = [*TINY, f"data.root={data_root}", *epochs, "oskt.controls=['slice']"]
    folder = tmp_path_factory.mktemp("whole")
    return words, run(load_config(options=[*words, f"data.save_dir={folder}"])).rows


@pytest.mark.parametrize(
    ("stage", "moment", "after"),
    [
        ("teacher", "second epoch", 1),
        ("teacher", "last test", 2),
        ("refine", "second epoch", 1),
        ("refine", "writing", 1),
        ("students/width=0.5", "last test", 2),
        ("students/width=0.5", "writing", 1),
        ("controls/slice", "second epoch", 1),
        ("controls/slice-equal-passes", "last test", 4),
    ],
)
def test_ctrl_c_in_any_stage(uninterrupted, tmp_path, command, capsys, monkeypatch, stage, moment, after):
    """Complete files are left, and the same command resumes; the result is that of an uninterrupted run."""
    words, expected = uninterrupted
    words = [*words, f"data.save_dir={tmp_path}"]
    if not stage.startswith("controls"):
        words, expected = [*words, "oskt.controls=[]"], expected[:2]
    stops = []

    def interrupting(method, at):
        def wrapped(engine, *args, **kwargs):
            if engine._run_folder == tmp_path / stage and at(engine) and not stops:
                stops.append(stage)
                signal.raise_signal(signal.SIGINT)
            return method(engine, *args, **kwargs)

        return wrapped

    method, at = {
        "second epoch": ("prepare", lambda engine: engine.epoch == 1 and engine.batch_idx == 1),
        "last test": ("extract_features", lambda engine: True),
        "writing": ("_state", lambda engine: engine.epoch == 1),
    }[moment]
    with monkeypatch.context() as patch:
        patch.setattr(TransferEngine, method, interrupting(getattr(TransferEngine, method), at))
        assert command(words) == 130
    assert stops == [stage]
    assert capsys.readouterr().err.splitlines()[-1] == "interrupted; run the same command again to resume"
    check_whole(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("stage.json")}
    assert command(words) == 0
    assert f"{Path(stage).name}: resuming after epoch {after}" in capsys.readouterr().err
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in before.items()), "what was done is not done again"
    rows = read_results(tmp_path / "results.json").rows
    assert [(row.name, row.params, row.epochs) for row in rows] == [(r.name, r.params, r.epochs) for r in expected]
    if moment == "last test":  # no epoch is repeated with other random numbers
        assert [row.map_after for row in rows] == [row.map_after for row in expected]


def test_ctrl_c_while_pictures_are_drawn(tiny_net, tmp_path, command, monkeypatch):
    drawn = []

    class Interrupted(drawn_folder.Renderer):
        def encoded(self, *key):
            drawn.append(key)
            if len(drawn) == 9:
                signal.raise_signal(signal.SIGINT)
            return super().encoded(*key)

    monkeypatch.setattr(drawn_folder, "Renderer", Interrupted)
    assert command([*TINY, f"data.root={tmp_path / 'data'}", f"data.save_dir={tmp_path / 'run'}"]) == 130
    assert list((tmp_path / "data").iterdir()) == []
    assert not (tmp_path / "run").exists(), "nothing of the run was made yet"


@pytest.mark.slow
def test_ctrl_c_stops_the_command(data_root, tmp_path, command, capsys):
    """The real command in a separate process."""
    folder = tmp_path / "run"
    words = [*SMALL, f"data.root={data_root}", f"data.save_dir={folder}", "train.max_epoch=3"]
    words += ["oskt.refine.max_epoch=0", "oskt.finetune.max_epoch=0"]
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "tools" / "main.py"), *words],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    kept = folder / "teacher" / "model" / "model.pth.tar-last"
    deadline = time.monotonic() + 300
    while not kept.is_file() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    assert output == "" and errors.splitlines()[-1] == "interrupted; run the same command again to resume"
    assert "\r" not in errors, "no bars without a terminal"
    check_whole(folder)
    assert command(words) == 0
    assert "teacher: resuming after epoch" in capsys.readouterr().err
    assert [row.name for row in read_results(folder / "results.json").rows] == ["teacher", "width=0.5"]


# ---- stops within seconds --------------------------------------------------------------------------------------------


def wait_until(reached, seconds=30.0):
    deadline = time.monotonic() + seconds
    while not reached() and time.monotonic() < deadline:
        time.sleep(0.01)
    return reached()


def test_the_first_sigterm_is_noted_and_a_further_one_stops_at_once():
    noted = []
    with pytest.raises(Terminated), termination.on_termination(lambda: noted.append("first")):
        signal.raise_signal(signal.SIGTERM)
        assert noted == ["first"]
        signal.raise_signal(signal.SIGTERM)
    assert noted == ["first"] and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_what_does_not_heed_sigterm_is_stopped(monkeypatch):
    """A batch that takes long, or data that do not come."""
    monkeypatch.setattr(termination, "GRACE", 0.1)
    start = time.monotonic()
    with pytest.raises(Terminated), termination.on_termination(lambda: None):
        signal.raise_signal(signal.SIGTERM)
        time.sleep(20)
    assert 0.1 <= time.monotonic() - start < 10


def test_what_heeds_sigterm_is_left_in_peace(monkeypatch):
    monkeypatch.setattr(termination, "GRACE", 0.05)
    told = []
    with termination.on_termination(lambda: told.append("outer")):
        with termination.on_termination(lambda: told.append("inner")):
            signal.raise_signal(signal.SIGTERM)
        time.sleep(0.2)
    assert told == ["inner"]


EPOCHS = "max_epoch=1000"
STAGES = {
    "drawing": ["synthped.num_train=4000"],
    "evaluation": ["test.evaluate=True", "test.batch_size=1", "synthped.num_test=100"],
    "students": [f"oskt.finetune.{EPOCHS}", "oskt.students=['width=0.5', 'width=0.75']", "oskt.processes=2"],
    "vkd": [
        *["engine=vkd", "loss.name=triplet", f"vkd.teacher_stage.{EPOCHS}", "vkd.teacher_stage.batch_size=8"],
        *["vkd.student_stage.batch_size=8", "vkd.num_views=2"],
    ],
}
"""Words of runs that stay in a stage for minutes; a teacher is trained as students are, a chain as sets are."""


def words_of(stage, root, folder):
    words = SMALL if stage not in ("evaluation", "vkd") else without_method(SMALL)
    if stage == "vkd":
        words = [word for word in words if not word.startswith("train.")]
    data = folder if stage in ("drawing", "evaluation") else root
    return [*words, *STAGES[stage], f"data.root={data / 'data'}", f"data.save_dir={folder / 'run'}"]


def is_there(stage, folder, start):
    """Whether a command is in the stage; at its second start, whether it resumes it."""
    run_folder, log = folder / "run", folder / "run" / "log.txt"
    if stage == "drawing":
        return any((folder / "data").glob("*/**/*.jpg")) or any((folder / "data").glob(".*/**/*.*"))
    said = log.read_text() if log.is_file() else ""
    if stage == "evaluation":
        return said.count("is evaluated with its initial weights") == start
    parts = ["students/width=0.5", "students/width=0.75"] if stage == "students" else [stage.replace("vkd", "teacher")]
    if start == 2:
        return said.count("resuming after epoch") == len(parts)
    return all((run_folder / part / "model" / "model.pth.tar-last").is_file() for part in parts)


def comes_to(stage, folder, start, process):
    """Waits for a command to be in the stage; whether it has come there and has not ended."""
    wait_until(lambda: is_there(stage, folder, start) or process.poll() is not None, 120)
    return process.poll() is None and is_there(stage, folder, start)


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_ends_within_seconds(data_root, tmp_path, stage):
    """By SIGTERM to the command, and by two Ctrl-Cs to it and its processes, as a terminal sends them."""
    command = [sys.executable, str(ROOT / "tools" / "main.py"), *words_of(stage, data_root, tmp_path)]
    for start, (status, send) in enumerate([(143, terminated), (130, interrupted_twice)], 1):
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
        try:
            assert comes_to(stage, tmp_path, start, process), process.stderr.read()
            begun = time.monotonic()
            send(process)
            errors = process.communicate(timeout=60)[1]
            seconds = time.monotonic() - begun
        finally:
            process.kill()
        print(f"{stage}: {status} after {seconds:.1f} s")
        assert (process.returncode, "Traceback" in errors) == (status, False), errors
        assert seconds < 10
        assert any(line.endswith("run the same command again to resume") for line in errors.splitlines())
        assert not group_lives(process.pid), "processes are left"


def terminated(process):
    process.terminate()


def interrupted_twice(process):
    os.killpg(process.pid, signal.SIGINT)
    time.sleep(0.3)
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGINT)


def group_lives(leader):
    """Whether any process of the group is there a moment later."""

    def is_gone():
        try:
            os.killpg(leader, 0)
        except ProcessLookupError:
            return True
        return False

    return not wait_until(is_gone, 5)
