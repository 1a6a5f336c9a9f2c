"""What students of a chain cost, counted without building them.

Every tensor's shape is a product of axis lengths, and every axis length a sum of group widths: with `A` the number of
times that each group's channels appear along each axis, `lengths = widths A^T` gives all axes of all plans at once.
Parameters are products of these. Multiply-adds are the same products times the number of positions at which a weight is
applied, which are counted in one run of the teacher's structure on the meta device.

Example: `Linear(3, 4)` followed by `Linear(4, 2)`, the latter the classifier, at hidden width 2 instead of 4: the
first weight has `2 * 3` numbers instead of `4 * 3`, is applied once per image, and costs 6 multiply-adds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from ..graph import ChannelGraph, rebuild
from ..graph.tracer import tracing_mode
from ..networks import number_type, unwrapped, watched, without_memory_or_on_cpu
from .chain import WeightChain

Plans = Sequence[Mapping[str, int]]


@dataclass(frozen=True)
class Counts:
    """Costs of several width plans.

    Attributes:
        params: parameters of the deployed network, that is without its classifiers, shape `[plans]`.
        flops: multiply-adds of one image through the deployed network, shape `[plans]`.
    """

    params: np.ndarray
    flops: np.ndarray


class Costs:
    """Counts any number of width plans of one chain.

    Args:
        chain: not changed.
        input_size: `(channels, height, width)` of the image; by default the size that the teacher was traced with.
    """

    def __init__(self, chain: WeightChain, input_size: tuple[int, int, int] | None = None) -> None:
        self.chain = chain
        self.input_size = tuple(input_size or chain.input_size)
        self.shapes = Shapes(chain)

    def count(self, plans: Plans) -> Counts:
        """Parameters and multiply-adds of each plan, as exact integers."""
        sizes = self.shapes.of(plans).prod(2)
        flops = sizes @ self._positions + self._attention(plans) + self._operators.constant
        return Counts(sizes[:, self._deployed].sum(1), flops)

    @cached_property
    def _deployed(self) -> np.ndarray:
        """Which tensors are parameters outside of classifiers, shape `[tensors]`."""
        owners = {name.rpartition(".")[0] for name in self.chain.graph.heads}
        deployed = {n for n, _ in self.chain.model.named_parameters() if n.rpartition(".")[0] not in owners}
        return np.array([name in deployed for name in self.shapes.names])

    @cached_property
    def _operators(self) -> Operators:
        return record_operators(self.chain, self.input_size)

    @cached_property
    def _positions(self) -> np.ndarray:
        """How often each tensor is multiplied with the channels of a position, shape `[tensors]`."""
        return np.array([self._operators.positions.get(name, 0) for name in self.shapes.names])

    def _attention(self, plans: Plans) -> np.ndarray:
        """Multiply-adds of queries with keys and of scores with values, which grow with the size of a head."""
        total = np.zeros(len(plans), np.int64)
        graph = self.chain.graph
        for module, flops in self._operators.attentions.items():
            heads = [attention.channels for attention in graph.attentions if attention.module == module]
            channels = np.concatenate([channels.reshape(-1) for channels in heads])
            kept = self.shapes.widths(plans) @ _multiplicities(graph, channels)
            total += flops * kept // len(channels)
        return total


# ---- shapes ------------------------------------------------------------------------------------------------------


class Shapes:
    """Shape of every tensor of a student's state dict as a function of the width plan.

    Attributes:
        names: tensors of the state dict.
    """

    def __init__(self, chain: WeightChain) -> None:
        self.graph = chain.graph
        state = chain.model.state_dict()
        self.names = list(state)
        self._whole = np.ones((len(state), max((tensor.dim() for tensor in state.values()), default=1)), np.int64)
        for row, tensor in zip(self._whole, state.values(), strict=True):
            row[: tensor.dim()] = tensor.shape
        index = {name: number for number, name in enumerate(self.names)}
        order = {axis: number for number, axis in enumerate(self.graph.axes)}
        self._tied = [(index[tie.tensor], tie.dimension) for tie in self.graph.ties]
        self._factor = np.array([tie.shaped(1) for tie in self.graph.ties], np.int64)
        self._column = np.array([order[tie.axis] for tie in self.graph.ties], np.int64)
        counts = [_multiplicities(self.graph, axis.channels[0]) for axis in self.graph.axes]
        self._counts = np.array(counts, np.float64).reshape(len(order), len(self.graph.groups)).T

    def widths(self, plans: Plans) -> np.ndarray:
        """Width of each group, shape `[plans, groups]`."""
        return np.array([[plan[group.name] for group in self.graph.groups] for plan in plans], np.int64)

    def of(self, plans: Plans) -> np.ndarray:
        """Shapes, padded with ones, `[plans, tensors, dimensions]`."""
        # Products of floating-point matrices are fast, and exact for whole numbers of this size.
        lengths = np.rint(self.widths(plans) @ self._counts).astype(np.int64)
        shapes = np.tile(self._whole, (len(plans), 1, 1))
        tensor, dimension = np.array(self._tied, np.int64).reshape(-1, 2).T
        shapes[:, tensor, dimension] = lengths[:, self._column] * self._factor
        return shapes


def _multiplicities(graph: ChannelGraph, channels: np.ndarray) -> np.ndarray:
    """How often each channel of a group occurs in `channels`, shape `[groups]`; 0 for groups without one.

    Example: channels `3 4 3 4 7` of groups `{3, 4}` and `{7}` give 2 and 1.
    """
    totals = np.bincount(graph.group_of_channel[channels], minlength=len(graph.groups))
    different = np.bincount(graph.group_of_channel[np.unique(channels)], minlength=len(graph.groups))
    return totals // np.maximum(different, 1)


# ---- operators ---------------------------------------------------------------------------------------------------


def plain_attention() -> AbstractContextManager:
    """Inside this block attention is computed by plain products: torch's counters do not know every fused kernel."""
    return sdpa_kernel(SDPBackend.MATH)


