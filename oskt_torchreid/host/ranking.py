"""What torchreid's evaluation computes and does not return."""

import contextlib
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np

from ..errors import DataError
from .compat import torchreid

MAX_RANK = 50  # length of torchreid's CMC curve
REPORTED_RANKS = (1, 5, 10, 20)


@contextlib.contextmanager
def recorded_ranking() -> Iterator[list[tuple[np.ndarray, float]]]:
    """Inside the block, keeps the (CMC curve, mAP) of every evaluation, of which torchreid returns rank-1 and mAP.

    Yields:
        List that grows by one entry per evaluated target, in order.
    """
    rankings: list[tuple[np.ndarray, float]] = []
    original = torchreid.metrics.evaluate_rank

    def recording(distmat: Any, q_pids: Any, g_pids: Any, q_camids: Any, g_camids: Any, **kwargs: Any) -> Any:
        _check_gallery(q_pids, g_pids, q_camids, g_camids)
        rankings.append(original(distmat, q_pids, g_pids, q_camids, g_camids, **kwargs))
        return rankings[-1]

    torchreid.metrics.evaluate_rank = recording
    try:
        yield rankings
    finally:
        torchreid.metrics.evaluate_rank = original


def _check_gallery(q_pids: np.ndarray, g_pids: np.ndarray, q_camids: np.ndarray, g_camids: np.ndarray) -> None:
    """Raises DataError where torchreid's CMC curves would have different lengths, which NumPy cannot stack."""
    same_view = Counter(zip(g_pids.tolist(), g_camids.tolist(), strict=True))
    views = set(zip(q_pids.tolist(), q_camids.tolist(), strict=True))
    left = [len(g_pids) - same_view[view] for view in views]
    lengths = {min(count, MAX_RANK) for count in left}
    if len(lengths) > 1 or min(lengths) < REPORTED_RANKS[-1]:
        raise DataError(
            f"a query has {min(left)} gallery images left of {len(g_pids)} once those of its own identity and camera "
            f"are ignored; torchreid's evaluation needs {MAX_RANK}: add gallery images"
        )
