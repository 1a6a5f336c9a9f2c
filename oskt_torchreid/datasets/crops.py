"""A folder of crops, or a table of them, as data set `crops` of torchreid: pictures, or tracklets of them.

`oskt run oskt_osnet --data crops/` configures and names it. In a script:

    from oskt_torchreid.datasets import crops
    crops.configure(crops.CropSettings("crops/"))
    torchreid.data.ImageDataManager(sources="crops", height=256, width=128)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby
from typing import Any

from ..errors import ConfigError, DataError
from ..host.compat import torchreid
from ..host.data import image_dataset_names, register_dataset, video_dataset_names
from .checks import Item
from .crop_listing import AUTO, Crop, read_crops, split_identities
from .synthped import with_settings

NAME = "crops"
MOST_QUERIES = 4
LEAST_IDENTITIES = 4


@dataclass(frozen=True)
class CropSettings:
    """What the data set `crops` is.

    Attributes:
        path: a folder with a folder per identity, or a CSV, see `crop_listing.read_crops`; empty: not said yet.
        cameras: `auto`, `none`, or a regular expression.
        test_share: of the identities that are tested on, unless a table says who.
        seed: of the split.
        frame_gap: of tracklets: pictures of a source whose numbers are further apart begin another one; 0: never.
        decoded: whether every picture is decoded to see whether it can be read.
    """

    path: str = ""
    cameras: str = AUTO
    test_share: float = 0.5
    seed: int = 0
    frame_gap: int = 0
    decoded: bool = False

    @cached_property
    def crops(self) -> list[Crop]:
        """The pictures; they are looked for once, so that all stages of a run have the same.

        What cannot be read is said in the log once, too.
        """
        return read_crops(self.path, self.cameras, self.decoded)


class _Listing:
    """Train, query and gallery of some crops, with numbers for identities and sources.

    Args:
        settings: of the set.
        as_tracklets: whether an entry is a tracklet.
    """

    def __init__(self, settings: CropSettings, as_tracklets: bool) -> None:
        if not settings.path:
            raise ConfigError(
                "data set 'crops' has no pictures yet: say where they are, as --data crops/ or crops.path=crops/"
            )
        crops = settings.crops
        identities = sorted({crop.identity for crop in crops})
        self._sources = {name: number for number, name in enumerate(sorted({_source(crop) for crop in crops}))}
        parts = _parts(crops, identities, settings)
        self._gap, self._as_tracklets = settings.frame_gap, as_tracklets
        entries = {part: self._entries(members) for part, members in parts.items()}
        labels = {name: number for number, name in enumerate(sorted({entry[0].identity for entry in entries["train"]}))}
        others = {name: number for number, name in enumerate(identities)}
        self.train = [self._item(entry, labels) for entry in entries["train"]]
        self.gallery = [self._item(entry, others) for entry in entries["gallery"]]
        queries = entries["query"] or self._chosen(entries["gallery"])
        self.query = [self._item(entry, others) for entry in queries]

    def _entries(self, crops: Sequence[Crop]) -> list[tuple[Crop, ...]]:
        if not self._as_tracklets:
            return [(crop,) for crop in crops]
        ordered = sorted(crops, key=lambda crop: (crop.identity, _track(crop), crop.place))
        found: list[tuple[Crop, ...]] = []
        for _, members in groupby(ordered, key=lambda crop: (crop.identity, _track(crop))):
            found += _cut(list(members), self._gap)
        return found

    @staticmethod
    def _chosen(gallery: Sequence[tuple[Crop, ...]]) -> list[tuple[Crop, ...]]:
        """The first entry of every identity and source, at most four of an identity, as far apart as can be."""
        firsts: dict[tuple[str, str], tuple[Crop, ...]] = {}
        for entry in gallery:
            firsts.setdefault((entry[0].identity, _source(entry[0])), entry)
        queries = []
        for _, members in groupby(sorted(firsts), key=lambda key: key[0]):
            keys = list(members)
            step = max(1, -(-len(keys) // MOST_QUERIES))
            queries += [firsts[key] for key in keys[::step]]
        return queries

    def _item(self, entry: tuple[Crop, ...], labels: dict[str, int]) -> Item:
        paths = tuple(str(crop.path) for crop in entry)
        return (paths if self._as_tracklets else paths[0], labels[entry[0].identity], self._sources[_source(entry[0])])


def _parts(crops: Sequence[Crop], identities: Sequence[str], settings: CropSettings) -> dict[str, list[Crop]]:
    """Crops by part; queries are chosen later where a table does not name them.

    Raises:
        DataError: too few identities, a part without pictures, or identities that are trained and tested on.
    """
    given = any(crop.split for crop in crops)
    if not given and len(identities) < LEAST_IDENTITIES:
        raise DataError(
            f"'{settings.path}' has {len(identities)} identities ({', '.join(identities)}); at least "
            f"{LEAST_IDENTITIES} are needed, two to train on and two to test on. An identity is a folder directly in "
            "this one, or what the column 'identity' says"
        )
    tested = set() if given else split_identities(identities, settings.test_share, settings.seed)
    parts: dict[str, list[Crop]] = {"train": [], "query": [], "gallery": []}
    for crop in crops:
        parts[crop.split or ("gallery" if crop.identity in tested else "train")].append(crop)
    if empty := [part for part in ("train", "gallery") if not parts[part]]:
        raise DataError(f"no line of '{settings.path}' has the split {' or '.join(empty)}; each needs some")
    tested = {crop.identity for part in ("query", "gallery") for crop in parts[part]}
    if both := sorted({crop.identity for crop in parts["train"]} & tested):
        raise DataError(
            f"{len(both)} identities of '{settings.path}' are trained on and tested on, such as '{both[0]}'; to find "
            "people that a network knows says little: give each of them one side"
        )
    return parts


def _source(crop: Crop) -> str:
    """A camera is the same for everybody; another source is one of its identity alone."""
    return crop.source if crop.by_camera else f"{crop.identity}/{crop.source}"


def _track(crop: Crop) -> str:
    """What holds a tracklet together: its folder below the identity's, or its camera."""
    return f"{crop.source if crop.by_camera else ''}|{crop.path.parent}"


