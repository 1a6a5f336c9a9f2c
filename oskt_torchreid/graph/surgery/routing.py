"""In a student, replaces code that moves or counts channels by fixed numbers.

Three things are adapted: integer attributes that say where channels are split (`SplitPoint`), modules whose own code
does nothing but move channels between the modules that it calls (`Route`), and modules that reduce their input over its
channels (`Reduction`).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from ...errors import WidthError
from ..modules import Reduction, Route, SplitPoint

WEIGHT_BUFFER = "channel_weight"


class Routed(nn.Module):
    """Moves channels by index buffers. Replaces a module, with its children, tensors and attributes.

    Source 0 is the input, source `i` the output of call `i - 1`. Each call, and finally the output, reads some
    sources, concatenated along the channels, in the order of an index buffer (`None`: unchanged)::

        calls, reads = ("branch",), ((0,), (0, 1))           # one call that reads the input; the output reads both
        route_0, route_1 = [2, 3], [0, 4, 1, 5]              # on 4 channels: the second half; then alternating
    """

    def __init__(
        self,
        module: nn.Module,
        calls: Sequence[str],
        reads: Sequence[Sequence[int]],
        orders: Sequence[Tensor | None],
    ) -> None:
        super().__init__()
        vars(self).update({name: value for name, value in vars(module).items() if name != "forward"})
        self.route_calls = tuple(str(call) for call in calls)
        self.route_reads = tuple(tuple(int(source) for source in sources) for sources in reads)
        for number, order in enumerate(orders):
            self.register_buffer(f"route_{number}", order)

    def forward(self, images: Tensor) -> Tensor:
        """Maps `[batch, channels, ...]` as the replaced module did."""
        sources = [images]
        for number, call in enumerate(self.route_calls):
            sources.append(self.get_submodule(call)(self._gather(sources, number)))
        return self._gather(sources, len(self.route_calls))

    def ordered(self) -> list[bool]:
        """Whether each call, and finally the output, has an index buffer."""
        return [getattr(self, f"route_{number}") is not None for number in range(len(self.route_reads))]

    def _gather(self, sources: list[Tensor], number: int) -> Tensor:
        read = [sources[source] for source in self.route_reads[number]]
        joined = torch.cat(read, 1) if len(read) > 1 else read[0]
        order = getattr(self, f"route_{number}")
        return joined if order is None else joined.index_select(1, order)


def weigh_input(module: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
    """Forward pre-hook: each channel of the input times its weight, so that a plain reduction counts members."""
    (images,) = inputs
    return (images * getattr(module, WEIGHT_BUFFER).reshape(-1, *[1] * (images.dim() - 2)),)


def split_length(split: SplitPoint, occupied: np.ndarray) -> int:
    """Length of every part but the last in a student; `occupied` are its places, a mask `[num_channels]`.

    Raises:
        WidthError: parts whose lengths one attribute cannot describe.
    """
    lengths = [int(occupied[part].sum()) for part in split.parts]
    if any(length != lengths[0] for length in lengths[:-1]) or lengths[-1] > lengths[0]:
        raise WidthError(
            f"module '{split.module}' takes its channels apart every '{split.attribute}' channels, so parts of "
            f"{lengths} channels are impossible; give their groups equal widths"
        )
    return lengths[0]


def orders_of(route: Route, occupied: np.ndarray) -> list[Tensor | None]:
    """Index of each call, and of the output, among the student's channels; `None` where it changes nothing.

    Example: channels 0 1 2 3 are read in the order 0 2 1 3, and the places 0 1 2 are occupied: the student's order is
    0 2 1.
    """
    orders: list[Tensor | None] = []
    for reads, order in zip(route.reads, route.orders, strict=True):
        kept = np.concatenate([occupied[route.sources[source]] for source in reads])
        position = np.cumsum(kept) - 1
        narrow = position[order[kept[order]]]
        unchanged = np.array_equal(narrow, np.arange(kept.sum()))
        orders.append(None if unchanged else torch.from_numpy(narrow))
    return orders


def replace(student: nn.Module, name: str, module: nn.Module) -> None:
    """Replaces a named module, in place."""
    parent, _, child = name.rpartition(".")
    setattr(student.get_submodule(parent), child, module)


def input_weights(reduction: Reduction, members: np.ndarray) -> Tensor:
    """Weight per channel of a student. Example: channels that stand for 2 and 1 members have a mean with 4/3, 2/3."""
    counts = members[reduction.channels]
    counts = counts[counts > 0]
    scale = len(counts) / counts.sum() if reduction.operator == "mean" else 1.0
    return torch.from_numpy(counts * scale)


def weigh(module: nn.Module, weights: Tensor) -> None:
    """If a module has weights already (the teacher was a student), they are multiplied."""
    own = getattr(module, WEIGHT_BUFFER, None)
    set_weights(module, weights if own is None else own * weights)


def set_weights(module: nn.Module, weights: Tensor) -> None:
    """Makes a module weight its input, in place."""
    module.register_buffer(WEIGHT_BUFFER, weights)
    if weigh_input not in module._forward_pre_hooks.values():
        module.register_forward_pre_hook(weigh_input)
