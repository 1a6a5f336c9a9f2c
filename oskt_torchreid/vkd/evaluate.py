"""The four protocols: sets or single images as queries, sets or single images as gallery (paper: section 4.1).

Every tracklet passes through the network once. Its frames' features give both its set embedding, their mean, and its
image's, the feature of its first frame; `V2V`, `I2V`, `V2I` and `I2I` then are four distance matrices.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from tabulate import tabulate
from torch import Tensor
from tqdm.auto import tqdm

from ..batches import batches_of
from ..errors import ConfigError, DataError
from ..host.distributed import is_rank_zero
from ..host.evaluation import RERANKED
from ..host.ranking import INTERPOLATED, REPORTED_RANKS, TRAPEZOID, Ranking, rank_features, rank_parts
from ..host.reranking import Reranking

PROTOCOLS = ("V2V", "I2V", "V2I", "I2I")
FRAMES_AT_ONCE = 64
AVERAGE_PRECISIONS = (INTERPOLATED, TRAPEZOID)

Embed = Callable[[Tensor], Tensor]
"""Frames `[frames, 3, height, width]` to features `[frames, channels]`."""
ProtocolNumbers = dict[str, dict[str, float]]
"""Per protocol: `mAP_interpolated`, `mAP_trapezoid`, `mINP`, `rank1`, `rank5`, `rank10`, `rank20` as fractions."""


@dataclass(frozen=True, eq=False)
class SideFeatures:
    """Features and labels of the tracklets of one side (queries or gallery).

    Attributes:
        sets: set embeddings `[tracklets, channels]`.
        images: features of the first frames `[tracklets, channels]`.
        pids: identities `[tracklets]`.
        camids: cameras `[tracklets]`.
    """

    sets: Tensor
    images: Tensor
    pids: np.ndarray
    camids: np.ndarray

    def of(self, kind: str) -> Tensor:
        """Features of sets (`V`) or of images (`I`)."""
        return self.sets if kind == "V" else self.images

    def followed_by(self, other: SideFeatures) -> SideFeatures:
        """Both sides' tracklets, these first."""
        joined = (torch.cat([self.sets, other.sets]), torch.cat([self.images, other.images]))
        labels = ((self.pids, other.pids), (self.camids, other.camids))
        return SideFeatures(*joined, *(np.concatenate(pair) for pair in labels))


@torch.no_grad()
def extract_side(
    embed: Embed, loader: Iterable[Any], frames_at_once: int = FRAMES_AT_ONCE, side: str = "side"
) -> SideFeatures:
    """Runs every tracklet of a loader through a network, once.

    Args:
        embed: gives features `[frames, channels]` of frames `[frames, 3, height, width]`, which come on the CPU.
        loader: batches with `img [sets, frames, 3, height, width]` (or `[images, 3, height, width]`, or a list of
            sets of different lengths), `pid` and `camid`.
        frames_at_once: longest batch of frames for the network, for tracklets of any length.
        side: `query` or `gallery`, for messages.

    Raises:
        ConfigError: `frames_at_once` below 1.
        DataError: no tracklets, or one without frames.
    """
    sets, images, pids, camids = [], [], [], []
    for features, labels, cameras in features_of_batches(embed, loader, frames_at_once, side):
        sets += [frames.mean(dim=0) for frames in features]
        images += [frames[0] for frames in features]
        pids += labels
        camids += cameras
    return SideFeatures(torch.stack(sets), torch.stack(images), np.asarray(pids), np.asarray(camids))


def features_of_batches(
    embed: Embed, loader: Iterable[Any], frames_at_once: int, side: str
) -> Iterator[tuple[list[Tensor], list[int], list[int]]]:
    """Features `[frames, channels]` of each tracklet of a batch, their identities and their cameras, batch by batch.

    Arguments and errors are those of `extract_side`.
    """
    if frames_at_once < 1:
        raise ConfigError(f"frames_at_once is {frames_at_once}; allowed: 1 or more")
    found = False
    total = len(loader) if isinstance(loader, Sized) else None
    hidden = None if is_rank_zero() else True
    for batch in tqdm(batches_of(loader), side, total, disable=hidden, leave=False, unit="batch"):
        labels = (np.asarray(batch[name]).tolist() for name in ("pid", "camid"))
        features = _frame_features(embed, batch["img"], frames_at_once, side)
        found = found or bool(features)
        yield features, *labels
    if not found:
        raise DataError(
            f"the {side} has no tracklets, so there is nothing to evaluate; check the data set's {side} folder or list"
        )


