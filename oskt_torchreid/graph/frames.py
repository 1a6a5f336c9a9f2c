"""Module calls as the tracer sees them: while they run, and what is kept of those whose own code moves channels."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor


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
