"""What is read at the edge to torchreid: its reader replaced in every process, parts of a data set that are none."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from runs import tiny
from torch.utils.data import DataLoader

from oskt_torchreid.datasets import market1501
from oskt_torchreid.datasets.manager import build_datamanager
from oskt_torchreid.datasets.validation import hold_out
from oskt_torchreid.errors import DataError
from oskt_torchreid.host.compat import host_table, torchreid
from oskt_torchreid.host.data import unaugmented_loader
from oskt_torchreid.host.pictures import damage_of, install_reader, read_picture

MARKET = ("data.sources=['market1501']", "data.targets=['market1501']", "train.batch_size=8")


# ---- the reader ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [torchreid.data.ImageDataset, torchreid.data.VideoDataset])
def test_torchreids_data_sets_look_the_reader_up_where_it_is_replaced(kind):
    assert "read_image" in kind.__getitem__.__code__.co_names
    assert kind.__getitem__.__globals__["read_image"] is read_picture
    assert torchreid.utils.read_image is read_picture
    install_reader()
    assert kind.__getitem__.__globals__["read_image"] is read_picture


def test_workers_of_every_loader_begin_with_the_reader(market_root, tmp_path):
    manager = build_datamanager(tiny(market_root, tmp_path, *MARKET))
    loaders = [manager.train_loader, *manager.test_loader["market1501"].values(), unaugmented_loader(manager)]
    assert [loader.worker_init_fn for loader in loaders] == [install_reader] * 4


@pytest.mark.slow
def test_a_worker_that_is_no_copy_of_this_process_reads_so_too(market_root, tmp_path):
    """As on systems that cannot copy a process; with torchreid's own reader it would never end."""
    path = tmp_path / "cut.jpg"
    path.write_bytes(next(market_root.rglob("*.jpg")).read_bytes()[:-200])
    items = [(str(path), 0, 0)]
    dataset = torchreid.data.ImageDataset(items, items, items, verbose=False)
    loader = DataLoader(
        dataset, num_workers=1, multiprocessing_context="spawn", worker_init_fn=install_reader, timeout=120
    )
    with pytest.raises(DataError, match="^picture '.*cut.jpg' cannot be read: image file is truncated"):
        next(iter(loader))


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every file")
def test_a_picture_that_may_not_be_read(market_root, tmp_path):
    path = tmp_path / "x.jpg"
    path.write_bytes(next(market_root.rglob("*.jpg")).read_bytes())
    path.chmod(0)
    assert damage_of(path) == "this user may not read it"


@pytest.mark.parametrize("name", ["a\0b.jpg", "x" * 300 + ".jpg", "loop.jpg"])
def test_a_path_that_no_system_opens(tmp_path, name):
    (tmp_path / "loop.jpg").symlink_to("loop.jpg")
    with pytest.raises(DataError, match="cannot be read: "):
        read_picture(f"{tmp_path}/{name}")


# ---- parts of a data set -------------------------------------------------------------------------------------------


def registered(monkeypatch, base, *parts):
    """A data set of some train, query and gallery, for one test."""

    def begin(self, root="", **kwargs):
        base.__init__(self, *parts, **kwargs)

    kind = "video" if base is torchreid.data.VideoDataset else "image"
    table = host_table(getattr(torchreid.data, f"register_{kind}_dataset"), f"__{kind}_datasets")
    monkeypatch.setitem(table, "given", type("Given", (base,), {"__init__": begin}))
    return "data.sources=['given']", "data.targets=['given']", "train.batch_size=1", f"data.type={kind}"


IMAGE, VIDEO = torchreid.data.ImageDataset, torchreid.data.VideoDataset
GOOD = [("a.jpg", 0, 0), ("b.jpg", 0, 1)]


@pytest.mark.parametrize("place", range(3))
@pytest.mark.parametrize(
    ("part", "message"),
    [
        ([], "part of data set 'given' is empty; it needs at least one picture"),
        (None, r"part of data set 'given' is None; expected a list of \(path, identity, camera\)"),
        ([("a.jpg", 0)], r"part of data set 'given' is \('a.jpg', 0\); expected \(path, identity, camera\), with"),
        ([("a.jpg", 0.5, 0)], r"is \('a.jpg', 0.5, 0, 0\); expected \(path"),
        ([(("a.jpg", "b.jpg"), 0, 0)], r"is \(\('a.jpg', 'b.jpg'\), 0, 0, 0\); expected \(path, identity"),
        ([()], r"is \(\); expected \(path"),
    ],
)
def test_a_part_that_is_none_is_named(market_root, tmp_path, monkeypatch, place, part, message):
    parts = [part if place == number else GOOD for number in range(3)]
    options = registered(monkeypatch, IMAGE, *parts)
    named = f"the {('train', 'query', 'gallery')[place]} part of data set 'given'"
    with pytest.raises(DataError, match=message) as caught:
        build_datamanager(tiny(market_root, tmp_path, *options))
    assert named in str(caught.value)


