"""Users' data: damaged pictures, arbitrary names and labels, classes that may raise anything."""

import io
import os
import shutil
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from runs import tiny
from small_networks import TinyNet
from test_tools import tool
from torch.utils.data import DataLoader, Dataset

from oskt_torchreid.chain.recalibration import recalibrate
from oskt_torchreid.config import load_config
from oskt_torchreid.datasets import checks
from oskt_torchreid.datasets.manager import build_datamanager
from oskt_torchreid.datasets.market1501 import DukeMTMCreID, Market1501
from oskt_torchreid.errors import DataError, OsktError, TrainingError
from oskt_torchreid.host import models
from oskt_torchreid.host.compat import host_table, torchreid
from oskt_torchreid.host.data import register_dataset, register_image_dataset, unaugmented_loader
from oskt_torchreid.host.pictures import read_picture
from oskt_torchreid.runs import run, run_dry

FOLDER = Path("market1501") / "Market-1501-v15.09.15"
PARTS = {"train": "bounding_box_train", "query": "query", "gallery": "bounding_box_test"}
MARKET = ["data.sources=['market1501']", "data.targets=['market1501']", "train.batch_size=4", "engine=softmax"]
SIZE = ["data.height=32", "data.width=16", "data.workers=0", "model.pretrained=False", "use_gpu=False"]


def encoded(kind="JPEG", mode="RGB", size=(16, 32)):
    stream = io.BytesIO()
    Image.new(mode, size).save(stream, kind)
    return stream.getvalue()


def bomb():
    head = bytearray(encoded("PNG", "L", (1, 1)))
    head[16:24] = (60_000).to_bytes(4, "big") * 2
    head[29:33] = zlib.crc32(head[12:29]).to_bytes(4, "big")
    return bytes(head)


DAMAGES = {
    "empty": (lambda path: path.write_bytes(b""), "it is empty"),
    "cut short": (lambda path: path.write_bytes(path.read_bytes()[:-200]), "truncated"),
    "web page": (lambda path: path.write_bytes(b"<!DOCTYPE html>"), "it is no picture, for it begins with b'<!DOCTYPE"),
    "broken link": (lambda path: (path.unlink(), path.symlink_to("nowhere.jpg")), "it is missing"),
    "pipe": (lambda path: (path.unlink(), os.mkfifo(path)), "it is no regular file"),
    "huge": (lambda path: path.write_bytes(bomb()), "3600000000 pixels"),
}


@pytest.fixture
def market(market_root, tmp_path):
    """A Market-1501 of one's own, and the folder of its pictures."""
    shutil.copytree(market_root, tmp_path / "data")
    return tmp_path / "data" / FOLDER


def first(folder, part="train"):
    return sorted((folder / PARTS[part]).iterdir())[0]


def words(folder, *options):
    places = [f"data.root={folder.parents[1]}", f"data.save_dir={folder.parents[2] / 'run'}"]
    return [*SIZE, "model.name=tiny_net", *MARKET, "train.max_epoch=1", *places, *options]


@pytest.fixture
def command():
    return tool("main").main


# ---- pictures ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_picture_is_named_before_training(tiny_net, market, command, capsys, damage, part):
    change, said = DAMAGES[damage]
    path = first(market, part)
    change(path)
    assert command(words(market, "data.check=all")) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith(f"DataError: 1 of 96 pictures cannot be read: '{path}': ") and said in last
    assert "replace these files, or take them out of the data set" in last
    assert not list(market.parents[2].rglob("*.pth*"))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(("part", "engine"), [("train", "softmax"), ("query", "softmax"), ("train", "triplet")])
def test_a_damaged_picture_ends_training_at_once(tiny_net, market, command, capsys, part, engine, workers):
    """Without a look beforehand: the same words from a loader's worker as from this process."""
    path = first(market, part)
    path.write_bytes(path.read_bytes()[:-200])
    options = ["data.check=none", f"data.workers={workers}", f"engine={engine}", f"loss.name={engine}"]
    if engine == "triplet":
        options += ["sampler.train_sampler=RandomIdentitySampler", "sampler.num_instances=2"]
    assert command(words(market, *options)) == 2
    printed = capsys.readouterr().err
    last = printed.splitlines()[-1]
    assert last.startswith(f"DataError: picture '{path}' cannot be read: ") and last.endswith("out of the data set")
    assert "Traceback" not in printed and "Caught" not in printed