def _frame_features(embed: Embed, sets: Iterable[Tensor], frames_at_once: int, side: str) -> list[Tensor]:
    """Features `[frames, channels]` of each set, on the CPU in 32 bits."""
    sets = [frames.unsqueeze(0) if frames.dim() == 3 else frames for frames in sets]
    lengths = [len(frames) for frames in sets]
    if 0 in lengths:
        raise DataError(f"a tracklet of the {side} has no frames; each needs one or more")
    features = [embed(part).float().cpu() for part in torch.cat(sets).split(frames_at_once)]
    return list(torch.cat(features).split(lengths))


def evaluate_protocols(
    query: SideFeatures,
    gallery: SideFeatures,
    protocols: Sequence[str] = ("V2V", "I2V"),
    query_in_gallery: bool = False,
    no_camera: bool = False,
    rerank: bool = False,
    ranks: Sequence[int] = REPORTED_RANKS,
) -> ProtocolNumbers:
    """CMC and mean average precision of each protocol, by cosine distance.

    Args:
        query: queries.
        gallery: gallery.
        protocols: of `V2V`, `I2V`, `V2I` and `I2I`; the first letter is the kind of query, the last the kind of gallery
            entry: `V` the whole set, `I` its first frame.
        query_in_gallery: add the queries to the gallery, as is usual on MARS; none ever finds itself.
        no_camera: gallery entries of a query's own camera stay in, for data sets whose cameras are unknown (all one or
            -1); only a query's own copy is left out.
        rerank: the same for re-ranked distances as well, with the prefix `reranked_`.
        ranks: places of the CMC curve; the first is always among them.

    Raises:
        ConfigError: unknown protocol, or none.
        DataError: no query has a match.
    """
    check_protocols(protocols)
    if query_in_gallery:
        gallery = query.followed_by(gallery)
    cameras = _cameras(query, gallery, query_in_gallery, no_camera)
    places = sorted({1, *ranks})
    return {protocol: _measured(protocol, query, gallery, cameras, rerank, places) for protocol in protocols}


def check_protocols(protocols: Sequence[str]) -> None:
    """Raises `ConfigError` for an unknown protocol, or none."""
    if isinstance(protocols, str) or not isinstance(protocols, Sequence):
        raise ConfigError(f"protocols are {protocols!r}; give a list of {', '.join(PROTOCOLS)}")
    unknown = [protocol for protocol in protocols if protocol not in PROTOCOLS]
    if unknown or not protocols:
        raise ConfigError(f"protocols are {list(protocols)}; allowed: one or more of {', '.join(PROTOCOLS)}")


def _cameras(
    query: SideFeatures, gallery: SideFeatures, query_in_gallery: bool, no_camera: bool
) -> tuple[np.ndarray | None, np.ndarray | None]:
    if not no_camera:
        return query.camids, gallery.camids
    if not query_in_gallery:
        return None, None
    # Each query has its own camera number, shared only with its copy in front of the gallery.
    own = np.arange(len(query.pids))
    return own, np.concatenate([own, np.full(len(gallery.pids) - len(own), -1)])


def _measured(
    protocol: str,
    query: SideFeatures,
    gallery: SideFeatures,
    cameras: tuple[Any, Any],
    rerank: bool,
    places: Sequence[int],
) -> dict[str, float]:
    sides, labels = (query.of(protocol[0]), gallery.of(protocol[-1])), (query.pids, gallery.pids, *cameras)
    found = _numbers(rank_features(*sides, labels, "cosine", AVERAGE_PRECISIONS), places)
    if rerank:
        shape = (len(query.pids), len(gallery.pids))
        parts = Reranking(*sides, "cosine").parts()
        numbers = _numbers(rank_parts(parts, shape, labels, AVERAGE_PRECISIONS), places)
        found |= {f"{RERANKED}{name}": value for name, value in numbers.items()}
    return found


def _numbers(rankings: Mapping[str, Ranking], places: Sequence[int]) -> dict[str, float]:
    """Mean APs, mINP and places of the CMC curve, which are the same for both."""
    averages = {f"mAP_{ap}": ranking.mean_ap for ap, ranking in rankings.items()}
    averages["mINP"] = rankings[INTERPOLATED].mean_inp
    return {**averages, **{f"rank{place}": rankings[INTERPOLATED].at(place) for place in places}}


def protocol_table(results: ProtocolNumbers) -> str:
    """The results as a Markdown table in percent, one row per protocol; both average precisions are named."""
    names = list(next(iter(results.values())))
    rows = [(protocol, *(f"{100 * values[name]:.1f}" for name in names)) for protocol, values in results.items()]
    return tabulate(rows, headers=("protocol", *names), tablefmt="github", disable_numparse=True)