def multiply_adds(model: nn.Module, image_size: tuple[int, ...]) -> int:
    """Multiply-adds of one image through a network in evaluation, by torch's own counter.

    Args:
        model: not changed.
        image_size: `(channels, height, width)`.
    """
    model = unwrapped(model)
    images = torch.zeros(1, *image_size, device=next(model.parameters()).device, dtype=number_type(model))
    with torch.no_grad(), plain_attention(), tracing_mode(model, False), FlopCounterMode(display=False) as counter:
        model(images)
    return counter.get_total_flops() // 2  # torch counts both halves


@dataclass(frozen=True)
class Operators:
    """What one image costs in the teacher, split by what the cost depends on.

    Attributes:
        positions: multiply-adds per number of each weight.
        attentions: multiply-adds per attention module.
        constant: multiply-adds that depend on no width.
    """

    positions: dict[str, int]
    attentions: dict[str, int]
    constant: int


def record_operators(chain: WeightChain, input_size: tuple[int, ...]) -> Operators:
    """Runs the teacher's structure once in evaluation, on the meta device if possible, and counts every operator.

    Args:
        chain: only its structure is used, never its weights.
        input_size: `(channels, height, width)` of the image.
    """
    return without_memory_or_on_cpu(lambda device: _run(chain, input_size, device))


def _run(chain: WeightChain, input_size: tuple[int, ...], device: str) -> Operators:
    state = chain.model.state_dict()
    zeros = {name: torch.zeros(tensor.shape, dtype=tensor.dtype, device=device) for name, tensor in state.items()}
    model = rebuild(chain.model, zeros).eval()
    attentions = {attention.module: model.get_submodule(attention.module) for attention in chain.graph.attentions}
    recorder = _Recorder(model, attentions)
    with torch.no_grad(), plain_attention(), watched(attentions.items(), recorder.enter, recorder.leave), recorder:
        model(torch.zeros(1, *input_size, device=device, dtype=number_type(model)))
    numbers = {name: zeros[name].numel() for name in recorder.weights}
    positions = {name: flops // numbers[name] for name, flops in recorder.weights.items()}
    return Operators(positions, recorder.attentions, recorder.constant)


class _Recorder(TorchDispatchMode):
    """Adds up torch's own operator counts, per weight that an operator multiplies with."""

    def __init__(self, model: nn.Module, attentions: Iterable[str]) -> None:
        super().__init__()
        self.weights: dict[str, int] = {}
        self.attentions = dict.fromkeys(attentions, 0)
        self.constant = 0
        self._inside: list[str] = []
        self._owner = {_storage(parameter): name for name, parameter in model.named_parameters()}

    def enter(self, name: str, *_: object) -> None:
        """Enters an attention module."""
        self._inside.append(name)

    def leave(self, *_: object) -> None:
        """Leaves an attention module."""
        self._inside.pop()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # noqa: ANN001, ANN204 - torch's signature
        output = function(*args, **(kwargs or {}))
        count = flop_registry.get(function.overloadpacket)
        if count is not None:
            self._add(count(*args, **(kwargs or {}), out_val=output) // 2, args)  # torch counts both halves
        return output

    def _add(self, flops: int, args: tuple) -> None:
        owners = [self._owner.get(_storage(value)) for value in args if torch.is_tensor(value) and value.dim() > 1]
        weight = next((name for name in owners if name), None)
        if weight:
            self.weights[weight] = self.weights.get(weight, 0) + flops
        elif self._inside:
            self.attentions[self._inside[-1]] += flops
        else:
            self.constant += flops


def _storage(tensor: Tensor) -> int:
    """What identifies a tensor and its views, on the meta device as well."""
    return tensor.untyped_storage()._cdata
