"""Which tracklets each identity has, found once and kept as arrays: no draw of views looks through the data set."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from ..errors import DataError

Tracklet = tuple[Any, ...]
"""(paths of the frames in order, label, camera, number of the data set), as torchreid's video data sets have them."""


class IdentityIndex:
    """Tracklets by identity and camera.

    Four tracklets with the labels 7, 3, 7, 7 at the cameras 1, 0, 0, 1 have the identities 1, 0, 1, 1 (numbers in the
    order of the labels). Sorted by identity and camera their order is 1, 2, 0, 3: identity 0 has the first place,
    identity 1 the other three. Their turns are 0, 0, 0, 1, because tracklet 3 is the second one of its identity and
    camera.

    Args:
        tracklets: (paths, label, camera, ...) each; kept as they are.
        no_camera: whether to treat all tracklets as if one camera had taken them.

    Attributes:
        tracklets: as given, T of them.
        lengths: frames of each tracklet, [T].
        cameras: camera of each tracklet, [T]; 0 without camera labels.
        identities: identity of each tracklet, 0 to I - 1, [T].
        order: tracklets sorted by identity, then camera, [T].
        starts: identity i has the places starts[i] to starts[i + 1] - 1 of `order`, [I + 1].
        turns: how many tracklets of the same identity and camera come before, in `order`, [T].

    Raises:
        DataError: no tracklet, or one without frames.
    """

    def __init__(self, tracklets: Sequence[Tracklet], no_camera: bool = False) -> None:
        self.tracklets = tracklets
        self.lengths = np.array([len(item[0]) for item in tracklets], dtype=np.int64)
        _check(tracklets, self.lengths)
        labels = np.array([item[1] for item in tracklets])
        self.cameras = np.array([0 if no_camera else item[2] for item in tracklets])
        _, self.identities = np.unique(labels, return_inverse=True)
        self.order = np.lexsort((self.cameras, self.identities))
        self.starts = np.concatenate([[0], np.cumsum(np.bincount(self.identities))])
        self.turns = _places_in_runs(self.identities[self.order], self.cameras[self.order])

    def __len__(self) -> int:
        return len(self.tracklets)

    @property
    def num_identities(self) -> int:
        """Number of identities."""
        return len(self.starts) - 1

    def places(self, identity: int) -> slice:
        """Places in `order` and `turns` of an identity's tracklets."""
        return slice(self.starts[identity], self.starts[identity + 1])

    def count_poor(self) -> tuple[int, int]:
        """Numbers of identities with a single camera and with a single tracklet."""
        first_views = np.bincount(self.identities[self.order], weights=self.turns == 0)
        return int((first_views == 1).sum()), int((np.diff(self.starts) == 1).sum())


def as_tracklets(items: Iterable[Tracklet], no_camera: bool = False, alone: Iterable[int] = ()) -> list[Tracklet]:
    """Tracklets of any data set: those of a video set as they are, pictures of an image set put together.

    Pictures of one identity at one camera become the frames of one tracklet, in the order of their paths. Where cameras
    are not known, pictures cannot be grouped: each is a tracklet of its own.

    Args:
        items: (path or paths, label, camera, ...) each.
        no_camera: whether cameras are not known.
        alone: labels that are not an identity (junk, distractors): their pictures are not grouped.
    """
    alone = set(alone)
    tracklets: list[Tracklet] = []
    groups: dict[Tracklet, list[str]] = {}
    for paths, *labels in items:
        if not isinstance(paths, str):
            tracklets.append((tuple(paths), *labels))
        elif no_camera or labels[0] in alone:
            tracklets.append(((paths,), *labels))
        else:
            groups.setdefault(tuple(labels), []).append(paths)
    return tracklets + [(tuple(sorted(paths)), *labels) for labels, paths in groups.items()]


def completed(queries: Sequence[Tracklet], gallery: Sequence[Tracklet]) -> list[Tracklet]:
    """Queries followed by the frames that the gallery has of the same identity at the same camera.

    Image data sets publish one picture of each as a query and leave the others in the gallery, where that query's
    ranking passes them over: together they are the tracklet, whose first frame is the published picture.

    Args:
        queries: (paths, label, camera, ...) each.
        gallery: the same, one tracklet of an identity at a camera.

    Example: a query `(("q.jpg",), 7, 0)` and the gallery `(("a.jpg", "b.jpg"), 7, 0), (("c.jpg",), 7, 1)` give
    `(("q.jpg", "a.jpg", "b.jpg"), 7, 0)`.
    """
    frames = {tuple(labels): paths for paths, *labels in gallery}
    return [(paths + frames.get(tuple(labels), ()), *labels) for paths, *labels in queries]


def _check(tracklets: Sequence[Tracklet], lengths: np.ndarray) -> None:
    if not len(tracklets):
        raise DataError("there are no tracklets to draw views from; check the training part of the data set")
    if not lengths.all():
        _, label, camera, *_ = tracklets[int(np.argmin(lengths))]
        raise DataError(
            f"a tracklet of identity {label} at camera {camera} has no frames; take it out of the data set, or bring "
            "its pictures back"
        )


def _places_in_runs(*columns: np.ndarray) -> np.ndarray:
    """Place of each row within its run of equal rows: (5, 5, 6, 6, 6) gives (0, 1, 0, 1, 2)."""
    places = np.arange(len(columns[0]))
    begins = np.ones(len(places), dtype=bool)
    begins[1:] = np.any([column[1:] != column[:-1] for column in columns], axis=0)
    return places - np.maximum.accumulate(np.where(begins, places, 0))