def _cut(crops: list[Crop], gap: int) -> list[tuple[Crop, ...]]:
    """Tracklets of the pictures of one source, in order: cut where numbers of frames are more than `gap` apart."""
    found: list[list[Crop]] = [crops[:1]]
    for before, after in zip(crops, crops[1:], strict=False):
        first, second = before.place[1], after.place[1]
        apart = bool(gap and first and second) and abs(second[-1] - first[-1]) > gap
        if apart:
            found.append([])
        found[-1].append(after)
    return [tuple(members) for members in found]


class Crops(torchreid.data.ImageDataset):
    """A folder or a table of crops.

    Args:
        root: not used: the folder is part of the settings.
        settings: what it is.
        name: not used: as of every data set with settings.
        **kwargs: as for every image data set of torchreid.

    Raises:
        ConfigError: no folder is said.
        DataError: a folder or table that cannot be read.
    """

    has_own_place = True

    def __init__(self, root: str = "", settings: CropSettings = CropSettings(), name: str = NAME, **kwargs: Any):
        parts = _Listing(settings, as_tracklets=False)
        super().__init__(parts.train, parts.query, parts.gallery, **kwargs)


class CropTracklets(torchreid.data.VideoDataset):
    """Tracklets of a folder or a table of crops; arguments and errors as of `Crops`.

    The pictures of an identity and camera, or of a folder below an identity's, are a tracklet, in the order of the
    numbers in their names.
    """

    has_own_place = True

    def __init__(self, root: str = "", settings: CropSettings = CropSettings(), name: str = NAME, **kwargs: Any):
        parts = _Listing(settings, as_tracklets=True)
        super().__init__(parts.train, parts.query, parts.gallery, **kwargs)


def keys_of_run(path: str, sources: Sequence[str] = (), targets: Sequence[str] = ()) -> dict[str, Any]:
    """Keys of a run that reads crops wherever no other data set is named; without a `path`, no crops."""
    own = [NAME] if path else []
    return {"crops.path": path, "data.sources": [*sources] or own, "data.targets": [*targets] or own}


def register() -> None:
    """Makes the name known to torchreid, as pictures and as tracklets; doing it again changes nothing."""
    if NAME not in image_dataset_names():
        register_dataset(NAME, with_settings(Crops, NAME, CropSettings()), "image")
    if NAME not in video_dataset_names():
        register_dataset(NAME, with_settings(CropTracklets, NAME, CropSettings()), "video")


def configure(settings: CropSettings) -> None:
    """Says what `crops` is from now on, and has its pictures looked for again; existing data sets do not change.

    Raises:
        ConfigError: settings of another type.
    """
    if not isinstance(settings, CropSettings):
        raise ConfigError(f"crops takes CropSettings, but got {settings!r:.100}")
    settings = replace(settings)  # which has looked for no pictures yet
    register_dataset(NAME, with_settings(Crops, NAME, settings), "image", replace=True)
    register_dataset(NAME, with_settings(CropTracklets, NAME, settings), "video", replace=True)
