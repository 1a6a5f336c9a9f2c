"""Whole files only, and reading that refuses what is damaged, foreign or unsafe."""

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from oskt_torchreid import files
from oskt_torchreid.errors import ChainError, CheckpointError, ConfigError
from oskt_torchreid.files import remove_leftovers


def test_atomic_replaces_only_at_the_end(tmp_path):
    path = tmp_path / "new" / "value.txt"
    with files.atomic(path) as temporary:
        temporary.write_text("first")
        assert not path.exists()
        assert temporary.parent == path.parent and temporary.suffix == path.suffix
    assert path.read_text() == "first"
    assert os.listdir(path.parent) == ["value.txt"]


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_write_leaves_the_old_file_alone(tmp_path, interruption):
    path = tmp_path / "value.txt"
    path.write_text("old")
    with pytest.raises(interruption), files.atomic(path) as temporary:
        temporary.write_text("half")
        raise interruption
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["value.txt"]


def test_atomic_files_have_ordinary_permissions(tmp_path):
    ordinary = tmp_path / "ordinary"
    ordinary.write_text("")
    files.write_json(tmp_path / "written.json", {})
    assert (tmp_path / "written.json").stat().st_mode == ordinary.stat().st_mode


def test_tensors_and_metadata_come_back(tmp_path):
    rows = torch.randn(4, 3)
    tensors = {"rows": rows, "view": rows.t(), "count": torch.tensor(3)}
    files.save_tensors(tmp_path / "chain.safetensors", tensors, {"width": 0.25, "groups": ["a", "b"]})
    loaded, metadata = files.load_tensors(tmp_path / "chain.safetensors")
    assert metadata == {"width": 0.25, "groups": ["a", "b"]}
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert torch.equal(loaded[name], tensor)


def test_damaged_and_foreign_tensor_files(tmp_path):
    path = tmp_path / "chain.safetensors"
    files.save_tensors(path, {"rows": torch.ones(100)}, {})
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(ChainError, match="not a whole safetensors file"):
        files.load_tensors(path)
    save_file({"rows": torch.ones(2)}, str(path))
    with pytest.raises(CheckpointError, match="another program.*'oskt' metadata"):
        files.load_tensors(path, error=CheckpointError)
    with pytest.raises(ChainError, match="no file at .*nothing.safetensors"):
        files.load_tensors(tmp_path / "nothing.safetensors")


@pytest.mark.parametrize("kind", [np.float32, np.float64, np.int64, np.bool_])
def test_checkpoints_with_numpy_scalars_load(tmp_path, kind):
    path = tmp_path / "model.pth.tar-1"
    torch.save({"state_dict": {"weight": torch.ones(2)}, "rank1": kind(1)}, path)
    content = files.load_checkpoint(path)
    assert content["rank1"] == 1
    assert torch.equal(content["state_dict"]["weight"], torch.ones(2))


def test_checkpoints_run_no_code(tmp_path):
    path = tmp_path / "unsafe.pth"
    torch.save({"path": Path("somewhere")}, path)
    with pytest.raises(CheckpointError, match="holds more than tensors"):
        files.load_checkpoint(path)
    path.write_bytes(pickle.dumps(os.getcwd, protocol=2))
    with pytest.raises(CheckpointError, match="unsafe.pth"):
        files.load_checkpoint(path)


def test_truncated_checkpoint(tmp_path):
    path = tmp_path / "model.pth"
    files.save_checkpoint(path, {"weight": torch.ones(1000)})
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(CheckpointError, match="cannot read .*model.pth.*damaged"):
        files.load_checkpoint(path)


def test_json_round_trip(tmp_path):
    files.write_json(tmp_path / "a.json", {"map": np.float32(0.5), "list": np.arange(2), "path": Path("x")})
    assert files.read_json(tmp_path / "a.json") == {"map": 0.5, "list": [0, 1], "path": "x"}
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(ConfigError, match="damaged JSON"):
        files.read_json(tmp_path / "a.json")


def test_sha256(tmp_path):
    (tmp_path / "abc").write_bytes(b"abc")
    assert files.sha256(tmp_path / "abc").startswith("ba7816bf8f01cfea")


def test_what_killed_processes_leave_is_removed(tmp_path):
    """Ours, and those of safetensors, which also writes a temporary file first; nothing else."""
    left = [".chain.0123456789ab.safetensors", ".tmpt0X8wS"]
    kept = [".hidden", "chain.safetensors", ".tmp", ".tmp-folder"]
    for name in (*left, *kept):
        (tmp_path / name).write_text("")
    remove_leftovers(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(kept)
