"""What a script sees that has not set up logging, and what a refused run leaves behind."""

from __future__ import annotations

import logging
import os
import subprocess
import sys

import pytest
from runs import SMALL
from test_tools import command

from oskt_torchreid.host.showing import PACKAGE, shown

ENGINE = """
import sys
import oskt_torchreid as oskt
import torchreid
from oskt_torchreid.datasets import synthped, synthetic

small = synthetic.preset("quick", train_identities=6, test_identities=14, cameras=4, height=32, width=16)
synthped.configure(small)
manager = torchreid.data.ImageDataManager(
    root=sys.argv[1], sources="synthped", height=32, width=16, batch_size_train=16, workers=0, use_gpu=False
)
for quiet in (False, True):
    model = torchreid.models.build_model("osnet_x0_25", manager.num_train_pids, pretrained=False)
    optimizer = torchreid.optim.build_optimizer(model, lr=0.001)
    engine = torchreid.engine.ImageOSKTEngine(manager, model, optimizer, width=0.5, use_gpu=False)
    engine.quiet = quiet
    print("BEGINS")
    engine.run(save_dir=f"{sys.argv[2]}/{quiet}", max_epoch=1, print_freq=1)
    print("ENDS")
"""
WHOLE = """
import sys
from oskt_torchreid.config import load_config
from oskt_torchreid.runs import run

for quiet in (False, True):
    print("BEGINS")
    run(load_config(options=sys.argv[1:]), quiet=quiet)
    print("ENDS")
"""


def printed(script, *words):
    """What a script prints between each BEGINS and its ENDS, as lines: of a run aloud, and of a quiet one."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    found = subprocess.run(
        [sys.executable, "-c", script, *map(str, words)], capture_output=True, text=True, env=environment, timeout=300
    )
    assert found.returncode == 0, found.stderr[-2000:]
    return [part.partition("ENDS\n")[0].splitlines() for part in found.stdout.split("BEGINS\n")[1:]]


@pytest.mark.slow
def test_a_script_that_runs_an_engine_sees_losses_and_accuracy(data_root, tmp_path):
    lines, quiet = printed(ENGINE, data_root, tmp_path)
    assert any("loss_x" in line and "epoch: [1/1]" in line for line in lines)
    assert any(line.startswith("epoch 1: row dispersion ") for line in lines)
    assert lines[-1].split()[0] == "synthped" and "mAP" in lines[-3].split() and "rank1" in lines[-3].split()
    assert quiet == []


@pytest.mark.slow
def test_a_script_that_runs_a_configuration_sees_the_table(data_root, tmp_path):
    options = [*SMALL, "train.print_freq=1", f"data.root={data_root}", f"data.save_dir={tmp_path / 'run'}"]
    lines, quiet = printed(WHOLE, *options)
    assert any(line.startswith("teacher: mAP ") for line in lines) and any("loss_x" in line for line in lines)
    assert lines[-1].split()[0] == "width=0.5" and "results, also in" in "\n".join(lines)
    assert quiet == []


def test_messages_are_shown_once_and_only_inside(capsys):
    """The test's own handler is put away: with one, somebody handles the messages already."""
    logger, root = logging.getLogger(PACKAGE), logging.getLogger()
    handlers, root.handlers[:] = list(root.handlers), []
    try:
        with shown() as outer, shown() as inner:
            logging.getLogger(f"{PACKAGE}.host").info("seen")
        with shown(False) as unwanted:
            logger.info("not seen")
        logger.info("not seen either")
    finally:
        root.handlers[:] = handlers
    assert (outer, inner, unwanted) == (True, False, False) and capsys.readouterr().out == "seen\n"
    with shown() as handled:
        logger.info("by the test's handler")
    assert not handled and not logger.handlers and capsys.readouterr().out == ""


# ---- a refused run -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("there", [False, True])
def test_a_refused_run_leaves_no_folder(tmp_path, data_root, capsys, there):
    folder = tmp_path / "a" / "b" / "run"
    if there:
        folder.parent.mkdir(parents=True)
        (folder.parent / "mine.txt").write_text("kept")
    words = [*SMALL, f"data.root={data_root}", f"data.save_dir={folder}", "oskt.students=['width=0.0001']"]
    assert command("run").main(words) == 2
    assert "width" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == (["a"] if there else [])
    assert not folder.exists() and (not there or (folder.parent / "mine.txt").read_text() == "kept")


def test_a_folder_with_something_in_it_keeps_the_log(tmp_path, data_root, capsys):
    (tmp_path / "results.md").write_text("of an earlier run")
    words = [*SMALL, f"data.root={data_root}", f"data.save_dir={tmp_path}", "oskt.students=['width=0.0001']"]
    assert command("run").main(words) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said in (tmp_path / "log.txt").read_text() and (tmp_path / "results.md").read_text() == "of an earlier run"
