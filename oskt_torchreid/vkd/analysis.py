"""Curves of retrieval from single images: against views or time in a gallery set, and against frames of a tracklet.

Every frame passes through the network once; all sets of all curves are then means of features (paper: section 4.3).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..errors import ConfigError, DataError
from ..host.ranking import INTERPOLATED, distance_matrix, rank_distances
from .evaluate import FRAMES_AT_ONCE, Embed, SideFeatures, check_protocols, evaluate_protocols, features_of_batches
from .index import IdentityIndex
from .views import STRATEGIES, evenly_spaced

COUNTS = (1, 2, 4, 8)
DRAWS = 5
VIEWS, TIME = "multiview", "temporal"  # strategies of views.py

Curve = dict[int, float]
"""mAP (interpolated, a fraction) by number of frames."""


@dataclass(frozen=True, eq=False)
class FrameFeatures:
    """Features of all frames of the tracklets of one side.

    Attributes:
        frames: one tracklet after the other `[frames, channels]`.
        starts: where each tracklet begins in `frames` `[tracklets]`.
        lengths: frames of each tracklet `[tracklets]`.
        pids: identities `[tracklets]`.
        camids: cameras `[tracklets]`.
    """

    frames: Tensor
    starts: np.ndarray
    lengths: np.ndarray
    pids: np.ndarray
    camids: np.ndarray

    @classmethod
    def of(cls, tracklets: Sequence[Tensor], pids: Sequence[int], camids: Sequence[int]) -> FrameFeatures:
        """Of tracklets `[frames, channels]` each, with their labels."""
        lengths = np.array([len(frames) for frames in tracklets])
        return cls(torch.cat(list(tracklets)), lengths.cumsum() - lengths, lengths, np.array(pids), np.array(camids))

    def chosen(self, tracklets: np.ndarray) -> FrameFeatures:
        """Some tracklets, by number or as a mask; the frames are shared."""
        labels = (self.starts, self.lengths, self.pids, self.camids)
        return FrameFeatures(self.frames, *(values[tracklets] for values in labels))

    def followed_by(self, other: FrameFeatures) -> FrameFeatures:
        """Both sides' tracklets, these first."""
        labels = [(self.starts, other.starts + len(self.frames)), (self.lengths, other.lengths)]
        labels += [(self.pids, other.pids), (self.camids, other.camids)]
        return FrameFeatures(torch.cat([self.frames, other.frames]), *(np.concatenate(pair) for pair in labels))

    def set_embeddings(self, tracklets: np.ndarray, frames: np.ndarray) -> Tensor:
        """Embeddings `[sets, channels]` of sets of frames.

        Args:
            tracklets: which tracklet each frame is taken from `[sets, N]`.
            frames: which frame of it `[sets, N]`.
        """
        places = torch.from_numpy(self.starts[tracklets] + frames)
        first, *others = places.unbind(1)
        return sum((self.frames[place] for place in others), self.frames[first]) / places.shape[1]

    def side(self, count: int) -> SideFeatures:
        """A side whose tracklets have `count` evenly spaced frames each (shorter ones are cycled); 0: all frames."""
        if count:
            frames = evenly_spaced(self.lengths, count)
            own = np.broadcast_to(np.arange(len(self.lengths))[:, None], frames.shape)
            sets = self.set_embeddings(own, frames)
        else:
            places = zip(self.starts, self.starts + self.lengths, strict=True)
            sets = torch.stack([self.frames[start:end].mean(dim=0) for start, end in places])
        return SideFeatures(sets, self.first_frames(), self.pids, self.camids)

    def first_frames(self) -> Tensor:
        """Features of the tracklets' first frames `[tracklets, channels]`."""
        return self.frames[torch.from_numpy(self.starts)]


@torch.no_grad()
def extract_frames(
    embed: Embed, loader: Iterable[Any], frames_at_once: int = FRAMES_AT_ONCE, side: str = "side"
) -> FrameFeatures:
    """Runs every tracklet of a loader through a network, once, and keeps every frame; as `evaluate.extract_side`."""
    tracklets, pids, camids = [], [], []
    for features, labels, cameras in features_of_batches(embed, loader, frames_at_once, side):
        tracklets += features
        pids += labels
        camids += cameras
    return FrameFeatures.of(tracklets, pids, camids)


# ---- frames per tracklet ---------------------------------------------------------------------------------------------


def gallery_curve(
    query: FrameFeatures,
    gallery: FrameFeatures,
    counts: Sequence[int] = COUNTS,
    protocol: str = "I2V",
    **options: Any,
) -> Curve:
    """mAP against the number of frames that represent a tracklet.

    Args:
        query: queries; their tracklets are cut down too, which matters for `V2V` and for queries in the gallery.
        gallery: gallery.
        counts: numbers of evenly spaced frames.
        protocol: `I2V` or `V2V`.
        **options: `query_in_gallery` and `no_camera` of `evaluate_protocols`.

    Raises:
        ConfigError: a protocol of single gallery images, no count, or one that no tracklet of the gallery has.
        DataError: no query has a match.
    """
    check_protocols([protocol])
    if not protocol.endswith("V"):
        raise ConfigError(
            f"frames per gallery tracklet make no difference to protocol {protocol}, whose gallery is of single "
            "images; allowed: I2V, V2V"
        )
    _check_counts(counts, int(gallery.lengths.max()))
    return {
        count: evaluate_protocols(query.side(count), gallery.side(count), (protocol,), **options)[protocol][
            f"mAP_{INTERPOLATED}"
        ]
        for count in counts
    }


