"""What a recording of a forward pass consists of, in provisional ids."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from .channel_graph import Role


@dataclass(frozen=True, eq=False)
class RecordedTie:
    """A tie in provisional ids, before united channels have become one; `ids` is `[blocks, length]`."""

    tensor: str
    dimension: int
    role: Role
    ids: np.ndarray


Makers = frozenset[str] | None
"""Names of the tensors whose rows can multiply an activation by a factor per channel; `None` if there are none."""


@dataclass(frozen=True, eq=False)
class RecordedAttention:
    """Queries and keys that a module multiplies.

    Attributes:
        module: its name.
        queries: provisional ids `[heads, head size]`.
        keys: the same of the keys.
        scale_follows: whether the scale is the head's own.
        makers: of the queries and of the keys.
    """

    module: str
    queries: np.ndarray
    keys: np.ndarray
    scale_follows: bool
    makers: tuple[Makers, Makers]


@dataclass(eq=False)
class Frame:
    """A module call that is running.

    Attributes:
        name: name of the module.
        given: its input, if that is a single tensor and nothing else.
        sources: ids along axis 1 of its input, then of the output of each module called by its own code; `None` for
            anything but a single tensor whose channels lie along axis 1.
        inputs: channels of the tensors among its arguments whose channels lie along one axis, `[length]` each.
        calls: names of the modules that its own code called, in order.
        reads: how many operators read its input, those of the modules that it calls included.
        reductions: operator, ids of the input, and file and line, for each time that its own code reduces its input
            over channels by a mean or a sum.
    """

    name: str
    given: Tensor | None
    sources: list[Tensor | None]
    inputs: list[Tensor] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)
    reads: int = 0
    reductions: list[tuple[str, Tensor, str]] = field(default_factory=list)
