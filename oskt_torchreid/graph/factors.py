"""Factors per channel in a network's tensors: rows that make a channel are multiplied, columns that read it divided.

Where that changes nothing but the activations between them is told by `scaling.py`.

Example: the factors `2, 4` of two channels, which the rows of a kernel `[[1], [1]]` make and the columns of `[[8, 8]]`
read, give `[[2], [4]]` and `[[4, 2]]`: the product is `8 + 8` as before.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor

from .channel_graph import Axis, ChannelGraph


class ChannelFactors:
    """Factors per channel, applied to tensors in place.

    Args:
        graph: says which channels are along every axis.
        tensors: by state-dict name, those of the network that the graph was traced of, or of a student of it.
        factors: per channel, `[num_channels]`.
        channels_along: the channels along an axis of these tensors, `[blocks, length]`; by default all of them.
    """

    def __init__(
        self,
        graph: ChannelGraph,
        tensors: Mapping[str, Tensor],
        factors: np.ndarray,
        channels_along: Callable[[Axis], np.ndarray] = lambda axis: axis.channels,
    ) -> None:
        self._graph, self._tensors, self._factors, self._channels_along = graph, tensors, factors, channels_along

    def multiply_rows(self, name: str) -> None:
        """Multiplies a tensor along its rows."""
        tensor, factors = self._along_rows(name)
        tensor.mul_(factors)

    def divide_columns(self, name: str) -> None:
        """Divides the columns of each convolution group; a depthwise convolution has only rows, one per channel."""
        tie = self._graph.column_ties.get(name)
        if tie is None:
            tensor, factors = self._along_rows(name)
            tensor.div_(factors)
            return
        tensor = self._tensors[name]
        factors = torch.from_numpy(self._factors[self._channels_along(tie.axis)]).to(tensor)
        blocked = tensor.view(tie.blocks, -1, tensor.shape[1], tensor[0, 0].numel())
        blocked.div_(factors[:, None, :, None])

    def scale_statistics(self, module: str, epsilon: float) -> None:
        """`(s x - s m) / sqrt(s^2 (v + eps))` is a norm's output for `x`: its variance becomes that less eps."""
        mean, factors = self._along_rows(f"{module}.running_mean")
        mean.mul_(factors)
        variance = self._tensors[f"{module}.running_var"]
        variance.add_(epsilon).mul_(factors.square()).sub_(epsilon).clamp_(min=0)

    def _along_rows(self, name: str) -> tuple[Tensor, Tensor]:
        """A tensor, and its factors in a shape that broadcasts."""
        tensor, tie = self._tensors[name], self._graph.row_ties[name]
        factors = torch.from_numpy(self._factors[self._channels_along(tie.axis)].reshape(-1)).to(tensor)
        shape = [1] * tensor.dim()
        shape[tie.dimension] = len(factors)
        return tensor, factors.reshape(shape)