# ---- views against time ----------------------------------------------------------------------------------------------


class _Round(NamedTuple):
    """Queries that share a gallery.

    Attributes:
        images: their first frames' features `[queries, channels]`.
        pids: their identities `[queries]`.
        pool: tracklets that gallery sets are drawn from, one set beginning in each.
        identities: of the pool.
        weight: how many of the queries have a match in it.
    """

    images: Tensor
    pids: np.ndarray
    pool: FrameFeatures
    identities: IdentityIndex
    weight: int


def views_curves(
    query: FrameFeatures,
    gallery: FrameFeatures,
    counts: Sequence[int] = COUNTS,
    draws: int = DRAWS,
    seed: int = 0,
    no_camera: bool = False,
) -> dict[str, Curve]:
    """mAP from an image to sets of N frames: from as many views as there are, or from one tracklet over time.

    A query is a tracklet's first frame. Its gallery holds the images of *other* cameras, queries' tracklets included:
    one set begins in each of their tracklets, and has N frames by the strategies of `views.py`: `multiview`, from other
    tracklets of the identity, cameras taking turns; or `temporal`, from the same tracklet, one of each of N equal
    chunks. Both galleries so have the same identities, sizes and cameras. Identities without a query, such as
    distractors, are left out, because a set of several identities makes no sense.

    Args:
        query: queries.
        gallery: gallery.
        counts: numbers N of frames in a set; missing frames or tracklets are filled by cycling.
        draws: random draws that are averaged.
        seed: of the draws; a set of one frame has the same one in both strategies.
        no_camera: cameras are unknown: sets are drawn from the gallery's tracklets of any camera.

    Returns:
        A curve for `multiview` and one for `temporal`.

    Raises:
        ConfigError: no count, or one that no tracklet has; no draw.
        DataError: no query has a match.
    """
    _check_counts(counts, int(max(query.lengths.max(), gallery.lengths.max())))
    if draws < 1:
        raise ConfigError(f"draws is {draws}; allowed: 1 or more")
    rounds = [each for each in _rounds(query, gallery, no_camera) if each.weight]
    if not rounds:
        raise DataError(
            f"none of {len(query.pids)} queries has its identity at another camera; give no_camera=True where cameras "
            "are unknown, or check the labels"
        )
    curves: dict[str, Curve] = {}
    for strategy in (VIEWS, TIME):
        curves[strategy] = {}
        for count in counts:
            random = np.random.default_rng([seed, count])
            drawn = [_mean_ap(rounds, strategy if count > 1 else TIME, count, random) for _ in range(draws)]
            curves[strategy][count] = float(np.mean(drawn))
    return curves


def _rounds(query: FrameFeatures, gallery: FrameFeatures, no_camera: bool) -> Iterator[_Round]:
    """One for all queries, or for those of each camera."""
    images = query.first_frames()
    everything = gallery if no_camera else query.followed_by(gallery)
    asked_for = np.isin(everything.pids, query.pids)
    for camera in (None,) if no_camera else np.unique(query.camids):
        asking = np.ones(len(query.pids), bool) if no_camera else query.camids == camera
        kept = asked_for if no_camera else asked_for & (everything.camids != camera)
        if kept.any():
            pool = everything.chosen(kept)
            labels = zip(pool.lengths.tolist(), pool.pids.tolist(), pool.camids.tolist(), strict=True)
            index = IdentityIndex([(range(length), pid, camid) for length, pid, camid in labels], no_camera)
            pids = query.pids[asking]
            weight = int(np.isin(pids, pool.pids).sum())
            yield _Round(images[torch.from_numpy(asking)], pids, pool, index, weight)


def _mean_ap(rounds: Sequence[_Round], strategy: str, count: int, random: np.random.Generator) -> float:
    """Mean over all queries with a match, for one draw of every set."""
    values = []
    for each in rounds:
        drawn = [
            STRATEGIES[strategy](each.identities, own, count, random.random) for own in range(len(each.identities))
        ]
        tracklets, frames = (np.stack(part) for part in zip(*drawn, strict=True))
        distances = distance_matrix(each.images, each.pool.set_embeddings(tracklets, frames), "cosine")
        values.append(rank_distances(distances, each.pids, each.pool.pids).mean_ap)
    return float(np.average(values, weights=[each.weight for each in rounds]))


def _check_counts(counts: Sequence[int], longest: int) -> None:
    if not counts or min(counts) < 1 or max(counts) > longest:
        raise ConfigError(
            f"numbers of frames are {list(counts)}; allowed: one or more, each from 1 to the {longest} frames of the "
            "longest tracklet"
        )
