"""VeRi-776 (Liu et al., ICME 2016) as image and as video data set of torchreid: vehicles at 20 cameras.

Names such as `0002_c002_00030600_0.jpg` hold vehicle and camera. Training pictures of a vehicle at a camera make one
tracklet. In the test, a line of `test_track.txt` has the name of a tracklet, then its pictures; a picture that stands
twice in a line counts once. A query tracklet is the test tracklet that a published query picture comes from, with that
picture as its first frame: protocols that query by image use the published queries.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from ..errors import DataError
from ..host.compat import torchreid
from ..host.data import register_dataset
from .protocols import protocol_folder

NAME = "veri776"
_PICTURE = re.compile(r"(\d+)_c(\d+)_.*\.jpg", re.IGNORECASE)

VehicleLabels = tuple[int, int]
"""(vehicle, camera from 0)."""
Tracklet = tuple[tuple[str, ...], int, int]
"""(paths, vehicle, camera from 0)."""


class VeRi776(torchreid.data.ImageDataset):
    """Single pictures: those of name_train.txt, name_query.txt and name_test.txt.

    Args:
        root: folder of all data sets; the set lies in `veri776` or `VeRi` below it.
        **kwargs: as for every data set of torchreid.

    Raises:
        DataError: a folder or list is missing, a list is empty, or it has a name that is not one of VeRi-776's.
    """

    def __init__(self, root: str = "", **kwargs: Any) -> None:
        folder = protocol_folder(root, NAME)
        parts = {
            part: [(str(folder / f"image_{part}" / name), *labels_of(name)) for name in _listed(folder, part)]
            for part in ("train", "query", "test")
        }
        super().__init__(_relabelled(parts["train"]), parts["query"], parts["test"], **kwargs)


class VeRi776Video(torchreid.data.VideoDataset):
    """Tracklets; arguments and errors as of `VeRi776`."""

    def __init__(self, root: str = "", **kwargs: Any) -> None:
        folder = protocol_folder(root, NAME)
        gallery = _test_tracklets(folder)
        super().__init__(_training_tracklets(folder), _query_tracklets(folder, gallery), gallery, **kwargs)


def register() -> None:
    """Makes `veri776` known to torchreid, as image and as video data set; doing it again changes nothing."""
    register_dataset(NAME, VeRi776, "image")
    register_dataset(NAME, VeRi776Video, "video")


def labels_of(name: str) -> VehicleLabels:
    """Vehicle and camera of a picture: (2, 1) for `0002_c002_00030600_0.jpg`.

    Raises:
        DataError: another kind of name.
    """
    match = _PICTURE.fullmatch(name)
    if match is None:
        raise DataError(
            f"'{name}' is no name of a VeRi-776 picture, such as 0002_c002_00030600_0.jpg; copy the lists again"
        )
    return int(match[1]), int(match[2]) - 1


def _training_tracklets(folder: Path) -> list[Tracklet]:
    groups: dict[VehicleLabels, list[str]] = {}
    for name in sorted(_listed(folder, "train")):
        groups.setdefault(labels_of(name), []).append(str(folder / "image_train" / name))
    return _relabelled([(tuple(paths), *labels) for labels, paths in groups.items()])


def _test_tracklets(folder: Path) -> list[Tracklet]:
    listing = folder / "test_track.txt"
    tracklets = []
    for line in _lines(listing):
        names = dict.fromkeys(word for word in line.split() if _PICTURE.fullmatch(word))
        labels = {labels_of(name) for name in names}
        if len(labels) != 1:
            raise DataError(
                f"a line of '{listing}' should name pictures of one vehicle at one camera; got '{line[:80]}': copy the "
                "file again"
            )
        tracklets.append((tuple(str(folder / "image_test" / name) for name in names), *labels.pop()))
    return tracklets


def _query_tracklets(folder: Path, gallery: list[Tracklet]) -> list[Tracklet]:
    """For each query picture, its test tracklet; if none has it, the first one of its vehicle and camera."""
    by_name = {Path(path).name: paths for paths, *_ in gallery for path in paths}
    by_labels = {(vehicle, camera): paths for paths, vehicle, camera in reversed(gallery)}
    tracklets = []
    for name in _listed(folder, "query"):
        labels = labels_of(name)
        others = by_name.get(name, by_labels.get(labels, ()))
        frames = [path for path in others if Path(path).name != name]
        tracklets.append(((str(folder / "image_query" / name), *frames), *labels))
    return tracklets


def _relabelled(items: list[tuple[Any, int, int]]) -> list[tuple[Any, int, int]]:
    """Items whose vehicles count from 0, in the order of their numbers."""
    labels = {vehicle: label for label, vehicle in enumerate(sorted({vehicle for _, vehicle, _ in items}))}
    return [(paths, labels[vehicle], camera) for paths, vehicle, camera in items]


def _listed(folder: Path, part: str) -> list[str]:
    return _lines(folder / f"name_{part}.txt")


def _lines(path: Path) -> list[str]:
    """Lines of a list that are not empty."""
    lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    if not lines:
        raise DataError(f"'{path}' is empty; copy the file again")
    return lines
