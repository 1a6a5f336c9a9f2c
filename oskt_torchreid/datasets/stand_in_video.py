"""Stand-ins of the data sets that VKD is evaluated on, in their real layouts: tracklets and lists of pictures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from scipy.io import savemat

from ..files import write_json

CAMERAS = 2
TEST_IDENTITIES = 2
TRACKLETS = 2  # of an identity at a camera, if a layout distinguishes tracklets
FRAMES = 3


def write_picture(path: Path) -> None:
    """Writes a picture of noise, 64x32, the same in every process for the same file name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    seed = int.from_bytes(path.name.encode(), "big") % 2**32
    picture = np.random.default_rng(seed).integers(0, 256, (64, 32, 3), dtype=np.uint8)
    _, encoded = cv2.imencode(path.suffix, picture)
    path.write_bytes(encoded.tobytes())


def _mars(root: Path, identities: int) -> None:
    """`mars/bbox_{train,test}/<person>/<person>C<camera>T<tracklet>F<frame>.jpg`, and lists and tables in `info`.

    A row of a table is (first frame, last frame, person, camera), frames counted from 1 in the list of names; the first
    tracklet of each test person at each camera is a query.
    """
    folder = root / "mars"
    for part, first, count in (("train", 1, identities), ("test", identities + 1, TEST_IDENTITIES)):
        names: list[str] = []
        rows = []
        for person in range(first, first + count):
            for camera in range(1, CAMERAS + 1):
                for tracklet in range(1, TRACKLETS + 1):
                    rows.append((len(names) + 1, len(names) + FRAMES, person, camera))
                    names += [f"{person:04d}C{camera}T{tracklet:04d}F{frame:03d}.jpg" for frame in range(1, FRAMES + 1)]
        for name in names:
            write_picture(folder / f"bbox_{part}" / name[:4] / name)
        (folder / "info").mkdir(exist_ok=True)
        (folder / "info" / f"{part}_name.txt").write_text("".join(f"{name}\n" for name in names))
        savemat(folder / "info" / f"tracks_{part}_info.mat", {f"track_{part}_info": np.array(rows)})
        queries = np.arange(1, len(rows) + 1, TRACKLETS)
    savemat(folder / "info" / "query_IDX.mat", {"query_IDX": queries[None]})


def _dukemtmcvidreid(root: Path, identities: int) -> None:
    """`dukemtmc-vidreid/DukeMTMC-VideoReID/{train,query,gallery}/<person>/<tracklet>/<person>_C<camera>_F..._X....jpg`."""
    folder = root / "dukemtmc-vidreid" / "DukeMTMC-VideoReID"
    parts = {
        "train": (1, identities, range(TRACKLETS)),
        "query": (identities + 1, TEST_IDENTITIES, range(1)),
        "gallery": (identities + 1, TEST_IDENTITIES, range(1, TRACKLETS)),
    }
    for part, (first, count, tracklets) in parts.items():
        for person in range(first, first + count):
            for camera in range(1, CAMERAS + 1):
                for tracklet in tracklets:
                    place = folder / part / f"{person:04d}" / f"{TRACKLETS * camera + tracklet:04d}"
                    for frame in range(1, FRAMES + 1):
                        write_picture(place / f"{person:04d}_C{camera}_F{frame:04d}_X{100 * frame:05d}.jpg")


def _veri776(root: Path, identities: int) -> None:
    """`veri776/image_{train,query,test}/<vehicle>_c<camera>_<time>_<number>.jpg`, lists of names and test tracklets."""
    folder = root / "veri776"
    listed: dict[str, list[str]] = {"train": [], "query": [], "test": []}
    tracks = []
    for vehicle in range(1, identities + TEST_IDENTITIES + 1):
        for camera in range(1, CAMERAS + 1):
            stem = f"{vehicle:04d}_c{camera:03d}_"
            names = [f"{stem}{30600 + 5 * frame:08d}_{frame}.jpg" for frame in range(FRAMES)]
            if vehicle <= identities:
                listed["train"] += names
                continue
            listed["query"].append(names[0])
            listed["test"] += names
            tracks.append(" ".join([names[0].removesuffix(".jpg"), *names]) + " \n")
    for part, names in listed.items():
        for name in names:
            write_picture(folder / f"image_{part}" / name)
        (folder / f"name_{part}.txt").write_text("".join(f"{name}\n" for name in names))
    (folder / "test_track.txt").write_text("".join(tracks))


def _atrw(root: Path, identities: int) -> None:
    """`atrw/train/<number>.jpg` and `reid_list_train.csv`; also the challenge's `test` and `gt_test_plain.json`.

    Every third identity is for the test, so there are half as many again as requested.
    """
    folder = root / "atrw"
    lines: list[str] = []
    labels: list[dict[str, object]] = []
    for identity in range(identities + (identities + 1) // 2):
        for _ in range(2 * FRAMES):
            name = f"{len(lines):06d}.jpg"
            write_picture(folder / "train" / name)
            lines.append(f"{identity},{name}\n")
    (folder / "reid_list_train.csv").write_text("".join(lines))
    for identity in range(TEST_IDENTITIES):
        for picture in range(2 * FRAMES):
            number = len(lines) + len(labels)
            write_picture(folder / "test" / f"{number:06d}.jpg")
            labels.append({"imgid": number, "entityid": identity, "frame": [identity, 0, picture], "query": "sing"})
    write_json(folder / "gt_test_plain.json", labels)


VIDEO_LAYOUTS: dict[str, Callable[[Path, int], None]] = {
    "mars": _mars,
    "dukemtmcvidreid": _dukemtmcvidreid,
    "veri776": _veri776,
    "atrw": _atrw,
    "atrw_challenge": _atrw,
}
