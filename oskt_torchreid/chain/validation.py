"""What a chain must be: names, shapes, labels and numbers, each with an error that says what is wrong."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from torch import Tensor

from ..errors import ChainError
from ..files.checks import fault_of
from ..graph import ChannelGraph


def check_labels(graph: ChannelGraph, teacher_to_chain: Mapping[str, np.ndarray]) -> None:
    """Raises ``ChainError`` unless every channel of every group has a label, and every cluster is in use."""
    for group in graph.groups:
        labels = teacher_to_chain.get(group.name)
        if labels is None or np.shape(labels) != (group.size,):
            raise ChainError(f"group '{group.name}' of {group.size} channels has no label for each of them")
        if labels.min() < 0 or len(np.unique(labels)) != labels.max() + 1:
            raise ChainError(f"labels of group '{group.name}' are not 0..K-1 with every cluster in use")


def check_graph_fits(graph: ChannelGraph, state: Mapping[str, Tensor]) -> None:
    """Raises ``ChainError`` unless a network has the tensors and lengths that a graph ties."""
    for tie in graph.ties:
        expected = tie.shaped(tie.channels.shape[1])
        found = state[tie.tensor].shape if tie.tensor in state else None
        if found is None or len(found) <= tie.dimension or found[tie.dimension] != expected:
            raise ChainError(
                f"the channel graph belongs to another network: axis {tie.dimension} of '{tie.tensor}' must be "
                f"{expected} long, the network has {'no such tensor' if found is None else tuple(found)}"
            )
    for name in sorted(graph.matrices | graph.heads):
        if name not in graph.matrices or name not in graph.row_ties:
            raise ChainError(f"the channel graph is damaged: '{name}' is no matrix with rows in it")


def check_tensors(
    kind: str, tensors: Mapping[str, Tensor], shapes: Mapping[str, tuple], state: Mapping[str, Tensor]
) -> None:
    """Raises ``ChainError`` unless tensors have the names, shapes and kinds that they must have, and finite values.

    Args:
        kind: what they are, for messages.
        tensors: of a chain.
        shapes: shape of each.
        state: the teacher's tensors, perhaps without memory, for the kinds of their numbers.
    """
    missing = sorted(shapes.keys() - tensors.keys())
    unexpected = sorted(tensors.keys() - shapes.keys())
    if missing or unexpected:
        raise ChainError(
            f"{len(missing)} {kind}s are missing {missing[:3]} and {len(unexpected)} unexpected {unexpected[:3]}"
        )
    for name, tensor in tensors.items():
        if tuple(tensor.shape) != tuple(shapes[name]):
            raise ChainError(f"{kind} '{name}' has shape {tuple(tensor.shape)}, it must be {tuple(shapes[name])}")
        if fault := fault_of(tensor, state[name]):
            raise ChainError(f"{kind} '{name}' {fault}")