def test_headers_are_looked_at_by_default(tiny_net, market, command, capsys):
    first(market).write_bytes(b"")
    first(market, "gallery").write_bytes(b"GIF")
    cut = first(market, "query")
    cut.write_bytes(cut.read_bytes()[:-200])
    assert command(words(market)) == 2
    assert "DataError: 2 of 96 pictures cannot be read: " in capsys.readouterr().err


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "I;16", "1", "LA"])
def test_every_kind_of_picture_is_read(tmp_path, mode):
    path = tmp_path / "x.jpg"
    path.write_bytes(encoded("PNG", mode))
    assert read_picture(path).mode == "RGB" and read_picture(path).size == (16, 32)
    path.write_bytes(encoded(size=(1, 1)))
    assert read_picture(str(path)).size == (1, 1)


def test_torchreids_own_managers_read_so_too(market):
    first(market).write_bytes(b"")
    manager = torchreid.data.ImageDataManager(
        root=str(market.parents[1]), sources="market1501", height=32, width=16, batch_size_train=24, workers=0
    )
    with pytest.raises(DataError, match="cannot be read: it is empty"):
        next(iter(manager.train_loader))
    student = TinyNet(6)
    with pytest.raises(DataError, match="cannot be read: it is empty"):
        recalibrate(student, unaugmented_loader(manager))


@pytest.mark.slow
def test_calibrating_an_export_reads_so_too(market, tmp_path, capsys):
    first(market).write_bytes(b"")
    places = [f"data.root={market.parents[1]}", "data.check=none", *SIZE, *MARKET]
    arguments = ["osnet_x0_25", "-o", str(tmp_path / "x.onnx"), "--precision", "int8", "--options", *places]
    assert tool("export").main(arguments) == 2
    assert "cannot be read: it is empty" in capsys.readouterr().err and not (tmp_path / "x.onnx").exists()


class Failing(Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, place):
        raise DataError("picture 'a: b.jpg' is damaged\nDataError: not the end; replace it")


@pytest.mark.parametrize("workers", [0, 2])
def test_errors_of_workers_are_their_own_words(workers):
    with pytest.raises(DataError) as caught:
        list(DataLoader(Failing(), 2, num_workers=workers))
    assert str(caught.value).endswith("not the end; replace it") and "Traceback" not in str(caught.value)


@pytest.mark.parametrize("part", PARTS)
def test_a_folder_with_the_name_of_a_picture(tiny_net, market, command, capsys, part):
    path = first(market, part)
    path.unlink()
    path.mkdir()
    with pytest.raises(DataError, match="it is a folder"):
        read_picture(path)
    assert command(words(market)) == 2
    assert f"has a folder '{path.name}' with the name of a picture; move it" in capsys.readouterr().err.splitlines()[-1]


def test_a_number_that_no_batch_can_hold(tiny_net, market, command, capsys):
    renamed(market, "0101", "1" * 25)
    assert command(words(market)) == 2
    assert "with whole numbers below 2147483648" in capsys.readouterr().err.splitlines()[-1]


# ---- names -------------------------------------------------------------------------------------------------------


def renamed(folder, old, new):
    for path in list(folder.rglob("*.jpg")):
        path.rename(path.with_name(path.name.replace(old, new)))


def items_of(folder):
    dataset = Market1501(root=str(folder.parents[1]), verbose=False)
    return dataset.train, dataset.query, dataset.gallery


def test_the_reader_gives_what_torchreids_gives(market):
    own = Market1501(root=str(market.parents[1]), verbose=False)
    table = host_table(torchreid.data.register_image_dataset, "__image_datasets")
    assert table["market1501"] is Market1501 and table["dukemtmcreid"] is DukeMTMCreID
    assert [len(part) for part in (own.train, own.query, own.gallery)] == [24, 12, 60]
    labels = {Path(path).name[:4]: pid for path, pid, *_ in own.train}
    assert labels == {f"{pid:04d}": pid - 1 for pid in range(1, 7)}
    assert {camera for *_, camera, _ in own.gallery} == {0, 1}
    assert {item[1] for item in own.query} == set(range(101, 107))


