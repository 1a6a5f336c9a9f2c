"""What a module's own code does with channels between the modules that it calls, found by running it on noise.

Random numbers replace the module's input and the output of each module that it calls. Wherever one of these channels
reappears, bit by bit, in what the code passes on, the code has moved it there. Code that does anything else with it
(adds, scales, rotates the map) leaves no such match, and gets no route.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from ..networks import watched
from .calls import Passage
from .modules import Route
from .tracer import tracing_mode

logger = logging.getLogger(__name__)
_BATCH = 2  # more than one, so that code that mixes the images of a batch is noticed

Origin = tuple[tuple[int, ...], np.ndarray]


def find_routes(model: nn.Module, passages: Iterable[Passage]) -> list[Route]:
    """Routes of the modules whose own code does nothing but move channels, in the ids of the passages.

    Args:
        model: not changed.
        passages: calls in which channels were moved.
    """
    found = (_route(model.get_submodule(passage.module), passage) for passage in passages)
    return [route for route in found if route is not None]


def _route(module: nn.Module, passage: Passage) -> Route | None:
    try:
        evaluation, training = (_origins(module, passage, training) for training in (False, True))
    except Exception as error:  # code of others, on inputs that it was never meant for
        logger.debug("'%s' cannot be run on noise: %s", passage.module, error)
        return None
    if evaluation is None or training is None:
        return None
    alike = all(a[0] == b[0] and np.array_equal(a[1], b[1]) for a, b in zip(evaluation, training, strict=True))
    if not alike:
        return None
    reads, orders = zip(*evaluation, strict=True)
    return Route(passage.module, passage.calls, tuple(ids.numpy() for ids in passage.sources), reads, orders)


def _origins(module: nn.Module, passage: Passage, training: bool) -> list[Origin] | None:
    """For each call and for the output: which sources it reads, and the position of each of its channels in them."""
    observed = _Observation(passage)
    observed.run(module, training)
    if tuple(observed.calls) != passage.calls:
        return None
    position_of: dict[bytes, tuple[int, int]] = {}
    for number, source in enumerate(observed.sources):
        position_of.update((channel, (number, position)) for position, channel in enumerate(_channels(source)))
    origins = [_origin(arrived, observed.sources, position_of) for arrived in observed.arrived]
    known = [origin for origin in origins if origin is not None]
    return known if len(known) == len(origins) else None


def _origin(arrived: Tensor | None, sources: list[Tensor], position_of: dict[bytes, tuple[int, int]]) -> Origin | None:
    if arrived is None or arrived.dim() < 2:
        return None
    channels = _channels(arrived)
    found = [position_of[channel] for channel in channels if channel in position_of]
    if len(found) < len(channels):
        return None
    reads = tuple(sorted({number for number, _ in found}))
    if any(sources[number].shape[2:] != arrived.shape[2:] for number in reads):
        return None
    lengths = [sources[number].shape[1] for number in reads]
    start = dict(zip(reads, np.cumsum([0, *lengths]), strict=False))
    return reads, np.array([start[number] + position for number, position in found], np.int64)


def _channels(tensor: Tensor) -> list[bytes]:
    """The content of each channel."""
    rows = tensor.transpose(0, 1).flatten(1).to("cpu", torch.float64).contiguous().numpy()
    return [row.tobytes() for row in rows]


@dataclass(eq=False)
class _Observation:
    """One run on noise.

    Attributes:
        passage: the call that is repeated.
        sources: noise given as input, then in place of each call's output.
        calls: names of the called modules, in order.
        arrived: the input of each called module, then the output; `None` for anything but a single tensor.
    """

    passage: Passage
    sources: list[Tensor] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)
    arrived: list[Tensor | None] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._generator = torch.Generator().manual_seed(0)
        self._depth = 0

    def run(self, module: nn.Module, training: bool) -> None:
        """Calls a module with its own `training` flag as given and those of its children off; restores all of them."""
        children = ((name, child) for name, child in module.named_modules() if child is not module)
        with watched(children, self._enter, self._leave), tracing_mode(module, False), torch.inference_mode():
            module.training = training
            given = self._noise((_BATCH, *self.passage.shape[1:]))
            output = module(given)
        untouched = torch.equal(given, self.sources[0])  # the caller sees what is written into the input
        self.arrived.append(output if untouched and torch.is_tensor(output) else None)

    def _noise(self, shape: tuple[int, ...]) -> Tensor:
        noise = torch.randn(shape, generator=self._generator).to(self.passage.device, self.passage.dtype)
        self.sources.append(noise.clone())  # code may write into what it is given
        return noise

    def _enter(self, name: str, module: nn.Module, args: tuple, kwargs: dict) -> None:
        if self._depth == 0:
            self.calls.append(name)
            plain = len(args) == 1 and not kwargs and torch.is_tensor(args[0])
            self.arrived.append(args[0].clone() if plain else None)
        self._depth += 1

    def _leave(self, name: str, module: nn.Module, args: tuple, output: Tensor) -> Tensor | None:
        self._depth -= 1
        return self._noise(output.shape) if self._depth == 0 else None
