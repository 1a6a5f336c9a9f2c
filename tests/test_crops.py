"""A folder of crops as a data set: who is who, where pictures come from, who is tested, what cannot be read."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from runs import SMALL
from test_tools import command
from torch.utils.data import DataLoader

from oskt_torchreid.config import load_config
from oskt_torchreid.datasets import crops
from oskt_torchreid.datasets.checks import check_matches
from oskt_torchreid.datasets.crop_listing import read_crops, split_identities
from oskt_torchreid.datasets.manager import build_datamanager
from oskt_torchreid.datasets.set_manager import build_set_datamanager
from oskt_torchreid.errors import ConfigError, DataError
from oskt_torchreid.host.compat import torchreid
from oskt_torchreid.host.pictures import install_reader
from oskt_torchreid.runs.trainer import configure_data

RANDOM = np.random.default_rng(0)


def draw(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        assert cv2.imwrite(str(folder / name), RANDOM.integers(0, 256, (24, 12, 3), dtype=np.uint8))
    return folder


def people(folder: Path, count: int = 12, cameras: int = 3, each: int = 3) -> Path:
    names = [
        f"p{person:02d}/cam{c + 1}_{n:04d}.jpg" for person in range(count) for c in range(cameras) for n in range(each)
    ]
    return draw(folder, *names)


# ---- reading -------------------------------------------------------------------------------------------------------


def test_where_pictures_come_from(tmp_path):
    """The example of the module."""
    names = ("anna/cam1_000123.jpg", "anna/cam2/000007.jpg", "ben/walk_3/0001.jpg", "ben/x.jpg")
    found = read_crops(draw(tmp_path, *names))
    assert [(c.identity, c.source, c.by_camera) for c in found] == [
        ("anna", "1", True),
        ("anna", "2", True),
        ("ben", "walk_3", False),
        ("ben", "x.jpg", False),
    ]


@pytest.mark.parametrize(
    ("name", "camera"),
    [
        ("a/c2_1.jpg", "2"),
        ("a/Camera 12 x.png", "12"),
        ("a/0001_c3s1_000151_00.jpg", "3"),
        ("a/cam-7/1.webp", "7"),
        ("a/cam01_7.jpg", "1"),
        ("a/0a1f-3c9f-4c12ab.jpg", None),
        ("a/9c2.jpg", None),
        ("a/c2b7.jpg", None),
        ("a/pic2_1.jpg", None),
        ("cam4/1.jpg", None),
        ("a/2.jpg", None),
    ],
)
def test_names_of_cameras(tmp_path, name, camera):
    (crop,) = read_crops(draw(tmp_path, name))
    assert (crop.source if crop.by_camera else None) == camera


def test_other_ways_to_say_the_camera(tmp_path):
    folder = draw(tmp_path, "a/view5_1.jpg", "a/view6_2.jpg", "b/cam1_3.jpg")
    assert [c.source for c in read_crops(folder, r"view(\d)")] == ["5", "6", "cam1_3.jpg"]
    assert not any(c.by_camera for c in read_crops(folder, "none"))
    (folder / "cameras.csv").write_text("path,camera\na/view5_1.jpg,hall\nview6_2.jpg,door\n")
    assert [c.source for c in read_crops(folder)] == ["hall", "door", "cam1_3.jpg"]


def test_a_table(tmp_path):
    draw(tmp_path, "x/1.jpg", "x/2.jpg", "y/3.jpg", "y/4.jpg")
    table = tmp_path / "people.csv"
    table.write_text("path,identity,camera,split\nx/1.jpg,7,hall,train\nx/2.jpg,8,door,query\ny/3.jpg,8,hall,gallery\n")
    found = read_crops(table)
    assert [(c.identity, c.source, c.split) for c in found] == [
        ("7", "hall", "train"),
        ("8", "door", "query"),
        ("8", "hall", "gallery"),
    ]


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("file,identity\n", ConfigError, r"has the columns \['file', 'identity'\]; it needs 'path' and 'identity'"),
        ("path,identity,split\na.jpg,1,valid\n", ConfigError, "has the split 'valid'; allowed: train, query, gallery"),
        ("path,identity\na.jpg,\n", ConfigError, "line 2 of .* is without path or identity"),
        ("path,identity\na.jpg,1\n\n./a.jpg,2\n", ConfigError, "line 4 of .* has the picture './a.jpg' once more"),
        ("path,identity,identity\na.jpg,1,2\n", ConfigError, "has the column 'identity' twice"),
        ("path,identity\na.jpg,1,2\n", ConfigError, "line 2 of .* has 3 cells for 2 columns"),
        ("path,identity\n", DataError, "has a header and no line"),
        (f"path,identity\na.jpg,{'1' * 200_000}\n", ConfigError, "line 2 of .* cannot be read .*; mend it"),
        ("path,identity,split\na.jpg,1,train\nb.jpg,2,\n", ConfigError, "the split of 1 pictures and of 1 not"),
        ("path,identity\nnone.jpg,1\n", DataError, "no picture that can be read"),
    ],
)
def test_tables_that_cannot_be(tmp_path, text, error, message):
    (tmp_path / "people.csv").write_text(text)
    with pytest.raises(error, match=message):
        read_crops(tmp_path / "people.csv")


@pytest.mark.parametrize(
    ("names", "cameras", "error", "message"),
    [
        ((), "auto", DataError, "is no folder of pictures"),
        (("1.jpg",), "auto", DataError, "has no folder with pictures in it; give a folder with a folder per identity"),
        (("a/1.jpg",), "view(", ConfigError, "is no regular expression"),
        (("a/1.jpg",), "view", ConfigError, "put the camera into a group"),
        (("a/1.jpg",), r"view(\d)", DataError, "crops.cameras says the camera of none of the 1 pictures .* 'a/1.jpg'"),
    ],
)
def test_folders_that_cannot_be(tmp_path, names, cameras, error, message):
    draw(tmp_path / "in", *names)
    with pytest.raises(error, match=message):
        read_crops(tmp_path / "in", cameras)


def test_a_table_of_cameras_that_fits_no_picture(tmp_path, caplog):
    folder = draw(tmp_path, "a/1.jpg", "a/2.jpg")
    (folder / "cameras.csv").write_text("path,camera\nelsewhere/a/1.jpg,hall\n")
    with pytest.raises(DataError, match="cameras.csv' says the camera of none of the 2 pictures"):
        read_crops(folder)
    (folder / "cameras.csv").write_text("path,camera\n.\\a\\1.jpg,hall\nb/9.jpg,door\n")
    assert [crop.source for crop in read_crops(folder)] == ["hall", "2.jpg"]
    assert "1 lines of" in caplog.text and "such as 'b/9.jpg'" in caplog.text


@pytest.mark.parametrize(
    ("encoding", "mark", "end"),
    [("utf-8", ";", "\r\n"), ("utf-8-sig", "\t", "\n"), ("utf-16", ",", "\n"), ("utf-8", ",", "\r")],
    ids=["semicolons", "tabs", "utf-16", "old line ends"],
)
def test_tables_of_spreadsheets(tmp_path, encoding, mark, end):
    draw(tmp_path, "x/1.jpg")
    text = f"Path{mark}Identity{end}x/1.jpg{mark}J\u00fcrgen{end}"
    (tmp_path / "people.csv").write_bytes(text.encode(encoding))
    assert [crop.identity for crop in read_crops(tmp_path / "people.csv")] == ["J\u00fcrgen"]
    (tmp_path / "people.csv").write_bytes(text.encode("latin-1"))
    with pytest.raises(DataError, match="is not text in UTF-8 .* save it as 'CSV UTF-8'"):
        read_crops(tmp_path / "people.csv")


def test_links_to_folders_are_followed_but_not_in_circles(tmp_path):
    real = draw(tmp_path / "real", "1.jpg", "2.jpg")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "anna").symlink_to(real)
    (tmp_path / "in" / "again").symlink_to(real)
    (real / "round").symlink_to(tmp_path / "in")
    found = [(crop.identity, crop.path.name) for crop in read_crops(tmp_path / "in")]
    assert found == [("again", "1.jpg"), ("again", "2.jpg"), ("anna", "1.jpg"), ("anna", "2.jpg")]


def made(path):
    return crops.Crops(settings=crops.CropSettings(str(path)), verbose=False)


def test_sets_that_prove_nothing_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"has 2 identities \(test, train\); at least 4 are needed, two to train on"):
        made(draw(tmp_path / "nested", "train/a/1.jpg", "test/b/1.jpg"))
    draw(tmp_path, *(f"{person}.jpg" for person in "abcd"))
    table, head = tmp_path / "people.csv", "path,identity,camera,split\n"
    table.write_text(f"{head}a.jpg,1,1,train\nb.jpg,2,1,train\n")
    with pytest.raises(DataError, match="no line of .* has the split gallery"):
        made(table)
    table.write_text(f"{head}a.jpg,1,1,train\nb.jpg,2,1,train\nc.jpg,2,2,query\nd.jpg,2,1,gallery\n")
    with pytest.raises(DataError, match="1 identities of .* are trained on and tested on, such as '2'"):
        made(table)


def test_pictures_of_one_camera_find_each_other_only_without_cameras(tmp_path):
    draw(tmp_path, *(f"{person}.jpg" for person in "abcd"))
    lines = ["a.jpg,1,7,train", "b.jpg,1,7,train", "c.jpg,2,7,query", "d.jpg,2,7,gallery"]
    table, head = tmp_path / "people.csv", "path,identity,camera,split"
    table.write_text("\n".join([head, *lines]))
    whole = made(table)
    parts = SimpleNamespace(test_dataset={"crops": {"query": whole.query, "gallery": whole.gallery}})
    with pytest.raises(DataError, match="seen by two cameras .*crops.cameras=none for a folder, no column 'camera'"):
        check_matches(parts)
    check_matches(parts, no_camera=True)  # as vkd.no_camera=True does
    table.write_text("\n".join([head, *(line.replace(",7,", ",,") for line in lines)]))
    whole = made(table)
    check_matches(SimpleNamespace(test_dataset={"crops": {"query": whole.query, "gallery": whole.gallery}}))


def test_pictures_that_cannot_be_read_are_named_and_left_out(tmp_path, caplog):
    folder = people(tmp_path / "in", 2)
    (folder / "p00" / "cam9_1.jpg").write_bytes(b"no picture")
    (folder / "p00" / "notes.txt").write_text("no picture by its name")
    assert len(read_crops(folder)) == 18
    assert "1 of 19 pictures cannot be read and are left out: " in caplog.text and "cam9_1.jpg" in caplog.text
    cut = folder / "p01" / "cam1_0000.jpg"
    cut.write_bytes(cut.read_bytes()[:-40])
    assert len(read_crops(folder)) == 18 and len(read_crops(folder, decoded=True)) == 17


# ---- who is tested -------------------------------------------------------------------------------------------------


@given(st.integers(4, 60), st.floats(0, 1), st.integers(0, 5))
def test_a_split_is_of_the_size_asked_for_and_stays(count, share, seed):
    names = [f"p{number}" for number in range(count)]
    tested = split_identities(names, share, seed)
    assert len(tested) == min(max(round(share * count), 2), count - 2)
    assert tested == split_identities(reversed(names), share, seed)
    more = split_identities([*names, "new"], share, seed)
    assert len(tested ^ (more - {"new"})) <= 2, "a folder that is added hardly moves the others"


def test_pictures_of_a_folder(tmp_path):
    dataset = crops.Crops(settings=crops.CropSettings(str(people(tmp_path / "in"))), verbose=False)
    assert sorted({pid for _, pid, *_ in dataset.train}) == list(range(6))
    assert len(dataset.train) == len(dataset.gallery) == 54 and len(dataset.query) == 18
    tested = {Path(path).parent.name for path, *_ in dataset.gallery}
    assert tested.isdisjoint({Path(path).parent.name for path, *_ in dataset.train})
    assert {path for path, *_ in dataset.query} == {p for p, *_ in dataset.gallery if p.endswith("_0000.jpg")}
    assert {camera for *_, camera, _ in dataset.gallery} == {0, 1, 2}


def test_without_cameras_a_pictures_own_source_is_left_out(tmp_path):
    """Every picture is a source: a query in the gallery is of its identity and source, which ranking leaves out."""
    folder = draw(tmp_path / "in", *(f"p{person}/{number}.jpg" for person in range(8) for number in range(6)))
    dataset = crops.Crops(settings=crops.CropSettings(str(folder)), verbose=False)
    assert len(dataset.query) == 4 * 3 and len(dataset.gallery) == 24
    source = {path: (pid, camera) for path, pid, camera, _ in dataset.gallery}
    assert len(set(source.values())) == 24
    assert all(source[path] == (pid, camera) for path, pid, camera, _ in dataset.query)


def tracklets(folder, **changes):
    settings = crops.CropSettings(str(folder), **changes)
    return crops.CropTracklets(settings=settings, transform=lambda image: image, verbose=False)


@pytest.mark.parametrize(("gap", "lengths"), [(0, {3}), (5, {1, 2})])
def test_tracklets_of_folders_and_of_frames(tmp_path, gap, lengths):
    frames = (1, 3, 90)
    names = [f"p{person}/cam{camera}_{frame:03d}.jpg" for person in range(8) for camera in (1, 2) for frame in frames]
    dataset = tracklets(draw(tmp_path / "in", *names), frame_gap=gap)
    assert {len(paths) for paths, *_ in dataset.train} == lengths
    assert all(list(paths) == sorted(paths) for paths, *_ in dataset.train)
    folders = [f"p{person}/walk{walk}/{n}.jpg" for person in range(8) for walk in range(3) for n in range(4)]
    dataset = tracklets(draw(tmp_path / "other", *folders))
    assert {len(paths) for paths, *_ in dataset.gallery} == {4} and len(dataset.gallery) == len(dataset.query) == 12


# ---- through torchreid and the command -----------------------------------------------------------------------------


def configured(folder, *options):
    options = [word for word in SMALL if not word.startswith(("data.sources", "data.targets", "synthped"))] + list(
        options
    )
    return load_config(options=[*options, "data.sources=['crops']", "data.targets=['crops']", f"crops.path={folder}"])


def test_a_set_that_has_no_folder_yet():
    crops.configure(crops.CropSettings())
    with pytest.raises(ConfigError, match="say where they are, as --data crops/ or crops.path=crops/"):
        crops.Crops(verbose=False)
    with pytest.raises(ConfigError, match="crops takes CropSettings, but got 'crops/'"):
        crops.configure("crops/")


def test_torchreids_own_manager_reads_it_also_in_workers(tmp_path):
    crops.configure(crops.CropSettings(str(people(tmp_path / "in"))))
    manager = torchreid.data.ImageDataManager(
        sources="crops", height=32, width=16, batch_size_train=4, batch_size_test=4, workers=0, use_gpu=False
    )
    assert manager.num_train_pids == 6
    loader = DataLoader(manager.train_loader.dataset, 4, num_workers=1, worker_init_fn=install_reader)
    assert next(iter(loader))["img"].shape == (4, 3, 32, 16)


def test_a_run_reads_a_folder_once_and_the_next_one_again(tmp_path, caplog):
    """torchreid's managers make a data set for each of train, query and gallery."""
    folder = people(tmp_path / "in")
    (folder / "p00" / "cam1_text.jpg").write_bytes(b"no picture")
    config = configured(folder)
    configure_data(config)
    for _ in range(2):
        build_datamanager(config, 8)
    assert caplog.text.count("cannot be read") == 1
    draw(folder, "p00/cam2_later.jpg")
    configure_data(config)
    build_datamanager(config, 8)
    assert "1 of 110 pictures cannot be read" in caplog.text and caplog.text.count("cannot be read") == 2