@pytest.mark.parametrize(
    ("old", "new", "cameras"), [("_c1", "_c12", {11, 1}), ("_c2", "_c7", {0, 6}), ("_c2", "_c1234", {0, 1233})]
)
def test_cameras_have_any_number(market, old, new, cameras):
    renamed(market, old, new)
    for part in items_of(market):
        assert {item[2] for item in part} == cameras


def test_identities_have_any_number(market):
    renamed(market, "010", "1600")
    train, query, gallery = items_of(market)
    assert {item[1] for item in query} == {item[1] for item in gallery} == {int(f"1600{n}") for n in range(1, 7)}
    assert {item[1] for item in train} == set(range(6))


@pytest.mark.parametrize("suffix", [".JPG", ".png", ".Jpeg", ".webp"])
def test_suffixes(tiny_net, market, suffix):
    before = [len(part) for part in items_of(market)]
    renamed(market, ".jpg", suffix)
    assert [len(part) for part in items_of(market)] == before


def test_what_is_no_picture_is_passed_over_and_junk_is_left_out(market):
    before = items_of(market)
    for name in ("Thumbs.db", "._0001_c1s1_000000_00.jpg", "readme.txt", "-1_c1s1_000000_00.jpg"):
        shutil.copy(first(market), market / "query" / name)
    assert items_of(market) == before


STRANGE = ["copy.jpg", "0001.jpg", "x0001_c1.jpg", "-2_c1.jpg", "0001_c.jpg"]


@pytest.mark.parametrize("name", STRANGE)
def test_a_name_that_does_not_fit_is_named(tiny_net, market, command, capsys, name):
    shutil.copy(first(market), market / "query" / name)
    assert command(words(market)) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    folder = market / "query"
    expected = f"DataError: the query of data set 'market1501', '{folder}', has a picture '{name}', whose name does not"
    assert last.startswith(expected) and "expected: IDENTITY_cCAMERA..., such as 0002_c1s1_000451_03.jpg" in last


@pytest.mark.parametrize("part", PARTS)
def test_an_empty_part_is_named(tiny_net, market, command, capsys, part):
    for path in (market / PARTS[part]).iterdir():
        path.unlink()
    assert command(words(market)) == 2
    expected = f"the {part} of data set 'market1501', '{market / PARTS[part]}', has no picture IDENTITY_cCAMERA..."
    assert expected in capsys.readouterr().err.splitlines()[-1]


def test_a_whole_run_of_cameras_and_names_of_ones_own(tiny_net, market):
    """Two-digit cameras, large identities and .png: the matches are those of the same pictures under usual names."""
    usual = run(load_config(options=words(market))).rows[0]
    renamed(market, "_c1", "_c12")
    renamed(market, "_c2", "_c13")
    renamed(market, "010", "1600")
    again = run(load_config(options=[*words(market), f"data.save_dir={market.parents[2] / 'again'}"])).rows[0]
    assert again.targets["market1501"] == usual.targets["market1501"]


# ---- classes of one's own ----------------------------------------------------------------------------------------


