"""Selection: a student made of some of the teacher's channels, with exactly the teacher's numbers.

Channels are kept or left out as a whole: along every axis that they lie on, in every tensor, so that the rest fits
together in any network. The ways of choosing differ in nothing else.

Example, a group of the channels 0 to 3, whose rows have the norms 3, 1, 2 and 5, at width 2: `select_evenly` keeps 0
and 2, `select_first` keeps 0 and 1, `select_largest` keeps 0 and 3; in the order in which they stood.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor, nn

from ..chain.network import state_of
from ..errors import ChainError
from ..graph import ChannelGraph, ChannelGroup, Tie, adapt_code, rebuild
from ..graph.plans import check_plan

Chooser = Callable[[ChannelGroup, int], np.ndarray]
"""Group and width `m` to `[m]` different places within the group, in any order."""


def select_evenly(teacher: nn.Module, graph: ChannelGraph, widths: Mapping[str, int]) -> nn.Module:
    """Evenly spaced channels: weight selection by uniform elements (Xu et al., ICLR 2024), for any network.

    Channel `j` of a group's student is channel `floor(j * N / m)` of the teacher; arguments as for
    `select_channels`.
    """
    return select_channels(teacher, graph, widths, lambda group, width: np.arange(width) * group.size // width)


def select_first(teacher: nn.Module, graph: ChannelGraph, widths: Mapping[str, int]) -> nn.Module:
    """The first `m` channels of each group; arguments as for `select_channels`."""
    return select_channels(teacher, graph, widths, lambda group, width: np.arange(width))


def select_largest(teacher: nn.Module, graph: ChannelGraph, widths: Mapping[str, int]) -> nn.Module:
    """The `m` channels of each group whose rows have the largest L2 norm, over all layers that produce the group.

    Arguments as for `select_channels`.

    Raises:
        ChainError: weights that are not finite.
        WidthError: widths that the graph does not allow.
    """
    return select_channels(teacher, graph, widths, by_score(row_norms(teacher, graph)))


def by_score(score: np.ndarray) -> Chooser:
    """Chooses the highest scores of each group; of equal ones the first.

    Args:
        score: per channel, `[num_channels]`.
    """
    return lambda group, width: np.argsort(-score[group.channels], kind="stable")[:width]


def row_norms(teacher: nn.Module, graph: ChannelGraph) -> np.ndarray:
    """L2 norm of each channel's rows in all matrices that produce it, side by side, `[num_channels]`.

    Channels that no matrix produces (class tokens) have the norm of their entries in the vectors that do.

    Raises:
        ChainError: weights that are not finite.
    """
    state = state_of(teacher)
    squares = {kind: np.zeros(graph.num_channels) for kind in (True, False)}
    for tie in graph.ties:
        if tie.role == "row":
            rows = _rows(state[tie.tensor], tie).double().pow(2).sum(1).cpu().numpy()
            np.add.at(squares[tie.tensor in graph.matrices], tie.channels.reshape(-1), rows)
    produced = np.zeros(graph.num_channels, bool)
    for tie in graph.ties:
        if tie.role == "row" and tie.tensor in graph.matrices:
            produced[tie.channels] = True
    norms = np.sqrt(np.where(produced, squares[True], squares[False]))
    if not np.isfinite(norms).all():
        raise ChainError("the teacher has weights that are NaN or infinite; give a sound teacher checkpoint")
    return norms


def select_channels(teacher: nn.Module, graph: ChannelGraph, widths: Mapping[str, int], choose: Chooser) -> nn.Module:
    """Keeps `m` channels of each group, with exactly the teacher's numbers, in the teacher's order.

    Args:
        teacher: not changed.
        graph: its channel graph.
        widths: width per group name.
        choose: which places of a group are kept.

    Returns:
        A network of the teacher's class.

    Raises:
        WidthError: widths that the graph does not allow.
    """
    check_plan(graph, widths)
    kept = np.zeros(graph.num_channels, bool)
    for group in graph.groups:
        kept[group.channels[choose(group, widths[group.name])]] = True
    tensors = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    for tie in graph.ties:
        tensors[tie.tensor] = _select(tensors[tie.tensor], tie, kept[tie.channels])
    student = rebuild(teacher, tensors)
    adapt_code(student, graph, kept.astype(np.int64))
    return student


def _rows(tensor: Tensor, tie: Tie) -> Tensor:
    """Rows of a tensor, `[blocks * length, columns]`, in the order of the tie's channels."""
    tensor = tensor.detach()
    if tie.dimension == 0 or tie.blocks == 1:
        return tensor.movedim(tie.dimension, 0).reshape(tie.channels.size, -1)
    return tensor.unflatten(0, (tie.blocks, -1)).movedim(tie.dimension + 1, 1).reshape(tie.channels.size, -1)


def _select(tensor: Tensor, tie: Tie, kept: np.ndarray) -> Tensor:
    """The kept positions of one axis; `kept` is `[blocks, length]`, with equally many in every block."""
    if tie.dimension == 0 or tie.blocks == 1:
        return tensor.index_select(tie.dimension, torch.from_numpy(np.flatnonzero(kept)))
    blocks = tensor.unflatten(0, (tie.blocks, -1))
    positions = [torch.from_numpy(np.flatnonzero(block)) for block in kept]
    chosen = [block.index_select(tie.dimension, index) for block, index in zip(blocks, positions, strict=True)]
    return torch.cat(chosen)
