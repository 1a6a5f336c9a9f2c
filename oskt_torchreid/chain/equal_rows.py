"""A copy of a network with random weights whose rows are equal inside random clusters, for the proof of its graph."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import numpy as np
import torch
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from torch import Tensor, nn

from ..graph import ChannelGraph, rebuild
from ..graph.plans import balanced
from .layout import Layout
from .narrowing import rows_first

_RATIOS = (0.4, 0.6)  # clusters, as a share of a group's channels: producers differ, so that equal ratios hide nothing
_FACTORS, _SHIFTS = (0.6, 1.4), (-0.3, 0.3)  # of vectors; nothing is at a neutral value


# ---- clusters --------------------------------------------------------------------------------------------------------


def random_clusters(
    graph: ChannelGraph, even: Mapping[str, int], generator: np.random.Generator
) -> dict[str, np.ndarray]:
    """Cluster of each channel per group name, `[size]`; fixed groups are whole.

    Args:
        graph: the network's.
        even: see `even_members`.
        generator: draws them.
    """
    ratios: dict[str, float] = {}
    counts = {}
    for group in graph.groups:
        ratio = ratios.setdefault(group.name.partition("[")[0].partition(":")[0], generator.uniform(*_RATIOS))
        share = 1 / even[group.name] if group.name in even else ratio
        counts[group.name] = group.size if group.fixed else max(1, round(share * group.size))
    counts = balanced(graph, counts)
    labels = {}
    for name, size in graph.sizes.items():
        if name in even:
            label = np.arange(size) % counts[name]
        else:
            label = np.r_[np.arange(counts[name]), generator.integers(0, counts[name], size - counts[name])]
        labels[name] = label if counts[name] == size else generator.permutation(label)
    return labels


def trial_widths(
    graph: ChannelGraph, clusters: Mapping[str, int], even: Mapping[str, int]
) -> dict[str, dict[str, int]]:
    """Three width plans: that of the clusters, one between, and the whole network's.

    Args:
        graph: the network's.
        clusters: how many each group has.
        even: see `even_members`.
    """
    between = {name: (clusters[name] + size) // 2 for name, size in graph.sizes.items()}
    between.update({name: graph.sizes[name] // math.isqrt(count) for name, count in even.items()})
    return {"narrowest": dict(clusters), "between": balanced(graph, between), "full": dict(graph.sizes)}


def even_members(graph: ChannelGraph, normalised: np.ndarray) -> dict[str, int]:
    """How many channels each cluster needs, for groups whose students are exact only if all have equally many.

    These are groups that a norm counts, or that evaluation divides by their length, with all that must be as wide; 1
    where no number divides them all, and where the heads of an attention cannot be corrected.

    Args:
        graph: the network's.
        normalised: channels that evaluation divides by their length.
    """
    counted = [_groups_of(graph, norm.channels) for norm in graph.norms]
    counted += [_groups_of(graph, normalised)] if len(normalised) else []
    whole = [_groups_of(graph, attention.channels) for attention in graph.attentions if not attention.positions]
    alike = [np.unique(np.concatenate([groups for groups, _ in blocks])) for blocks in graph.blocked_groups]
    component = _components(len(graph.groups), [*counted, *whole, *alike])
    kept = {component[index] for groups in whole for index in groups}
    members = {}
    for label in {component[index] for groups in (*counted, *whole) for index in groups}:
        groups = [graph.groups[index] for index in np.flatnonzero(component == label)]
        divisible = math.gcd(*(group.size for group in groups))
        count = 1 if label in kept or any(group.fixed for group in groups) else _divisor(divisible)
        members.update({group.name: count for group in groups})
    return members


def _groups_of(graph: ChannelGraph, channels: np.ndarray) -> np.ndarray:
    return np.unique(graph.group_of_channel[channels])


def _components(count: int, sets: Iterable[np.ndarray]) -> np.ndarray:
    """Number per element of `0..count - 1`; elements that one of the sets holds together have the same."""
    pairs = [np.stack([np.full(len(members), members[0]), members]) for members in sets if len(members)]
    first, second = np.concatenate([np.empty((2, 0), int), *pairs], axis=1)
    links = coo_matrix((np.ones(len(first), np.int8), (first, second)), shape=(count, count))
    return connected_components(links, directed=False)[1]


def _divisor(number: int) -> int:
    """4, of which a slot between has 2, or else 2 or 3, if they divide a number; else 1. 96 -> 4, 6 -> 2, 15 -> 3."""
    return next((divisor for divisor in (4, 2, 3) if number % divisor == 0), 1)


# ---- weights ---------------------------------------------------------------------------------------------------------


def with_equal_rows(model: nn.Module, graph: ChannelGraph, layout: Layout, dtype: torch.dtype) -> nn.Module:
    """A copy of random weights in which the rows of each cluster are equal.

    Args:
        model: not changed.
        graph: its channel graph.
        layout: of its clusters.
        dtype: of the copy's real numbers.
    """
    tensors = {}
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            tensors[name] = _random(name, tensor.detach().to(dtype), graph, layout)
        else:
            tensors[name] = tensor.clone()
    copy = rebuild(model, tensors).to(dtype)
    for module in copy.modules():
        if isinstance(module, nn.modules.batchnorm._NormBase):
            module.momentum = 1.0  # one batch in training sets the statistics for evaluation
    return copy


def _random(name: str, tensor: Tensor, graph: ChannelGraph, layout: Layout) -> Tensor:
    tie = graph.row_ties.get(name)
    if tie is None or (name not in graph.matrices and graph.whole[tie.channels].all()):
        # Nothing is merged: a constant, or what is at a neutral value, such as the weight of a branch.
        neutral = tensor.numel() == 1 or bool((tensor == tensor.flatten()[:1]).all())
        return torch.empty_like(tensor).uniform_(*_FACTORS) if neutral and tensor.numel() else tensor.clone()
    is_matrix, axis = name in graph.matrices, layout.axis(tie)
    whole, dimension = (rows_first(tensor, tie), 0) if is_matrix else (tensor, tie.dimension)
    shape = list(whole.shape)
    shape[dimension] = axis.blocks * axis.length
    drawn = _drawn(tensor.new_empty(shape), tensor, is_matrix)
    repeated = drawn.index_select(dimension, axis.teacher_to_student.to(drawn.device))
    return rows_first(repeated, tie).contiguous() if is_matrix else repeated


def _drawn(empty: Tensor, like: Tensor, is_matrix: bool) -> Tensor:
    """Random numbers: rows that keep the size of activations; factors where a vector has no negative entry; shifts."""
    if is_matrix:
        return empty.normal_(std=math.sqrt(2 / max(1, empty[0].numel())))
    return empty.uniform_(*(_FACTORS if (like >= 0).all() and (like > 0).any() else _SHIFTS))