class Own(torchreid.data.ImageDataset):
    """Pictures that are made up; classes below change what is wrong with them."""

    labels, cameras, error, elsewhere = range(4), (0, 1), None, ""

    def __init__(self, root="", **kwargs):
        if self.error:
            raise self.error
        folder = Path(self.elsewhere or root)
        paths = sorted((folder / FOLDER / "query").glob("*.jpg"))
        train = [(str(paths[n % len(paths)]), pid, cam) for n, pid in enumerate(self.labels) for cam in self.cameras]
        test = [(str(path), np.int64(n // 2), n % 2) for n, path in enumerate(paths)]
        super().__init__(train, test[:6], test, **kwargs)


def own(monkeypatch, name="own_set", base=Own, **changes):
    """Registers a class of one's own for one test."""
    kind = type(name.title(), (base,), changes)
    monkeypatch.setitem(host_table(torchreid.data.register_image_dataset, "__image_datasets"), name, kind)
    return name


def manager(root, *names, **options):
    chosen = [f"{key}={value}" for key, value in options.items()]
    sources = f"data.sources={list(names)}", f"data.targets=['{names[0]}']", f"data.root={root}"
    return build_datamanager(load_config(options=[*SIZE, *sources, "train.batch_size=4", *chosen]))


class OfItsOwn(Exception):  # noqa: N818 - a name that a stranger may choose
    """An unknown error."""


def failing(self, root="", **kwargs):
    raise AssertionError


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"error": KeyError("pid")}, "Own_Set raised KeyError: 'pid'"),
        ({"error": OfItsOwn("no licence, ask Jane")}, "Own_Set raised OfItsOwn: no licence, ask Jane"),
        ({"__init__": failing}, "Own_Set raised AssertionError: 'raise AssertionError' in test_own_data.py"),
        ({"labels": ("a", "b")}, r"is \(.*'a', 0, 0\); expected \(path"),
        ({"labels": (0, 2**40)}, "expected .* whole numbers below 2147483648"),
    ],
)
def test_what_a_class_raises_reaches_the_user(market_root, monkeypatch, changes, message):
    name = own(monkeypatch, **changes)
    with pytest.raises(DataError, match=f"data set 'own_set'.*{message}"):
        manager(market_root, name)


@pytest.mark.parametrize("labels", [range(5, 9), (7, 3, 100, 12)])
def test_labels_that_do_not_run_from_0(tiny_net, market_root, tmp_path, monkeypatch, labels):
    name = own(monkeypatch, labels=tuple(labels), cameras=(4, 9))
    data = manager(market_root, name)
    train = data.train_loader.dataset.train
    assert [item[1] for item in train[::2]] == [sorted(labels).index(label) for label in labels]
    assert {item[2] for item in train} == {0, 1} and data.num_train_pids == 4
    options = ("engine=softmax", f"data.sources=['{name}']", f"data.targets=['{name}']", "train.batch_size=4")
    assert run(tiny(market_root, tmp_path, *options)).rows[0].epochs == 1


def test_several_sources_do_not_share_labels(market_root, monkeypatch):
    names = [own(monkeypatch, name, labels=(1, 2, 3)) for name in ("first_set", "second_set")]
    data = manager(market_root, *names)
    assert sorted({item[1] for item in data.train_loader.dataset.train}) == [0, 1, 2, 3, 4, 5]
    assert data.num_train_pids == 6


@pytest.mark.parametrize("labels", [(1, 2, 3), (0, 1, 2), (0, 2, 9)])
def test_all_parts_together_share_no_labels(market_root, monkeypatch, labels):
    """Three identities to train on, at the cameras 4 and 9, and six to test, at 0 and 1."""
    name = own(monkeypatch, labels=labels, cameras=(4, 9))
    data = manager(market_root, name, **{"data.combineall": True})
    dataset = data.train_loader.dataset
    assert data.num_train_pids == 9 and {item[1] for item in dataset.train} == set(range(9))
    assert [item[1] for item in dataset.train[:6]] == [0, 0, 1, 1, 2, 2]
    assert {item[2] for item in dataset.train} == set(range(4)) and dataset.data is dataset.train


class Named(torchreid.data.ImageDataset):
    """Pictures that are never opened, whose names hold the identity."""

    labels = (1, 2, 3)

    def __init__(self, root="", **kwargs):
        train = [(f"train{pid}_{cam}_{n}.jpg", pid, cam) for pid in self.labels for cam in (4, 9) for n in range(2)]
        test = [(f"test{pid}_{cam}_{n}.jpg", pid, cam) for pid in range(6) for cam in (4, 9) for n in range(2)]
        super().__init__(train, test[::2], test[1::2], **kwargs)


