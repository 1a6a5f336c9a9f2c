"""Users' methods and engines: registered in one line, then named in a YAML file like this package's own."""

import copy

import pytest
from runs import SMALL

from oskt_torchreid import register_engine
from oskt_torchreid.baselines import Baseline, baseline, register_baseline
from oskt_torchreid.config import load_config
from oskt_torchreid.errors import ConfigError
from oskt_torchreid.host.engine import TransferEngine
from oskt_torchreid.runs import run, run_dry

YAML = """
engine: oskt
oskt:
  students: ["whole:width=1.0"]
  controls: [whole]
  control_lr: {whole: 0.004}
"""


def written(folder, text, *options):
    (folder / "run.yaml").write_text(text)
    rest = [word for word in SMALL if not word.startswith(("engine", "oskt.students", "model.name"))]
    return load_config(folder / "run.yaml", options=[*rest, "model.name=tiny_net", *options])


def narrow(teacher, graph, widths):
    """Somebody's method: the narrow network that the chain's own selection of the first channels gives."""
    return baseline("first").make(copy.deepcopy(teacher), graph, widths)


def test_a_baseline_of_ones_own_runs_from_yaml(tiny_net, data_root, tmp_path):
    options = (f"data.root={data_root}", f"data.save_dir={tmp_path / 'run'}")
    with pytest.raises(ConfigError, match="'whole'; did you mean|unknown key 'oskt.control_lr.whole'"):
        written(tmp_path, YAML, *options)
    register_baseline("whole", Baseline(narrow, "my own"))
    config = written(tmp_path, YAML, *options)
    assert config.oskt.control_lr.whole == 0.004 and config.oskt.control_lr.slice == 0.003
    rows = {row.name: row for row in run(config).rows}
    assert {"teacher", "whole:width=1.0", "whole", "whole, 2 epochs"} == set(rows)
    assert rows["whole"].params < rows["whole:width=1.0"].params == rows["teacher"].params
    with pytest.raises(ConfigError, match="oskt.control_lr.whole is -1.0; allowed: 0 to inf"):
        written(tmp_path, YAML, "oskt.control_lr.whole=-1", *options)


def test_an_engine_of_ones_own_runs_from_yaml(tiny_net, data_root, tmp_path):
    batches = []

    class Counting(TransferEngine):
        """Counts what it trains on."""

        def compute_losses(self, images, pids):
            batches.append(len(images))
            return super().compute_losses(images, pids)

    options = (f"data.root={data_root}", f"data.save_dir={tmp_path / 'run'}")
    text = "engine: counting\nloss: {name: triplet}\n"
    config = written(tmp_path, text, *(word for word in options))
    with pytest.raises(ConfigError, match="unknown engine 'counting'; did you mean|unknown engine 'counting'; known"):
        run(config)
    register_engine("counting", Counting)
    assert run_dry(config).stages[0].epochs == 1 and len(batches) == 1
    rows = run(config).rows
    assert len(batches) > 1 and rows[0].map_after > 0
    count = len(batches)
    assert run(config).rows == rows and len(batches) == count, "done before"
