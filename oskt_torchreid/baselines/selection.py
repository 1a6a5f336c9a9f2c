"""Weight selection: a student made of evenly spaced channels of the teacher (Xu et al., ICLR 2024, for any network)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from ..graph import ChannelGraph, Tie, adapt_code, rebuild


def select_uniformly(teacher: nn.Module, graph: ChannelGraph, widths: Mapping[str, int]) -> nn.Module:
    """Keeps ``m`` evenly spaced channels of each group, with exactly the teacher's numbers.

    Channel ``j`` of the student is channel ``floor(j * N / m)`` of the teacher, in every tensor alike; for 4 channels
    and width 2 these are 0 and 2.

    Args:
        teacher: left as it is.
        graph: its channel graph.
        widths: width per group name.

    Raises:
        WidthError: widths that the graph does not allow.
    """
    graph.check_plan(widths)
    kept = np.zeros(graph.num_channels, bool)
    for group in graph.groups:
        width = widths[group.name]
        kept[group.channels[np.arange(width) * group.size // width]] = True
    state = teacher.state_dict()
    tensors = {name: tensor.clone() for name, tensor in state.items()}
    for tie in graph.ties:
        tensors[tie.tensor] = _select(tensors[tie.tensor], tie, kept[tie.channels])
    student = rebuild(teacher, tensors)
    adapt_code(student, graph, kept.astype(np.int64))
    return student


def _select(tensor: Tensor, tie: Tie, kept: np.ndarray) -> Tensor:
    """The kept positions of one axis; ``kept`` is ``[blocks, length]``, with equally many in every block."""
    if tie.axis == 0 or tie.blocks == 1:
        return tensor.index_select(tie.axis, torch.from_numpy(np.flatnonzero(kept)))
    blocks = tensor.unflatten(0, (tie.blocks, -1))
    positions = [torch.from_numpy(np.flatnonzero(block)) for block in kept]
    chosen = [block.index_select(tie.axis, index) for block, index in zip(blocks, positions, strict=True)]
    return torch.cat(chosen)