@pytest.mark.parametrize("option", ["few_shot.ratio", "validation.share"])
@pytest.mark.parametrize("labels", [(1, 2, 3), (0, 2, 9)])
def test_all_parts_together_and_then_some_of_them(market_root, monkeypatch, labels, option):
    """Of the nine identities of all parts, 0.7 are six; none is two people."""
    name = own(monkeypatch, f"named_{option[:3]}{labels[0]}", Named, labels=labels)
    share = 0.7 if option == "few_shot.ratio" else 0.3
    data = manager(market_root, name, **{"data.combineall": True, option: share})
    items = data.train_loader.dataset.train
    assert data.num_train_pids == 6 == len({item[1] for item in items})
    people = {}
    for item in items:
        people.setdefault(item[1], set()).add(Path(item[0]).name.partition("_")[0])
    assert all(len(names) == 1 for names in people.values()), people


def test_a_class_that_needs_no_root(market_root, tmp_path, monkeypatch):
    name = own(monkeypatch, elsewhere=str(market_root))
    data = manager(tmp_path / "nowhere", name)
    assert data.num_train_pids == 4
    with pytest.raises(DataError, match="no data root at .*nowhere', where data set 'market1501' should be"):
        manager(tmp_path / "nowhere", "market1501")


def test_the_table_of_data_sets_is_as_it_was(market_root, monkeypatch):
    table = host_table(torchreid.data.register_image_dataset, "__image_datasets")
    name = own(monkeypatch, error=KeyError("x"))
    before = dict(table)
    with pytest.raises(DataError):
        manager(market_root, name)
    assert table == before
    register_dataset("market1501", Market1501, "image", replace=True)
    with pytest.raises(Exception, match="data set name 'own_set' belongs to"):
        register_image_dataset(name, Market1501)
    with pytest.raises(Exception, match="data set name 'own_set' belongs to"):
        register_dataset(name, Market1501, "image", replace=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"sampler.train_sampler": "RandomIdentitySampler", "train.batch_size": 64},
            r"RandomIdentitySampler needs 16 training identities for a batch, and there are 6; change train.batch_size "
            r"\(64\) and the sampler node",
        ),
        (
            {"sampler.train_sampler": "RandomDomainSampler", "sampler.num_cams": 5, "train.batch_size": 10},
            r"RandomDomainSampler fills a batch of 10 with equally many pictures of 5 cameras \(sampler.num_cams\), "
            "and there are 2",
        ),
    ],
)
def test_samplers_that_cannot_fill_a_batch(market_root, options, message):
    with pytest.raises(DataError, match=message):
        manager(market_root, "market1501", **options)


# ---- known beforehand --------------------------------------------------------------------------------------------


@pytest.fixture
def untrained(monkeypatch):
    def forbidden(*_, **__):
        raise AssertionError("something was trained")

    monkeypatch.setattr("oskt_torchreid.runs.trainer.Trainer.train", forbidden)


OSKT = ["engine=oskt", "oskt.students=['width=0.5']", "oskt.width=0.5"]
STAGES = ("train", "oskt.refine", "oskt.finetune")


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_without_a_batch_is_said_first(tiny_net, market, command, capsys, untrained, stage):
    small = [f"{name}.batch_size=4" for name in STAGES if name != stage]
    assert command(words(market, *OSKT, *small, f"{stage}.batch_size=500")) == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        f"DataError: stage '{stage}' would train nothing: 24 training pictures fill no batch of 500; lower "
        f"{stage}.batch_size, to 24 at most"
    )


def test_a_sampler_is_blamed_on_the_stage_that_it_is_of(tiny_net, market, command, capsys, untrained):
    options = [*OSKT, "sampler.train_sampler=RandomIdentitySampler", "oskt.finetune.batch_size=4"]
    assert command(words(market, *options, "oskt.refine.batch_size=28")) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert "needs 7 training identities for a batch, and there are 6; change oskt.refine.batch_size (28)" in last


def test_no_query_with_a_match_is_said_first(tiny_net, market, command, capsys, untrained):
    for path in list(market.rglob("*_c2*")):
        path.rename(path.with_name(path.name.replace("_c2s1", "_c1s2")))
    assert command(words(market)) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("DataError: no query of data set 'market1501' has a match: of 12 queries and 60 gallery")
    assert "query and gallery have cameras 0 and 0" in last


