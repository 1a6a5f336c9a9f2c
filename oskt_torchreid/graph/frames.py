"""Module calls as the tracer sees them: while they run, and what is kept of those whose own code moves channels."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .rules.elementwise import unweighted

if TYPE_CHECKING:
    from .tracing import Tracer


@dataclass(eq=False)
class Frame:
    """A module call that is running.

    Attributes:
        name: name of the module.
        given: its input, where that is one tensor and nothing else.
        sources: ids along axis 1 of its input, then of what each module called by its own code gave back; ``None`` for
            anything but one tensor whose channels lie along axis 1.
        calls: names of the modules that its own code called, in order.
        reads: how many operators read its input, those of the modules that it calls included.
        reduction: operator, and ids of the input, where its own code reduces its input over channels.
    """

    name: str
    given: Tensor | None
    sources: list[Tensor | None]
    calls: list[str] = field(default_factory=list)
    reads: int = 0
    reduction: tuple[str, Tensor] | None = None


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
    """The stack of running modules, and what is kept of their calls.

    Attributes:
        reductions: module -> operator and ids of its input, where its own code reduces that, and does no more with it.
    """

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer
        self._stack: list[Frame] = []
        self._passages: dict[str, Passage | None] = {}
        self.reductions: dict[str, tuple[str, Tensor]] = {}

    @property
    def name(self) -> str:
        """Name of the module whose own code is running; empty for the network itself."""
        return self._stack[-1].name if self._stack else ""

    @property
    def passages(self) -> list[Passage]:
        """Calls of modules whose own code moved channels, where all that went in and out is known."""
        return [passage for passage in self._passages.values() if passage is not None]

    def count_reads(self, tensors: Iterable[Tensor]) -> None:
        """Notes which running modules' inputs an operator reads."""
        read = {id(tensor) for tensor in tensors}
        for frame in self._stack:
            frame.reads += id(frame.given) in read

    def record_reduction(self, operator: str, tensor: Tensor) -> bool:
        """Notes that the running module's own code reduces its input over channels; False for any other tensor."""
        frame = self._stack[-1] if self._stack else None
        if frame is None or frame.given is not tensor or frame.sources[0] is None:
            return False
        frame.reduction = (operator, frame.sources[0])
        return True

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
            self._stack.append(Frame(name, given, [self._tracer.plain_channels(given)]))

        return hook

    def _leave(self, module: nn.Module, inputs: tuple, output: Any) -> None:
        frame = self._stack.pop()
        channels = self._tracer.plain_channels(output)
        if self._stack:
            self._stack[-1].calls.append(frame.name)
            self._stack[-1].sources.append(channels)
        if frame.reduction is not None:
            self._keep_reduction(frame, *frame.reduction)
        if frame.name in self._tracer.movements:
            self._keep_passage(frame, None if channels is None else Passage.of(frame))

    def _keep_reduction(self, frame: Frame, operator: str, ids: Tensor) -> None:
        known, known_ids = self.reductions.setdefault(frame.name, (operator, ids))
        if frame.reads != 1 or operator != known or len(ids) != len(known_ids):
            raise unweighted(operator, frame.name)
        self._tracer.unite(known_ids, ids)

    def _keep_passage(self, frame: Frame, passage: Passage | None) -> None:
        """A module that is called again must do the same again; the channels of both calls are one."""
        known = self._passages.setdefault(frame.name, passage)
        if known is None or passage is None or not known.resembles(passage):
            self._passages[frame.name] = None
            return
        for first, second in zip(known.sources, passage.sources, strict=True):
            self._tracer.unite(first, second)
