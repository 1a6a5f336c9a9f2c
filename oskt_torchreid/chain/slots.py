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

from collections.abc import Sequence
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
    return slots_of_groups([teacher_to_chain], [width])[0]


def slots_of_groups(teacher_to_chain: Sequence[np.ndarray], widths: Sequence[int]) -> list[Slots]:
    """Slots and members of many groups at once: networks of convolution groups have thousands of channel groups.

    Args:
        teacher_to_chain: per group as ``make_slots`` takes it.
        widths: per group.

    Raises:
        WidthError: a width is outside of its group's ``[K, N]``.
    """
    channels = np.array([len(labels) for labels in teacher_to_chain])
    clusters = np.array([int(labels.max()) + 1 for labels in teacher_to_chain])
    widths = np.asarray(widths)
    _check(widths, clusters, channels)
    first_cluster = _starts(clusters)  # clusters of all groups are numbered through
    cluster = np.concatenate(teacher_to_chain) + np.repeat(first_cluster, channels)
    size = np.bincount(cluster)
    slot_cluster, turn, place = _apportion(size, clusters, channels, widths)
    member_turn = _member_turns(cluster, size, np.bincount(slot_cluster))
    by_turn = np.lexsort((turn, slot_cluster))  # of a cluster's slots, the one of each turn
    first_slot = _starts(np.bincount(slot_cluster))
    teacher_to_slot = place[by_turn[first_slot[cluster] + member_turn]]
    slot_to_cluster = slot_cluster - np.repeat(first_cluster, widths)
    parts = zip(_cut(slot_to_cluster, widths), _cut(teacher_to_slot, channels), strict=True)
    return [Slots(*part) for part in parts]


def _apportion(
    size: np.ndarray, clusters: np.ndarray, channels: np.ndarray, widths: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cluster of each slot, the slot's turn within its cluster and its place in its group, ``[all slots]`` each.

    A cluster of size ``s`` is given its slot number ``t`` when its ratio stands at ``t / s``, and these ratios only
    grow: sorting all ``t / s`` is the same as appending greedily one at a time. The first slots have the ratio 0.

    Args:
        size: members of each cluster.
        clusters: ``K`` of each group.
        channels: ``N`` of each group.
        widths: ``m`` of each group.
    """
    cluster = np.repeat(np.arange(len(size)), size)
    turn = np.arange(len(cluster)) - np.repeat(_starts(size), size)
    group = np.repeat(np.arange(len(clusters)), clusters)[cluster]
    order = np.lexsort((cluster, turn / size[cluster], group))
    place = np.arange(len(cluster)) - np.repeat(_starts(channels), channels)
    kept = place < np.repeat(widths, channels)
    return cluster[order][kept], turn[order][kept], place[kept]


def _member_turns(cluster: np.ndarray, size: np.ndarray, slots: np.ndarray) -> np.ndarray:
    """Which of its cluster's slots each channel belongs to, ``[all channels]``.

    Args:
        cluster: of each channel.
        size: members of each cluster.
        slots: number of slots of each cluster.
    """
    rank = np.empty_like(cluster)
    rank[np.argsort(cluster, kind="stable")] = np.arange(len(cluster)) - np.repeat(_starts(size), size)
    base, extra = (part[cluster] for part in np.divmod(size, slots))
    in_larger = rank < extra * (base + 1)  # the first ``extra`` slots of a cluster hold ``base + 1`` members
    return np.where(in_larger, rank // (base + 1), extra + (rank - extra * (base + 1)) // base)


def _check(widths: np.ndarray, clusters: np.ndarray, channels: np.ndarray) -> None:
    wrong = np.flatnonzero((widths < clusters) | (widths > channels))
    if len(wrong):
        width, least, most = (int(numbers[wrong[0]]) for numbers in (widths, clusters, channels))
        raise WidthError(
            f"width {width} is outside of [{least}, {most}]: a student is at least as wide as the chain and at most as "
            "wide as the teacher"
        )


def _starts(lengths: np.ndarray) -> np.ndarray:
    """Where parts of these lengths begin, one after another: ``3 1 2`` -> ``0 3 4``."""
    return np.cumsum(lengths) - lengths


def _cut(joined: np.ndarray, lengths: np.ndarray) -> list[np.ndarray]:
    ends = np.cumsum(lengths)
    return [joined[end - length : end] for end, length in zip(ends.tolist(), lengths.tolist(), strict=True)]
