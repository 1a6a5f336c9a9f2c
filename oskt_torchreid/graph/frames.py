"""Module calls as the tracer sees them: while they run, and what is kept of those whose own code moves channels."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .failures import unweighted
from .recording import Frame, Recording


@dataclass(frozen=True, eq=False)
class Passage:
    """A call of a module whose own code took channels apart or reordered them, between the modules that it called.

    Attributes:
        module: name of the module.
        shape: shape of its input.
        dtype: type of its input.
        device: device of its input.
        calls: names of the modules that its own code called, in order, relative to its own.
        sources: ids of its input, then of the output of each call, ``[channels]`` each.
    """

    module: str
    shape: torch.Size
    dtype: torch.dtype
    device: torch.device
    calls: tuple[str, ...]
    sources: tuple[Tensor, ...]

    @classmethod
    def of(cls, frame: Frame) -> Passage | None:
        """What is kept of a finished call; ``None`` where something in it was not one tensor with known channels."""
        inside = f"{frame.name}."
        if any(ids is None for ids in frame.sources) or not all(call.startswith(inside) for call in frame.calls):
            return None
        calls = tuple(call.removeprefix(inside) for call in frame.calls)
        given = frame.given
        return cls(frame.name, given.shape, given.dtype, given.device, calls, tuple(frame.sources))

    def resembles(self, other: Passage) -> bool:
        """Whether both calls called the same modules and moved as many channels."""
        lengths, others = ([len(ids) for ids in passage.sources] for passage in (self, other))
        return self.calls == other.calls and lengths == others


class Frames:
    """Follows the calls of modules, and keeps what is known of those whose own code moves channels."""

    def __init__(self, recording: Recording) -> None:
        self._recording = recording
        self._passages: dict[str, Passage | None] = {}

    @property
    def passages(self) -> list[Passage]:
        """Calls of modules whose own code moved channels, where all that went in and out is known."""
        return [passage for passage in self._passages.values() if passage is not None]

    @contextlib.contextmanager
    def watching(self, model: nn.Module) -> Iterator[None]:
        """Follows the calls of a network's modules; the network itself has no frame."""
        handles = []
        for name, module in model.named_modules():
            if name:
                handles.append(module.register_forward_pre_hook(self._enter(name), with_kwargs=True))
                handles.append(module.register_forward_hook(self._leave))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _enter(self, name: str) -> Callable:
        def hook(_: nn.Module, args: tuple, kwargs: dict) -> None:
            given = args[0] if len(args) == 1 and not kwargs and torch.is_tensor(args[0]) else None
            self._recording.running.append(Frame(name, given, [self._recording.plain_channels(given)]))

        return hook

    def _leave(self, module: nn.Module, inputs: tuple, output: Any) -> None:
        frame = self._recording.running.pop()
        channels = self._recording.plain_channels(output)
        if self._recording.running:
            self._recording.running[-1].calls.append(frame.name)
            self._recording.running[-1].sources.append(channels)
        if frame.reduction is not None:
            self._keep_reduction(frame, *frame.reduction)
        if frame.name in self._recording.movements:
            self._keep_passage(frame, None if channels is None else Passage.of(frame))

    def _keep_reduction(self, frame: Frame, operator: str, ids: Tensor) -> None:
        known, known_ids = self._recording.reductions.setdefault(frame.name, (operator, ids))
        if frame.reads != 1 or operator != known or len(ids) != len(known_ids):
            raise unweighted(operator, frame.name)
        self._recording.unite(known_ids, ids)

    def _keep_passage(self, frame: Frame, passage: Passage | None) -> None:
        """A module that is called again must do the same again; the channels of both calls are one."""
        known = self._passages.setdefault(frame.name, passage)
        if known is None or passage is None or not known.resembles(passage):
            self._passages[frame.name] = None
            return
        for first, second in zip(known.sources, passage.sources, strict=True):
            self._recording.unite(first, second)