def test_more_than_the_memory_is_said_first(tiny_net, market, command, capsys, untrained, monkeypatch):
    monkeypatch.setattr("oskt_torchreid.runs.memory._memory", lambda use_gpu: (100_000, 100_000))
    assert command(words(market)) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("ConfigError: train: batches of 4 take about ") and "lower train.batch_size, or" in last


def test_matches_by_hand():
    class Manager:
        def __init__(self, query, gallery):
            self.test_dataset = {"toy": {"query": query, "gallery": gallery}}

    query, same, other = [("q", 3, 0)], [("g", 3, 0)], [("g", 3, 1), ("h", 4, 1)]
    checks.check_matches(Manager(query, other))
    checks.check_matches(Manager(query, same), no_camera=True)
    for gallery in (same, [("g", 4, 1)]):
        with pytest.raises(DataError, match="no query of data set 'toy' has a match"):
            checks.check_matches(Manager(query, gallery))
    with pytest.raises(DataError, match="the gallery of data set 'toy' is empty"):
        checks.check_matches(Manager(query, []))


def test_the_digest_of_data(tmp_path):
    def items(folder):
        return [(str(folder / name), pid, 0) for pid, name in enumerate(("a.jpg", "b.jpg"))]

    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        for path, *_ in items(tmp_path / name):
            Path(path).write_bytes(b"12345")
    one, two = items(tmp_path / "one"), items(tmp_path / "two")
    digest = checks.data_digest(one)
    assert digest == checks.data_digest(two) == checks.data_digest(one[::-1])
    assert digest != checks.data_digest(one[:1]) and digest != checks.data_digest([(one[0][0], 5, 0), one[1]])
    Path(two[0][0]).write_bytes(b"123456")
    assert digest != checks.data_digest(two)
    assert checks.data_digest([(tuple(path for path, *_ in one), 0, 0)]) != digest
    assert checks.counts_of(one) == "2 pictures of 2 identities by 1 cameras"


def test_an_engine_without_a_batch_says_so(tiny_net, market_root):
    data = manager(market_root, "market1501", **{"train.batch_size": 100})
    model = models.build(tiny_net, 6)
    engine = torchreid.engine.build_engine("softmax", data, model, optimizer=torch.optim.SGD(model.parameters(), 0.1))
    with pytest.raises(TrainingError, match="its 24 pictures fill no batch of 100, so that nothing would be trained"):
        engine.run("unused", max_epoch=3)


def test_a_dry_run_looks_at_the_data(tiny_net, market):
    plan = run_dry(load_config(options=words(market)), step=False).summary()
    assert "24 pictures of 6 identities by 2 cameras" in plan and "10 pictures decoded" in plan
    first(market).write_bytes(b"")
    with pytest.raises(DataError, match="it is empty"):
        run_dry(load_config(options=words(market, "data.check=headers")), step=False)
    shutil.rmtree(market.parent)
    assert "not there" in run_dry(load_config(options=words(market)), step=False).summary()


def test_nodes_of_sets_that_are_not_in_use_do_not_matter(tiny_net, market):
    """24x24 is no size for drawn pedestrians, and these are none."""
    assert run(load_config(options=words(market, "data.height=24", "data.width=24"))).rows[0].epochs == 1


