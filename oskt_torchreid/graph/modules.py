"""Records of a channel graph for modules whose own code moves, counts, normalises or multiplies channels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class SplitPoint:
    """An integer attribute of a module that says after how many channels its code splits them.

    Attributes:
        module: name of the module.
        attribute: name of the attribute, or `name[place]` of a tuple; the teacher's value is the length of every part
            but the last, or of the only one.
        parts: channels of each part.
    """

    module: str
    attribute: str
    parts: tuple[np.ndarray, ...]


@dataclass(frozen=True, eq=False)
class Parts:
    """Parts, equally long in every student, that a module's own code cuts channels into, or compares with each other.

    Attributes:
        module: name of the module.
        channels: channels of each part, shape `[parts, length]`.
    """

    module: str
    channels: np.ndarray


@dataclass(frozen=True, eq=False)
class Route:
    """A module whose own code does nothing but move channels between the modules that it calls, if any.

    Source 0 is its input and source `i` the output of its call `i - 1`. The input of each call, and finally the output
    of the module, consists of channels of some sources. Example: a shuffle of 4 channels calls nothing, has the source
    `[0, 1, 2, 3]`, reads `((0,),)` and has the order `[0, 2, 1, 3]`.

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
        operator: `mean` or `sum`.
        channels: channels of its input in order, shape `[length]`.
    """

    module: str
    operator: str
    channels: np.ndarray


@dataclass(frozen=True, eq=False)
class ChannelNorm:
    """A module that normalises over channels (layer norm, group norm), which counts merged channels once.

    A student computes the same as its teacher only if all its slots along a block stand for equally many channels.

    Attributes:
        module: name of the module.
        channels: channel per position, shape `[blocks, length]`; each block is normalised by itself.
    """

    module: str
    channels: np.ndarray


@dataclass(frozen=True, eq=False)
class Attention:
    """A module that multiplies queries with keys, head by head: `softmax(scale * q . k) v`.

    The product sums over a head's channels, so merged ones count once instead of as often as they were merged.
    Queries, keys and values of a head are one set of channels; all heads get equal widths.

    Attributes:
        module: name of the module.
        channels: channels of each head, shape `[heads, head size]`.
        positions: tensor -> positions along its axis 0 that produce queries and keys; empty if another operation lies
            between these and the linear layers that produce them, so that nothing can be folded into their rows.
        scale_follows: whether the scale is the head's own `size ** -0.5`, not a constant in the code.
    """

    module: str
    channels: np.ndarray
    positions: dict[str, np.ndarray]
    scale_follows: bool
