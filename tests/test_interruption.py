"""SIGINT, as Ctrl-C sends it, in the middle of every stage: whole files are left, and the same command goes on."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from runs import SMALL, TINY
from test_tools import tool

from oskt_torchreid.config import load_config
from oskt_torchreid.data import drawn_folder
from oskt_torchreid.files import load_checkpoint
from oskt_torchreid.host.engine import TransferEngine
from oskt_torchreid.oskt.chain import WeightChain
from oskt_torchreid.pipeline import run
from oskt_torchreid.report import read_results

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def interruptible():
    """SIGINT does what it does in a terminal; in the background it is ignored, by what is started there too."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def command():
    """``tools/main.py`` as a function of its words."""
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
    """Whole files are left, and the same command goes on where it was; the end is that of an uninterrupted run."""
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
    assert capsys.readouterr().err.splitlines()[-1] == "interrupted; run the same command again to go on"
    check_whole(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("stage.json")}
    assert command(words) == 0
    assert f"{Path(stage).name}: going on after epoch {after}" in capsys.readouterr().err
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
    assert list((tmp_path / "data").iterdir()) == [] and [path.name for path in (tmp_path / "run").iterdir()] == [
        "log.txt"
    ]


@pytest.mark.slow
def test_ctrl_c_stops_the_command(data_root, tmp_path, command, capsys):
    """The real command in a process of its own."""
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
    assert output == "" and errors.splitlines()[-1] == "interrupted; run the same command again to go on"
    assert "\r" not in errors, "no bars without a terminal"
    check_whole(folder)
    assert command(words) == 0
    assert "teacher: going on after epoch" in capsys.readouterr().err
    assert [row.name for row in read_results(folder / "results.json").rows] == ["teacher", "width=0.5"]
