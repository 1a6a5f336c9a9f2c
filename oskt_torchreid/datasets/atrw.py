"""ATRW, Amur tigers (Li et al., ACM MM 2020), as image and as video data set of torchreid.

The re-identification part has pictures of tigers and an identity for each; there are no cameras and no tracklets. An
identity is one flank of a tiger. Training sets are drawn from all pictures of an identity.

* `atrw` only needs the training archive: every third identity, in the order of their numbers, is kept for the test.
* `atrw_challenge` trains on all of them and tests on the pictures of the CVWC 2019 challenge, whose labels are
  published as `gt_test_plain.json`.

In the test the pictures of an identity, sorted by name, are cut into equal sets of up to four; an identity has two at
least. The first set is the query, the others are in the gallery; of single pictures, the first one. An identity with a
single picture is in the gallery only. Queries have camera 0 and the gallery camera 1, for pictures of the same camera
and identity would not count. These are not the challenge's own numbers, which leave out neighbouring video frames.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from ..errors import DataError
from ..files import read_json
from ..host.compat import torchreid
from ..host.data import register_dataset
from .protocols import protocol_folder

TEST_EVERY = 3
SET_SIZE = 4
QUERY_CAMERA, GALLERY_CAMERA = 0, 1

Tigers = dict[int, list[str]]
"""Paths of the pictures of each identity, sorted."""
Tracklet = tuple[tuple[str, ...], int, int]
"""(paths, identity, camera)."""


class ATRW(torchreid.data.ImageDataset):
    """Single pictures; every third identity of the training list is for the test.

    Args:
        root: folder of all data sets; the set lies in `atrw` below it.
        **kwargs: as for every data set of torchreid.

    Attributes:
        variant: registered name, which determines the test.

    Raises:
        DataError: a folder or list is missing or damaged, a listed picture is missing, or there is no identity to test.
    """

    variant: ClassVar[str] = "atrw"

    def __init__(self, root: str = "", **kwargs: Any) -> None:
        train, query, gallery = _tracklets(root, self.variant)
        others = [(paths[1:], identity, GALLERY_CAMERA) for paths, identity, _ in query]
        first = [(paths[0], identity, camera) for paths, identity, camera in query]
        super().__init__(_pictures(train), first, _pictures(others + gallery), **kwargs)


class ATRWVideo(torchreid.data.VideoDataset):
    """Sets of pictures as tracklets; arguments, attributes and errors as of `ATRW`."""

    variant: ClassVar[str] = "atrw"

    def __init__(self, root: str = "", **kwargs: Any) -> None:
        super().__init__(*_tracklets(root, self.variant), **kwargs)


class ATRWChallenge(ATRW):
    """Single pictures; all training identities, and the test of the challenge."""

    variant = "atrw_challenge"


class ATRWChallengeVideo(ATRWVideo):
    """Sets of pictures; all training identities, and the test of the challenge."""

    variant = "atrw_challenge"


def register() -> None:
    """Makes both variants known to torchreid, as image and as video data sets; doing it again changes nothing."""
    for dataset in (ATRW, ATRWChallenge):
        register_dataset(dataset.variant, dataset, "image")
    for dataset in (ATRWVideo, ATRWChallengeVideo):
        register_dataset(dataset.variant, dataset, "video")


def _tracklets(root: str, variant: str) -> tuple[list[Tracklet], list[Tracklet], list[Tracklet]]:
    """Train (labels from 0), query and gallery."""
    folder = protocol_folder(root, variant)
    known = _listed(folder)
    if variant == "atrw":
        tested = sorted(known)[TEST_EVERY - 1 :: TEST_EVERY]
        test = {identity: known.pop(identity) for identity in tested}
    else:
        test = _challenge(folder)
    train = [(tuple(paths), label, QUERY_CAMERA) for label, (_, paths) in enumerate(sorted(known.items()))]
    query, gallery = [], []
    for identity, paths in sorted(test.items()):
        sets = _sets(paths)
        query += [(part, identity, QUERY_CAMERA) for part in sets[:-1][:1]]
        gallery += [(part, identity, GALLERY_CAMERA) for part in (sets[1:] or sets)]
    if not train or not query:
        raise DataError(
            f"'{folder}' has {len(known)} identities to train on and {len(query)} to query with; copy its lists again"
        )
    return train, query, gallery


def _pictures(tracklets: list[Tracklet]) -> list[tuple[str, int, int]]:
    return [(path, identity, camera) for paths, identity, camera in tracklets for path in paths]


def _sets(paths: list[str]) -> list[tuple[str, ...]]:
    """Equal parts of up to four; five pictures give three and two."""
    count = min(len(paths), max(2, -(-len(paths) // SET_SIZE)))
    return [tuple(part.tolist()) for part in np.array_split(np.array(paths), count)]


def _listed(folder: Path) -> Tigers:
    """Identities of reid_list_train.csv, whose lines are "identity,picture"."""
    listing = folder / "reid_list_train.csv"
    pairs = []
    with open(listing, encoding="utf-8-sig", newline="") as stream:
        for line in filter(None, csv.reader(stream)):
            if len(line) != 2 or not line[0].strip().isdigit():
                raise DataError(f"a line of '{listing}' should be 'identity,picture'; got '{','.join(line)}'")
            pairs.append((int(line[0]), folder / "train" / line[1].strip()))
    return _grouped(pairs, listing)


def _challenge(folder: Path) -> Tigers:
    """Identities of gt_test_plain.json, a list of {"imgid": number of the picture, "entityid": identity, ...}."""
    labels = folder / "gt_test_plain.json"
    pictures = {int(path.stem): path for path in (folder / "test").iterdir() if path.stem.isdigit()}
    try:
        numbers = [(int(entry["entityid"]), int(entry["imgid"])) for entry in read_json(labels, DataError)]
    except (KeyError, TypeError, ValueError) as reason:
        raise DataError(f"'{labels}' should be a list of entries with imgid and entityid; copy it again") from reason
    missing = folder / "test"
    return _grouped([(tiger, pictures.get(number, missing / f"{number:06d}.jpg")) for tiger, number in numbers], labels)


def _grouped(pairs: Iterable[tuple[int, Path]], listing: Path) -> Tigers:
    """Pictures by identity; each has to be there."""
    tigers: Tigers = {}
    for identity, path in pairs:
        if not path.is_file():
            raise DataError(f"'{listing}' lists '{path}', which is missing; unpack the pictures again")
        tigers.setdefault(identity, []).append(str(path))
    return {identity: sorted(paths) for identity, paths in tigers.items()}
