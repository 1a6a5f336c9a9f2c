"""Slots and members: which teacher channels each channel of a student stands for. Pure index arithmetic.

Widening a group of ``N`` teacher channels in ``K`` clusters to width ``m``, ``K <= m <= N`` (paper, section on weight
chain expansion; the steps are numbered as in its text):

1. *Slots.* One slot per cluster, in cluster order. Then slots are appended one at a time, each to the cluster with the
   smallest ``slots / size`` (ties: the lowest cluster), until there are ``m``.
2. *Members.* A cluster's channels, in increasing order, are split contiguously and evenly over its slots in slot order;
   the first ``size mod slots`` slots take one more.

Worked example, 4 channels in 2 clusters, width 3. ``teacher_to_chain = [0, 1, 0, 0]``: cluster 0 holds channels 0, 2, 3
and cluster 1 holds channel 1. Two slots start; the third goes to cluster 0 (1/3 < 1/1). Hence
``slot_to_cluster = [0, 1, 0]``; slot 0 stands for channels 0 and 2, slot 2 for channel 3, slot 1 for channel 1, so
``teacher_to_slot = [0, 1, 0, 2]``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..errors import WidthError


@dataclass(frozen=True, eq=False)
class Slots:
    """The slots of one group at one width.

    Attributes:
        slot_to_cluster: cluster whose chain row each slot takes, shape ``[m]``.
        teacher_to_slot: slot that stands for each teacher channel, shape ``[N]``.
    """

    slot_to_cluster: np.ndarray
    teacher_to_slot: np.ndarray


def make_slots(teacher_to_chain: np.ndarray, width: int) -> Slots:
    """Slots and members of one group.

    Args:
        teacher_to_chain: cluster of each teacher channel, shape ``[N]``, every cluster ``0..K-1`` in use.
        width: ``m``.

    Raises:
        WidthError: ``width`` is outside of ``[K, N]``.
    """
    sizes = np.bincount(teacher_to_chain)
    slot_to_cluster, turn = _apportion(sizes, width)
    slots_of_cluster = np.bincount(slot_to_cluster, minlength=len(sizes))
    rank = _rank_in_cluster(teacher_to_chain, sizes)
    slot_of_turn = np.zeros((len(sizes), int(slots_of_cluster.max())), np.int64)
    slot_of_turn[slot_to_cluster, turn] = np.arange(width)
    base, extra = np.divmod(sizes, slots_of_cluster)
    base, extra = base[teacher_to_chain], extra[teacher_to_chain]
    in_larger = rank < extra * (base + 1)  # the first ``extra`` slots of a cluster hold ``base + 1`` members
    member_turn = np.where(in_larger, rank // (base + 1), extra + (rank - extra * (base + 1)) // np.maximum(base, 1))
    return Slots(slot_to_cluster, slot_of_turn[teacher_to_chain, member_turn])


def _apportion(sizes: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Cluster of each slot and the slot's turn within its cluster, both ``[width]``.

    A cluster of size ``s`` is given its slot number ``t`` when its ratio stands at ``t / s``, and these ratios only
    grow: sorting all ``t / s`` is the same as appending greedily one at a time.
    """
    num_clusters, num_channels = len(sizes), int(sizes.sum())
    if not num_clusters <= width <= num_channels:
        raise WidthError(
            f"width {width} is outside of [{num_clusters}, {num_channels}]: a student is at least as wide as the chain "
            "and at most as wide as the teacher"
        )
    cluster = np.repeat(np.arange(num_clusters), sizes)
    turn = np.arange(num_channels) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    appended = turn > 0
    cluster, turn = cluster[appended], turn[appended]
    order = np.lexsort((cluster, turn / sizes[cluster]))[: width - num_clusters]
    first = np.arange(num_clusters)
    return np.concatenate([first, cluster[order]]), np.concatenate([np.zeros_like(first), turn[order]])


def _rank_in_cluster(teacher_to_chain: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """How many channels of the same cluster come before each channel, shape ``[N]``."""
    order = np.argsort(teacher_to_chain, kind="stable")
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return rank