@pytest.mark.parametrize("item", [("a.jpg", 0, 0), ((), 0, 0)])
def test_a_tracklet_that_is_none_is_named(market_root, tmp_path, monkeypatch, item):
    options = registered(monkeypatch, VIDEO, [item], [item], [item])
    with pytest.raises(DataError, match=r"item 0 of the train part of .* expected \(\(path, path, ...\), identity"):
        build_datamanager(tiny(market_root, tmp_path, *options), types=("video",))


def test_paths_and_numbers_of_any_type_become_plain(market_root, tmp_path, monkeypatch):
    items = [(Path("a.jpg"), np.int64(7), np.uint8(3)), (Path("b.jpg"), np.int64(9), np.uint8(4))]
    options = registered(monkeypatch, IMAGE, items, items, items)
    manager = build_datamanager(tiny(market_root, tmp_path, *options))
    dataset = manager.train_loader.dataset
    assert dataset.train == dataset.data == [("a.jpg", 0, 0, 0), ("b.jpg", 1, 1, 0)]
    assert manager.test_dataset["given"]["query"] == [("a.jpg", 7, 3, 0), ("b.jpg", 9, 4, 0)]
    assert all(type(label) is int for item in dataset.train for label in item[1:])


def test_identities_of_tracklets_that_are_lists_are_held_out():
    items = [([f"{pid}{camera}{n}.jpg"], pid, camera) for pid in range(4) for camera in range(2) for n in range(2)]
    train, query, gallery = hold_out(items, 0.5, 0)
    assert [len(part) for part in (train, query, gallery)] == [8, 4, 4]


# ---- Market-1501's layout ------------------------------------------------------------------------------------------


def test_the_other_set_of_this_layout(market_root, tmp_path):
    (tmp_path / "dukemtmc-reid").mkdir()
    (tmp_path / "dukemtmc-reid" / "DukeMTMC-reID").symlink_to(market_root / "market1501" / "Market-1501-v15.09.15")
    market = market1501.Market1501(str(market_root), verbose=False)
    duke = market1501.DukeMTMCreID(str(tmp_path), market1501_500k=True, verbose=False)
    for part in ("train", "query", "gallery"):
        assert [item[1:] for item in getattr(duke, part)] == [item[1:] for item in getattr(market, part)]


def test_distractors_are_in_the_gallery_on_request(market_root, tmp_path):
    folder = tmp_path / "market1501"
    folder.mkdir()
    for part in (market_root / "market1501" / "Market-1501-v15.09.15").iterdir():
        (folder / part.name).symlink_to(part)
    with pytest.raises(DataError, match="the gallery of .*/images', is no folder; .*use_500k_distractors=False"):
        market1501.Market1501(str(tmp_path), market1501_500k=True, verbose=False)
    (folder / "images").mkdir()
    (folder / "images" / "0000_c3s1_000001_00.jpg").touch()
    plain = market1501.Market1501(str(tmp_path), verbose=False)
    more = market1501.Market1501(str(tmp_path), market1501_500k=True, verbose=False)
    assert more.gallery[:-1] == plain.gallery and more.gallery[-1][1:] == (0, 2, 0)


def test_cameras_that_count_from_0_keep_their_numbers(tmp_path):
    for part in market1501.FOLDER_OF_PART.values():
        (tmp_path / "market1501" / part).mkdir(parents=True)
        for camera in (0, 1):
            (tmp_path / "market1501" / part / f"0001_c{camera}s1.jpg").touch()
    dataset = market1501.Market1501(str(tmp_path), verbose=False)
    assert [item[2] for item in dataset.train + dataset.query] == [0, 1, 0, 1]


def test_what_lies_in_an_empty_folder_is_said(tmp_path):
    for part in market1501.FOLDER_OF_PART.values():
        (tmp_path / "market1501" / part).mkdir(parents=True)
        (tmp_path / "market1501" / part / "0001_c1s1.jpg").touch()
    (tmp_path / "market1501" / "query" / "0001_c1s1.jpg").rename(tmp_path / "market1501" / "query" / "0001_c1s1.tif")
    with pytest.raises(DataError, match="the query of .* has no picture .*: it has 1 entries, such as '0001_c1s1.tif'"):
        market1501.Market1501(str(tmp_path), verbose=False)
