"""Files made to do harm, or damaged: a typed error each, no code run, no memory taken, nothing loaded in part."""

from __future__ import annotations

import io
import os
import pickle
import stat
import tarfile
import zipfile
from random import Random

import pytest
import torch
from fuzz import damage
from fuzz.files import LOADED, READERS, read_damaged, reader, run_case
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save
from torch import nn

from oskt_torchreid import files
from oskt_torchreid.chain.student_record import StudentRecord
from oskt_torchreid.errors import ChainError, CheckpointError, ConfigError, GraphError, OsktError, ZooError
from oskt_torchreid.files import weights
from oskt_torchreid.files.checks import DEEPEST_TUPLE, LARGEST_HEADER, SuspectFile, check_pickle
from oskt_torchreid.graph.surgery.rebuild import check_split
from oskt_torchreid.host import models
from oskt_torchreid.models.backbone_weights import load_backbone_weights
from oskt_torchreid.zoo.archives import unpack
from oskt_torchreid.zoo.vkd_format import load_official_vkd

PICKLED = [name for name in READERS if name != "chain"]


def is_json(path):
    return path.endswith(".json")


# ---- bombs -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PICKLED)
@pytest.mark.parametrize("seed", range(10))
def test_a_bomb_at_any_place_of_a_checkpoint(name, seed):
    """Alone, as a tensor, next to the tensors, instead of them; in archives and in files of old versions."""
    path = next(path for path in reader(name).content if not is_json(path))
    assert read_damaged(reader(name), path, damage.bomb(reader(name).content[path], Random(seed))) in (
        ("CheckpointError", ""),
        ("ZooError", ""),
    )


@pytest.mark.parametrize("name", READERS)
def test_a_pickle_in_place_of_any_file(name):
    bomb = pickle.dumps(damage._Bomb(), protocol=2)
    for path in reader(name).content:
        outcome, failure = read_damaged(reader(name), path, bomb)
        assert outcome != LOADED and not failure, path


def test_the_error_names_what_a_pickle_wants(tmp_path):
    torch.save({"weight": damage._Bomb()}, tmp_path / "bomb.pth")
    message = (
        r"bomb.pth': damaged, or it holds more than tensors.*\(it wants to use '(posix|nt).mkdir', which is no data\)"
    )
    with pytest.raises(CheckpointError, match=message):
        load_backbone_weights(models.build("osnet_x0_25", 2), tmp_path / "bomb.pth")
    assert not os.path.exists(damage.BOMB_FOLDER)


def test_the_bomb_would_go_off(tmp_path, monkeypatch):
    """The tests above would notice."""
    monkeypatch.chdir(tmp_path)
    pickle.loads(pickle.dumps(damage._Bomb()))
    assert (tmp_path / damage.BOMB_FOLDER).is_dir()


# ---- descriptions that are larger than what they describe ------------------------------------------------------------


def test_depth_of_pickles():
    def nested(step, count):
        return io.BytesIO(b"\x80\x02N" + step * count + b".")

    one, two, again = b"\x85", b"N\x86", b"\x85q\x00h\x00\x86"  # TUPLE1; NONE TUPLE2; TUPLE1 BINPUT BINGET TUPLE2
    check_pickle(nested(one, DEEPEST_TUPLE))
    for step in (one, two, again):
        with pytest.raises(SuspectFile, match="nests tuples deeper"):
            check_pickle(nested(step, DEEPEST_TUPLE + 1))
    ordinary = pickle.dumps({"a": (1, (2, [(3,)])), "b": (1, 2)}, protocol=2)
    check_pickle(io.BytesIO(ordinary))
    with pytest.raises(SuspectFile, match="builtins.eval"):
        check_pickle(io.BytesIO(b"\x80\x02cbuiltins\neval\nX\x01\x00\x00\x001\x85R."))


@pytest.mark.parametrize(
    "tensor",
    [
        torch.zeros(1).expand(10**6, 10**6),
        torch.sparse_coo_tensor(size=(10**6, 10**6), check_invariants=True),
        torch.empty(10**6, 10**6, device="meta"),
    ],
    ids=["view", "sparse", "meta"],
)
def test_tensors_that_are_more_than_the_file(tmp_path, tensor):
    torch.save({"weight": tensor}, tmp_path / "large.pth")
    with pytest.raises(CheckpointError, match=r"large.pth': damaged, or it holds more.*\(it has a "):
        files.load_checkpoint(tmp_path / "large.pth")


def test_views_of_each_other_are_read(tmp_path):
    """As two names of one tensor, and parts of it, ordinarily are."""
    whole = torch.arange(12.0).reshape(3, 4)
    torch.save({"a": whole, "b": whole.T, "c": whole[1:], "d": whole}, tmp_path / "views.pth")
    assert torch.equal(files.load_checkpoint(tmp_path / "views.pth")["b"], whole.T)


