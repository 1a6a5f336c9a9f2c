"""Ranges of channels made alike, before a network is written in eight bits.

All channels of an activation share one scale in eight bits, so that a channel whose values are small has few levels
left. A factor per channel on the layers that make an activation, and its inverse on the columns of those that read it,
change nothing (see `graph/scaling.py`), but make channels alike. With the largest value `r` of a channel and the
largest weight `m` of its columns, the factor is `sqrt(m / r)`, which makes both equally hard (Nagel et al., ICCV 2019;
Xiao et al., ICML 2023). A depthwise convolution has a scale of its own for each channel, so nothing is lost there, and
the factor is `1 / r`. Factors are powers of two: every product is the same but for its exponent, so the network
computes the same to the last bit.

Example: channels with the ranges `8, 1, 2, 8` whose columns have the weights `1/2, 1, 1/2, 1/8` have the factors
`1/4, 1, 1/2, 1/8`. The largest range shall stay what it was, 8 instead of 2: four times the factors are `1, 4, 2, 1/2`,
and the ranges become `8, 4, 4, 4`.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import GraphError
from ..graph import ChannelGraph, ScalePath, scale_paths, trace_module
from ..graph.factors import ChannelFactors
from ..networks import watched

logger = logging.getLogger(__name__)

LIMIT = 8  # factors are between 2^-8 and 2^8
_CHANNEL_DIMENSION: dict[type[nn.Module], int] = {nn.Conv2d: 1, nn.Conv1d: 1, nn.Linear: -1}


class _Reader(NamedTuple):
    """What a layer reads of each channel of the graph.

    Attributes:
        ranges: the largest value, `[num_channels]`; 0 for channels that it does not read.
        weights: the largest weight of the columns, `[num_channels]`.
        depthwise: whether the layer has a scale of its own for each channel.
    """

    ranges: np.ndarray
    weights: np.ndarray
    depthwise: bool


def equalized(network: nn.Module, batches: Iterable[Tensor]) -> nn.Module:
    """A copy of a network that computes the same, with channels of more equal ranges.

    Args:
        network: in evaluation, on the CPU; not changed.
        batches: images `[batch, channels, height, width]` that show the ranges.

    Returns:
        The copy; where the network cannot be followed, it is equal to the network.
    """
    network, batches = copy.deepcopy(network), list(batches)
    try:
        graph = trace_module(network, tuple(batches[0].shape[1:]))
        paths = scale_paths(network, graph)
    except GraphError as error:
        logger.info("ranges of channels are not equalised: %s", error)
        return network
    inputs = _largest_inputs(network, {name for path in paths for name in path.columns}, batches)
    ranges = _Ranges(network, graph, inputs)
    for path in paths:
        ranges.equalize(path)
    return network


def _largest_inputs(network: nn.Module, weights: Iterable[str], batches: Iterable[Tensor]) -> dict[str, Tensor]:
    """Largest absolute value of each input channel of the layers that have these weights, by weight."""
    modules = {name: network.get_submodule(name.rpartition(".")[0]) for name in weights if name.endswith(".weight")}
    layers = {name: module for name, module in modules.items() if type(module) in _CHANNEL_DIMENSION}
    largest: dict[str, Tensor] = {}

    def leave(name: str, module: nn.Module, args: tuple, output: Tensor) -> None:
        channels = args[0].abs().movedim(_CHANNEL_DIMENSION[type(module)], 0).flatten(1).amax(1)
        largest[name] = torch.maximum(largest[name], channels) if name in largest else channels

    with torch.inference_mode(), watched(layers.items(), leave=leave):
        for images in batches:
            network(images)
    return largest


class _Ranges:
    """Ranges of channels of a network that is changed in place, and which follow its changes."""

    def __init__(self, network: nn.Module, graph: ChannelGraph, inputs: Mapping[str, Tensor]) -> None:
        self._tensors = dict(network.named_parameters())
        self._graph, self._inputs = graph, dict(inputs)

    def equalize(self, path: ScalePath) -> None:
        """Folds factors into the tensors of a path; one with layers whose input is not known stays as it is."""
        if not all(name in self._inputs for name in path.columns):
            return
        if not all(name in self._tensors for name in (*path.rows, *path.columns)):
            return
        factors = self._factors_of([self._read(name) for name in path.columns])
        fold = ChannelFactors(self._graph, self._tensors, factors)
        with torch.no_grad():
            for name in path.rows:
                fold.multiply_rows(name)
            for name in path.columns:
                fold.divide_columns(name)
                inputs = self._inputs[name]
                self._inputs[name] = inputs * torch.from_numpy(factors[self._columns(name)[0]]).to(inputs)

    def _factors_of(self, readers: list[_Reader]) -> np.ndarray:
        """Power of two per channel, `[num_channels]`, for what some layers read of one activation."""
        ranges = np.max([reader.ranges for reader in readers], axis=0)
        weights = np.max([np.where(reader.depthwise, 0, reader.weights) for reader in readers], axis=0)
        if all(reader.depthwise for reader in readers):
            weights = np.where(ranges > 0, 1 / np.maximum(ranges, 1e-30), 0)
        alive = (ranges > 0) & (weights > 0)
        if not alive.any():
            return np.ones(len(ranges))
        factors = np.sqrt(np.where(alive, weights, 1) / np.where(alive, ranges, 1))
        factors *= ranges.max() / (factors * ranges)[alive].max()
        exponents = np.clip(np.round(np.log2(factors)), -LIMIT, LIMIT)
        return np.where(alive, np.exp2(exponents), 1.0)

    def _read(self, name: str) -> _Reader:
        """What the layer of a weight reads of each channel, `[num_channels]`."""
        channels, weights, depthwise = self._columns(name)
        found = np.zeros((2, self._graph.num_channels))
        np.maximum.at(found[0], channels, self._inputs[name].double().numpy())
        np.maximum.at(found[1], channels, weights)
        return _Reader(found[0], found[1], depthwise)

    def _columns(self, name: str) -> tuple[np.ndarray, np.ndarray, bool]:
        """Channel and largest weight of each input position of a layer, `[positions]`, and whether it is depthwise."""
        tensor, tie = self._tensors[name].detach(), self._graph.column_ties.get(name)
        if tie is None:
            rows = self._graph.row_ties[name].channels.reshape(-1)
            return rows, tensor.abs().flatten(1).amax(1).double().numpy(), True
        blocked = tensor.abs().reshape(tie.blocks, -1, tensor.shape[1], tensor[0, 0].numel())
        return tie.channels.reshape(-1), blocked.amax((1, 3)).reshape(-1).double().numpy(), False