def test_views_of_crops(tmp_path):
    folder = people(tmp_path / "in")
    for kind in ("image", "video"):
        config = configured(
            folder, "engine=vkd", f"data.type={kind}", "vkd.num_views=2", "vkd.teacher_stage.batch_size=8"
        )
        configure_data(config)
        manager = build_set_datamanager(config)
        assert next(iter(manager.train_loader))["img"].shape[:2] == (8, 2)


def test_what_is_in_a_folder_is_found_by_the_configuration(tmp_path):
    folder = people(tmp_path / "in")
    (folder / "p00" / "cut.jpg").write_bytes((folder / "p00" / "cam1_0000.jpg").read_bytes()[:-40])
    for check, count in (("headers", 1), ("all", 0)):
        config = configured(folder, f"data.check={check}", "crops.test_share=0.25", "crops.seed=1")
        configure_data(config)
        manager = build_datamanager(config, 8)
        parts = [*manager.train_loader.dataset.train, *manager.test_dataset["crops"]["gallery"]]
        assert len(parts) == 108 + count and manager.num_train_pids == 9


@pytest.mark.slow
def test_from_twenty_people_to_a_file_that_ranks_them(tmp_path, monkeypatch, capsys):
    """Three commands: a run of the shipped configuration on a folder of crops, a student, a file."""
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    import onnxruntime

    monkeypatch.chdir(tmp_path)
    people(tmp_path / "crops", 20)
    small = [word for word in SMALL if not word.startswith(("data.s", "data.t", "synthped", "engine", "page"))]
    changes = ["oskt.contributions=0", "oskt.controls=[]", "oskt.processes=1", "data.save_dir=log/mine"]
    assert command("run").main(["oskt_market1501", "--data", "crops", "--dry-run", *small, *changes]) == 0
    printed = capsys.readouterr().out
    assert "train 90 pictures of 10 identities by 3 cameras" in " ".join(printed.split())
    assert command("run").main(["oskt_market1501", "--data", "crops", *small, *changes]) == 0
    assert (tmp_path / "log" / "mine" / "report.html").is_file()
    assert command("expand").main(["log/mine/chain.safetensors", "--width", "0.75", "-o", "student.pth"]) == 0
    assert command("export").main(["student.pth", "-o", "student.onnx", "--normalize"]) == 0
    session = onnxruntime.InferenceSession("student.onnx", providers=["CPUExecutionProvider"])
    (features,) = session.run(None, {"images": RANDOM.random((3, 3, 32, 16), dtype=np.float32)})
    assert features.shape[0] == 3 and np.allclose(np.linalg.norm(features, axis=1), 1, atol=1e-4)
    shutil.rmtree("crops")
    assert command("run").main(["oskt_market1501", "--data", "crops", *small, *changes]) == 2
    assert "'crops' is no folder of pictures" in capsys.readouterr().err