def test_compressed_records(tmp_path):
    path = tmp_path / "packed.pth"
    torch.save({"weight": torch.zeros(10**6)}, tmp_path / "plain.pth")
    with zipfile.ZipFile(tmp_path / "plain.pth") as old, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for record in old.infolist():
            new.writestr(record.filename, old.read(record))
    with pytest.raises(CheckpointError, match="torch.save compresses nothing"):
        files.load_checkpoint(path)


def test_other_formats_are_told_by_their_beginning(tmp_path):
    path = tmp_path / "x.pth"
    path.write_bytes(pickle.dumps({"a": 1}, protocol=2))
    with pytest.raises(CheckpointError, match="does not begin as a file of torch.save does"):
        files.load_checkpoint(path)
    torch.save({"weight": torch.ones(3)}, path, _use_new_zipfile_serialization=False)
    assert files.load_checkpoint(path)["weight"].sum() == 3


@pytest.mark.parametrize("length", [0, 1 << 40, (1 << 64) - 1, LARGEST_HEADER + 1])
def test_headers_of_impossible_length(tmp_path, length):
    path = tmp_path / "chain.safetensors"
    path.write_bytes(length.to_bytes(8, "little") + b"{}" * 20)
    with pytest.raises(ChainError, match=f"not a whole safetensors file .*header says {length} bytes; at most 40"):
        files.load_tensors(path)


@pytest.mark.parametrize(
    "text", ["[" * 10**6, '{"a":' * 10**5, "1" * 10**5, "\x00", "[1,]", '"' + "x" * 9], ids=range(6)
)
def test_json_that_is_deep_long_or_none(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(ConfigError, match="holds damaged JSON"):
        files.read_json(tmp_path / "a.json")
    tensors = {"rows": torch.ones(2)}
    (tmp_path / "a.safetensors").write_bytes(save(tensors, {files.METADATA_KEY: text}))
    with pytest.raises(ChainError, match="holds damaged JSON"):
        files.load_tensors(tmp_path / "a.safetensors")


def test_json_of_other_bytes(tmp_path):
    (tmp_path / "a.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="cannot read '.*a.json' as JSON"):
        files.read_json(tmp_path / "a.json")


# ---- numbers and names that no network has ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        {"input_size": (3, 10**6, 10**6)},
        {"input_size": (10**6, 32, 16)},
        {"num_classes": 10**9},
        {"num_classes": float("inf")},
        {"name": "x" * 10**6},
        {"feature_dim": -1},
    ],
    ids=str,
)
def test_students_that_cannot_be(change):
    content = {**StudentRecord(name="osnet_x0_25").to_dict(), **change}
    with pytest.raises(CheckpointError, match="is no student of this package"):
        StudentRecord.from_dict(content, "student.pth")


def test_a_file_replaces_numbers_alone():
    module = nn.Conv2d(4, 4, 1)
    check_split(module, "groups")
    for attribute in ("forward", "weight", "training", "_parameters", "__class__", "none"):
        with pytest.raises(GraphError, match=f"Conv2d has no number '{attribute}'"):
            check_split(module, attribute)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (lambda t: t.to(torch.bool), "chain row '0.weight' is torch.bool .* instead of torch.float32"),
        (lambda t: t.to(torch.complex64), "chain row '0.weight' is torch.complex64"),
        (lambda t: t.to(torch.int64), "chain row '0.weight' is torch.int64"),
        (lambda t: t * float("inf"), "chain row '0.weight' has values that are NaN or infinite"),
    ],
)
def test_chains_of_other_numbers(kind, message, tmp_path):
    content = reader("chain").content["chain.safetensors"]
    tensors = load(content)
    tensors["rows/0.weight"] = kind(tensors["rows/0.weight"])
    (tmp_path / "chain.safetensors").write_bytes(save(tensors, damage._metadata(content)))
    with pytest.raises(ChainError, match=message):
        reader("chain").read(tmp_path)


def test_index_arrays_of_other_numbers(tmp_path):
    content = reader("chain").content["chain.safetensors"]
    tensors = load(content)
    tensors["graph/groups"] = tensors["graph/groups"].double()
    (tmp_path / "chain.safetensors").write_bytes(save(tensors, damage._metadata(content)))
    with pytest.raises(ChainError, match="'groups' is a 1-dimensional array of float64, not a list of int32"):
        reader("chain").read(tmp_path)


