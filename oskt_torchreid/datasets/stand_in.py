"""Tiny stand-ins of data sets in their real layouts: folders, file names, lists and splits as torchreid reads them.

They hold noise. They serve to find out, in seconds and without the data, whether a configuration can be built.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
from scipy.io import savemat

from ..errors import ConfigError
from ..files import write_json
from ..registry import nearest
from .market_layout import GALLERY_FOLDER, QUERY_FOLDER, TRAIN_FOLDER
from .stand_in_video import CAMERAS, TEST_IDENTITIES, VIDEO_LAYOUTS, write_picture

PICTURES_PER_CAMERA = 2  # training pictures of an identity at a camera: a sampler's four instances in all

PictureKey = tuple[int, int, int]  # identity, camera, number


def stand_ins(names: Iterable[str], kind: str) -> dict[str, str]:
    """Which data set stands in for each one: itself where its layout is known, else one of the same kind.

    Args:
        names: of registered data sets.
        kind: "image" or "video".

    Example: `{"msmt17": "msmt17", "mine": "market1501"}` for images; a second set of the user's is another one.
    """
    names, layouts = list(dict.fromkeys(names)), list(IMAGE_LAYOUTS if kind == "image" else VIDEO_LAYOUTS)
    unused = iter([name for name in layouts if name not in names])
    return {name: name if name in LAYOUTS else next(unused, layouts[0]) for name in names}


def make_stand_in(root: str | Path, name: str, identities: int = 2) -> None:
    """Writes a stand-in of a data set below a root.

    Args:
        root: folder of all data sets; made if it is missing.
        name: one of `LAYOUTS`.
        identities: training identities; two more are there for the test.

    Raises:
        ConfigError: a data set whose layout is not known here.
    """
    if name not in LAYOUTS:
        raise ConfigError(
            f"there is no stand-in of data set '{name}'{nearest(name, LAYOUTS)}; a dry run knows {', '.join(LAYOUTS)} "
            "and the synthetic sets"
        )
    LAYOUTS[name](Path(root), identities)


def _market1501(root: Path, identities: int) -> None:
    _market_layout(root / "market1501" / "Market-1501-v15.09.15", identities)


def _dukemtmcreid(root: Path, identities: int) -> None:
    _market_layout(root / "dukemtmc-reid" / "DukeMTMC-reID", identities)


def _market_layout(folder: Path, identities: int) -> None:
    """`<part>/<person>_c<camera>s1_<frame>_00.jpg`; test persons follow train's."""
    parts = {
        TRAIN_FOLDER: _views(1, identities, PICTURES_PER_CAMERA),
        QUERY_FOLDER: _views(identities + 1, TEST_IDENTITIES, 1),
        GALLERY_FOLDER: _views(identities + 1, TEST_IDENTITIES, PICTURES_PER_CAMERA, first=1),
    }
    for part, views in parts.items():
        for person, camera, number in views:
            write_picture(folder / part / f"{person:04d}_c{camera}s1_{number:06d}_00.jpg")


def _msmt17(root: Path, identities: int) -> None:
    """`msmt17/MSMT17_V1/{train,test}/<person>/<person>_<number>_<camera>_<rest>.jpg`, and four lists "path person"."""
    folder = root / "msmt17" / "MSMT17_V1"
    parts = {
        "train": ("train", _views(0, identities, PICTURES_PER_CAMERA)),
        "val": ("train", _views(0, identities, 1, first=PICTURES_PER_CAMERA)),
        "query": ("test", _views(0, TEST_IDENTITIES, 1)),
        "gallery": ("test", _views(0, TEST_IDENTITIES, PICTURES_PER_CAMERA, first=1)),
    }
    for part, (pictures, views) in parts.items():
        lines = []
        for person, camera, number in views:
            path = f"{person:04d}/{person:04d}_{number:03d}_{camera:02d}_0303morning_0008_{number}.jpg"
            write_picture(folder / pictures / path)
            lines.append(f"{path} {person}\n")
        (folder / f"list_{part}.txt").write_text("".join(lines))


def _cuhk03(root: Path, identities: int) -> None:
    """`cuhk03` as torchreid leaves it after its first use: pictures and splits extracted, next to the raw files.

    The raw pictures (`cuhk-03.mat`) only have to exist in this state, so the stand-in's are empty.
    """
    folder = root / "cuhk03"
    (folder / "cuhk03_release").mkdir(parents=True)
    (folder / "cuhk03_release" / "cuhk-03.mat").touch()
    for kind in ("detected", "labeled"):
        split = {
            "train": _cuhk03_items(folder, kind, _views(0, identities, PICTURES_PER_CAMERA)),
            "query": _cuhk03_items(folder, kind, _views(identities, TEST_IDENTITIES, 1)),
            "gallery": _cuhk03_items(folder, kind, _views(identities, TEST_IDENTITIES, PICTURES_PER_CAMERA, first=1)),
        }
        for protocol in ("classic", "new"):
            write_json(folder / f"splits_{protocol}_{kind}.json", [split])
        savemat(folder / f"cuhk03_new_protocol_config_{kind}.mat", _cuhk03_protocol(split))


def _cuhk03_items(folder: Path, kind: str, views: Iterator[PictureKey]) -> list[tuple[str, int, int]]:
    """Writes pictures `<camera pair>_<person>_<camera>_<number>.png` and returns (path, person, camera from 0)."""
    items = []
    for person, camera, number in views:
        path = folder / f"images_{kind}" / f"1_{person + 1:03d}_{camera}_{number + 1:02d}.png"
        write_picture(path)
        items.append((str(path), person, camera - 1))
    return items


def _cuhk03_protocol(split: dict[str, list[tuple[str, int, int]]]) -> dict[str, np.ndarray]:
    """The new protocol's own file: one list of all pictures, and indices into it, counted from 1."""
    items = [item for part in split.values() for item in part]
    ends = np.cumsum([len(part) for part in split.values()])
    starts = [0, *ends[:-1]]
    return {
        "filelist": np.array([[Path(path).name] for path, _, _ in items], dtype=object),
        "labels": np.array([person for _, person, _ in items]),
        **{f"{part}_idx": np.arange(a, b) + 1 for part, a, b in zip(split, starts, ends, strict=True)},
    }


IMAGE_LAYOUTS: dict[str, Callable[[Path, int], None]] = {
    "market1501": _market1501,
    "msmt17": _msmt17,
    "cuhk03": _cuhk03,
    "dukemtmcreid": _dukemtmcreid,
}
LAYOUTS = IMAGE_LAYOUTS | VIDEO_LAYOUTS


def _views(first_identity: int, identities: int, count: int, first: int = 0) -> Iterator[PictureKey]:
    """Every identity at every camera (from 1), `count` times, numbered from `first`."""
    for identity in range(first_identity, first_identity + identities):
        for camera in range(1, CAMERAS + 1):
            for number in range(first, first + count):
                yield identity, camera, number
