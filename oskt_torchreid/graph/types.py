"""What a channel graph consists of: which axis of which tensor is made of which channels, and which belong together.

Example (4 channels): ``Linear(3, 4)`` followed by ``Linear(4, 2)`` has the channels ``0..3`` (the hidden units) and
``4..5`` (the outputs). Its ties are::

    Tie("0.weight", axis=0, role="row",    channels=[[0, 1, 2, 3]])
    Tie("0.bias",   axis=0, role="row",    channels=[[0, 1, 2, 3]])
    Tie("1.weight", axis=1, role="column", channels=[[0, 1, 2, 3]])
    Tie("1.weight", axis=0, role="row",    channels=[[4, 5]])
    Tie("1.bias",   axis=0, role="row",    channels=[[4, 5]])

and its groups ``{0, 1, 2, 3}`` and, fixed because it is an output, ``{4, 5}``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

Role = Literal["row", "column"]


@dataclass(frozen=True, eq=False)
class Tie:
    """Axis ``axis`` of state-dict tensor ``tensor`` is made of ``channels``.

    Attributes:
        tensor: name of the tensor in the state dict.
        axis: the axis that the channels lie along.
        role: ``row`` where the tensor's operator produces (or scales) the channels, ``column`` where it consumes them.
        channels: channel per position, shape ``[blocks, length]``. There is one block, except along a grouped
            convolution, which has one per convolution group: consecutive positions of axis 0, the same ones of axis 1.
    """

    tensor: str
    axis: int
    role: Role
    channels: np.ndarray

    @property
    def blocks(self) -> int:
        """Number of convolution groups along the axis."""
        return self.channels.shape[0]

    def shaped(self, length_per_block: int) -> int:
        """Length of the tensor's axis when every block holds ``length_per_block`` positions."""
        return length_per_block * self.blocks if self.axis == 0 else length_per_block


@dataclass(frozen=True, eq=False)
class ChannelGroup:
    """Channels that are clustered together and share one width.

    Attributes:
        name: the module that first produces the group, with ``[block]`` or ``:part`` where one module produces several.
        channels: channel ids in increasing order, shape ``[size]``.
        fixed: why the group keeps its width, or an empty string where it may be narrowed.
    """

    name: str
    channels: np.ndarray
    fixed: str = ""

    @property
    def size(self) -> int:
        """Number of channels, which is the teacher's width."""
        return len(self.channels)


@dataclass(frozen=True, eq=False)
class SplitPoint:
    """An integer attribute of a module that says after how many channels its code takes them apart.

    Attributes:
        module: name of the module.
        attribute: name of the attribute; the teacher's value is the length of every part but the last.
        parts: channels of each part.
    """

    module: str
    attribute: str
    parts: tuple[np.ndarray, ...]


@dataclass(frozen=True, eq=False)
class Route:
    """A module whose own code does nothing but move channels between the modules that it calls (perhaps none).

    Source 0 is its input and source ``i`` the output of its call ``i - 1``. What each call is given, and at last the
    output of the module, is made of channels of some sources. Example: a shuffle of 4 channels calls nothing, has the
    source ``[0, 1, 2, 3]``, reads ``((0,),)`` and has the order ``[0, 2, 1, 3]``.

    Attributes:
        module: name of the module.
        calls: names of the called modules, in order, relative to its own.
        sources: channels of each source.
        reads: per call, and for the output, which sources are read; they are joined in this order.
        orders: per call, and for the output, positions in the joined sources.
    """

    module: str
    calls: tuple[str, ...]
    sources: tuple[np.ndarray, ...]
    reads: tuple[tuple[int, ...], ...]
    orders: tuple[np.ndarray, ...]


@dataclass(frozen=True, eq=False)
class Reduction:
    """A module whose own code reduces its input over channels, and does nothing else with it.

    Attributes:
        module: name of the module.
        operator: ``mean`` or ``sum``.
        channels: channels of its input in order, shape ``[length]``.
    """

    module: str
    operator: str
    channels: np.ndarray


@dataclass(frozen=True, eq=False)
class ChannelNorm:
    """A module that normalises over channels (layer norm, group norm), which counts merged channels once.

    A student computes what its teacher computes only where all its slots along a block stand for equally many channels.

    Attributes:
        module: name of the module.
        channels: channel per position, shape ``[blocks, length]``; each block is normalised by itself.
    """

    module: str
    channels: np.ndarray


@dataclass(frozen=True, eq=False)
class Attention:
    """A module that multiplies queries with keys, head by head: ``softmax(scale * q . k) v``.

    The product sums over a head's channels, so merged ones count once instead of as often as they were merged.
    Queries, keys and values of a head are one set of channels; all heads get equal widths.

    Attributes:
        module: name of the module.
        channels: channels of each head, shape ``[heads, head size]``.
        positions: tensor -> positions along its axis 0 that produce queries and keys; empty where something stands
            between these and the linear layers that issue them, so that nothing can be folded into their rows.
        scale_follows: whether the scale is the head's own ``size ** -0.5``, and not a number of the code's.
    """

    module: str
    channels: np.ndarray
    positions: dict[str, np.ndarray]
    scale_follows: bool