@pytest.mark.parametrize(
    ("value", "message"), [(float("nan"), "0.weight has values that are NaN"), (None, "0.weight is torch.int64")]
)
def test_weights_of_other_numbers_are_not_loaded(value, message, tmp_path):
    model = nn.Sequential(nn.Linear(2, 2))
    before = model[0].weight.detach().clone()
    state = {"0.weight": torch.ones(2, 2, dtype=torch.int64) if value is None else torch.full((2, 2), value)}
    torch.save({**state, "0.bias": torch.ones(2)}, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=f"1 unusable: {message}.*Nothing was loaded"):
        weights.load_weights(model, tmp_path / "x.pth")
    assert torch.equal(model[0].weight, before)


def test_class_counts_that_the_weights_do_not_have(tmp_path):
    for path, content in reader("official VKD").content.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(content.replace(b'"num_classes": 3', b'"num_classes": 3000000000'))
    with pytest.raises(ZooError, match=r"has 3 classes, '.*hparams.json' says 3000000000"):
        load_official_vkd(tmp_path)


# ---- archives --------------------------------------------------------------------------------------------------------


def zipped(path, *names, content=b"x", mode=0):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in names:
            info = zipfile.ZipInfo(name)
            info.external_attr = mode << 16
            info.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(info, content)
    return path


def tarred(path, name, kind=tarfile.REGTYPE):
    with tarfile.open(path, "w") as archive:
        info = tarfile.TarInfo(name)
        info.type, info.linkname, info.size = kind, "/etc/passwd", 1 if kind == tarfile.REGTYPE else 0
        archive.addfile(info, io.BytesIO(b"x") if info.size else None)
    return path


@pytest.mark.parametrize("name", ["../x", "/x", "a/../../x", "..\\x", "C:/x", "a/./../../x"])
@pytest.mark.parametrize("make", [zipped, tarred], ids=["zip", "tar"])
def test_names_that_lead_out_of_the_folder(tmp_path, make, name):
    archive = make(tmp_path / "archive", name)
    with pytest.raises(ZooError, match="lies outside of the folder"):
        unpack(archive, tmp_path / "inner" / "folder")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["archive", "inner"]


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_are_not_unpacked(tmp_path, kind):
    with pytest.raises(ZooError, match="is a link or a device"):
        unpack(tarred(tmp_path / "archive", "x", kind), tmp_path / "folder")
    with pytest.raises(ZooError, match="is a link or a device"):
        unpack(zipped(tmp_path / "zip", "x", mode=stat.S_IFLNK | 0o777), tmp_path / "folder")
    assert not (tmp_path / "folder").exists()


def test_archives_that_unpack_to_too_much(tmp_path):
    with pytest.raises(ZooError, match="unpacks to more than"):
        unpack(zipped(tmp_path / "zip", "x", content=bytes(5 * 2**20)), tmp_path / "folder")
    with pytest.warns(UserWarning, match="Duplicate name"):
        zipped(tmp_path / "twice", "a", "a")
    with pytest.raises(ZooError, match="or is there twice"):
        unpack(tmp_path / "twice", tmp_path / "folder")
    assert not (tmp_path / "folder").exists()


def test_archives_are_unpacked_whole_or_not_at_all(tmp_path):
    good = zipped(tmp_path / "zip", "a/b.txt", "c.txt")
    folder = unpack(good, tmp_path / "folder")
    assert (folder / "a" / "b.txt").read_bytes() == b"x" and (folder / "c.txt").is_file()
    with pytest.raises(ZooError, match="is there already"):
        unpack(good, folder)
    noise = bytearray(zipped(tmp_path / "noise", "a", content=os.urandom(5000)).read_bytes())
    noise[2000] ^= 255
    (tmp_path / "noise").write_bytes(noise)
    with pytest.raises(ZooError, match="cannot be unpacked"):
        unpack(tmp_path / "noise", tmp_path / "other")
    (tmp_path / "page").write_text("<html>")
    with pytest.raises(ZooError, match="neither a zip nor a tar archive"):
        unpack(tmp_path / "page", tmp_path / "other")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "noise", "page", "zip"]


# ---- fuzzing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", READERS)
def test_whole_files_are_read(name, tmp_path):
    path, content = next(iter(reader(name).content.items()))
    assert read_damaged(reader(name), path, content) == (LOADED, "")


@settings(max_examples=60, deadline=None)
@given(number=st.integers(0, 10**6))
def test_any_damage_is_a_typed_error_or_harmless(number):
    case = run_case(number, only=("chain", "student", "checkpoint"))
    assert not case.failure, case


def test_cases_are_the_same_again():
    first, second = (run_case(5, seed=3, only=("checkpoint",)) for _ in range(2))
    assert first == second and issubclass(OsktError, Exception)
