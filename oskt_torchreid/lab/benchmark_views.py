"""The cost of drawing the views of a batch, against a scan of the data set for every set."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ..vkd.index import IdentityIndex, Tracklet
from ..vkd.sets import uniform_numbers
from ..vkd.views import STRATEGIES, Strategy

MARS_TRACKLETS, MARS_IDENTITIES, MARS_CAMERAS = 8298, 625, 6
WARM_UP = 3


@dataclass(frozen=True)
class DrawCost:
    """Median milliseconds for the views of one batch.

    Attributes:
        name: of the strategy, or "scan".
        draw_ms: which frames make up the sets of a batch.
    """

    name: str
    draw_ms: float


def measure_draws(sets: int = 32, num_views: int = 8, rounds: int = 30) -> tuple[float, list[DrawCost]]:
    """Times the draws of a batch on an index of the size of MARS.

    Args:
        sets: in a batch; 8 identities with 4 each make 32.
        num_views: frames of a set.
        rounds: batches that are timed, after a warm-up.

    Returns:
        (milliseconds to build the index, costs of all strategies and, last, of the scan).
    """
    tracklets = mars_like()
    start = time.perf_counter()
    index = IdentityIndex(tracklets)
    build_ms = 1e3 * (time.perf_counter() - start)
    anchors = np.random.default_rng(1).integers(len(tracklets), size=(WARM_UP + rounds, sets)).tolist()

    def drawn_by(draw: Strategy) -> Callable[[int], object]:
        return lambda own: draw(index, own, num_views, uniform_numbers)

    costs = [DrawCost(name, _median_ms(drawn_by(draw), anchors)) for name, draw in STRATEGIES.items()]
    return build_ms, [*costs, DrawCost("scan", _median_ms(lambda own: _scan(tracklets, own, num_views), anchors))]


def mars_like() -> list[Tracklet]:
    """Tracklets without files in the numbers of MARS' training part: each of 2 to 119 frames."""
    random = np.random.default_rng(0)
    more = random.integers(MARS_IDENTITIES, size=MARS_TRACKLETS - MARS_IDENTITIES)
    labels = np.concatenate([np.arange(MARS_IDENTITIES), more]).tolist()
    cameras = random.integers(MARS_CAMERAS, size=MARS_TRACKLETS).tolist()
    lengths = random.integers(2, 120, size=MARS_TRACKLETS).tolist()
    return [(("frame.jpg",) * length, *key, 0) for length, *key in zip(lengths, labels, cameras, strict=True)]


def _scan(tracklets: list[Tracklet], own: int, num_views: int) -> list[str]:
    """Multiview without an index: looks through the whole data set for the tracklets of one identity."""
    candidates = list(filter(lambda item: item[1] == tracklets[own][1], tracklets))
    order = np.random.permutation(len(candidates))
    chosen = [candidates[order[place % len(order)]][0] for place in range(num_views)]
    return [paths[np.random.randint(len(paths))] for paths in chosen]


def _median_ms(draw: Callable[[int], object], batches: list[list[int]]) -> float:
    seconds = []
    for batch in batches:
        start = time.perf_counter()
        for own in batch:
            draw(own)
        seconds.append(time.perf_counter() - start)
    return 1e3 * statistics.median(seconds[WARM_UP:])