@pytest.mark.parametrize("size", [(24, 12), (48, 24)], ids=["whole", "halved"])
def test_images_that_a_network_cannot_take_are_said_first(market, command, capsys, untrained, size):
    sizes = [f"data.height={size[0]}", f"data.width={size[1]}", "train.half_resolution_epochs=1"]
    assert command([*words(market, *sizes), "model.name=osnet_x0_25", "model.pretrained=False"]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("ConfigError: train: OSNet cannot be trained on images of 24x12 (")
    assert "raise data.height and data.width, or set train.half_resolution_epochs to 0" in last


@pytest.mark.parametrize("workers", [0, 2])
def test_what_a_class_raises_later(tiny_net, market_root, tmp_path, monkeypatch, command, capsys, workers):
    def failing_item(self, place):
        raise KeyError("the licence of this picture has ended")

    name = own(monkeypatch, __getitem__=failing_item)
    options = [f"data.sources=['{name}']", f"data.targets=['{name}']", "train.batch_size=4", f"data.workers={workers}"]
    places = [f"data.root={market_root}", f"data.save_dir={tmp_path}", "model.name=tiny_net", "engine=softmax"]
    assert command([*SIZE, *options, *places]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        "DataError: Own_Set raised KeyError while it gave pictures: 'the licence of this picture has ended'; fix the "
        "data set, its class or its transforms"
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda item: (item["img"], item["pid"]), "a batch of the data set is a list; its items must be dicts"),
        (lambda item: item | {"img": item["img"][:1]}, r"has images \(4, 1, 32, 16\) of torch.float32; networks take"),
        (lambda item: item | {"pid": 99}, "has labels from 99 to 99, and there are 4 training identities"),
        (lambda item: item | {"img": item["img"][:, : 20 + item["pid"]]}, "raised RuntimeError while it gave pictures"),
    ],
    ids=["tuples", "grey", "labels", "sizes"],
)
def test_what_a_class_gives_is_looked_at(tiny_net, market_root, tmp_path, monkeypatch, change, message):
    def changed_item(self, place):
        return change(torchreid.data.ImageDataset.__getitem__(self, place))

    name = own(monkeypatch, __getitem__=changed_item)
    options = ("engine=softmax", f"data.sources=['{name}']", f"data.targets=['{name}']", "train.batch_size=4")
    with pytest.raises(DataError, match=message):
        run(tiny(market_root, tmp_path, *options))


def test_a_class_that_gives_nothing(tiny_net, market_root, tmp_path, monkeypatch):
    def ended(self, place):
        raise StopIteration

    name = own(monkeypatch, __getitem__=ended)
    options = ("engine=softmax", f"data.sources=['{name}']", f"data.targets=['{name}']", "train.batch_size=4")
    with pytest.raises(DataError, match="the data set gave no picture at all"):
        run(tiny(market_root, tmp_path, *options))


@pytest.mark.parametrize("stage", STAGES)
def test_a_batch_of_one_is_said_first(tiny_net, market, command, capsys, untrained, stage):
    small = [f"{name}.batch_size=4" for name in STAGES if name != stage]
    net = "model.name=osnet_x0_25"  # with a norm behind its pooling
    sizes = ["data.height=64", "data.width=32"]
    assert command(words(market, *OSKT, *small, net, *sizes, f"{stage}.batch_size=1")) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith(f"ConfigError: {stage}.batch_size is 1: a batch norm cannot be trained on 1 image at a time")


# ---- files that a dry run finds --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "place", "message"),
    [
        ("oskt.chain", "checkpoint.pth", "oskt.chain is '.*checkpoint.pth': "),
        ("oskt.teacher", "text", "oskt.teacher is '.*text': "),
        ("model.load_weights", ".", "model.load_weights is '.*', which is no file; give the path of one"),
        ("oskt.chain", "/dev/zero", "oskt.chain is '/dev/zero', which is no file"),
    ],
)
def test_a_dry_run_reads_files_that_are_there(tiny_net, market_root, tmp_path, key, place, message):
    torch.save({"state_dict": {"weight": torch.ones(1)}}, tmp_path / "checkpoint.pth")
    (tmp_path / "text").write_text("no checkpoint")
    with pytest.raises(OsktError, match=message):
        run_dry(tiny(market_root, tmp_path, f"{key}={tmp_path / place}", *MARKET[:3]), step=False)
    run_dry(tiny(market_root, tmp_path, f"{key}={tmp_path / 'to come'}", *MARKET[:3]), step=False)


@pytest.mark.parametrize("place", ["", "/tmp", "/dev/zero"])
def test_a_student_that_is_no_file(tiny_net, market_root, tmp_path, place):
    with pytest.raises(OsktError, match="which is no file"):
        run_dry(tiny(market_root, tmp_path, f"oskt.students=['file={place}']"), step=False)


def test_a_dry_run_with_distractors(tiny_net, market, command, capsys):
    (market / "images").mkdir()
    shutil.copy(next((market / "query").iterdir()), market / "images" / "0000_c1s1_000001_00.jpg")
    assert command([*words(market), "market1501.use_500k_distractors=True", "--dry-run"]) == 0
