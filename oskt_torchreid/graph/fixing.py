"""Why channels keep their width: results, what operators and modules ask for, and what must be as wide as these."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import nn

from .channel_graph import Tie
from .modules import Attention, Parts
from .recording import Recording
from .records import Records
from .sizes import Reading

OUTPUT = "output of the network"


def fix_modules(model: nn.Module, ties: Sequence[Tie], fixed: np.ndarray) -> None:
    """Fixes, in place, the channels that the `fixed_modules` of a network's modules produce (names of their children).

    With this attribute a network excludes channels from narrowing, such as the embedding in front of the first layer.
    """
    for name, module in model.named_modules():
        for child in getattr(module, "fixed_modules", ()):
            inside = f"{name}.{child}." if name else f"{child}."
            for tie in ties:
                if tie.role == "row" and tie.tensor.startswith(inside):
                    fixed[tie.channels] = f"'{child}' is one of the network's fixed_modules"


def fixed_reasons(
    recording: Recording, ties: list[Tie], channel_of: np.ndarray, num_channels: int, reading: Reading
) -> np.ndarray:
    """Why each channel is fixed, an object array `[num_channels]`; empty where it is not.

    An output whose channels some layer consumes is a feature and may be narrowed; one that none consumes is a result.
    """
    reasons = np.full(num_channels, "", dtype=object)
    kept = {part.reason for part in recording.keeping.parts.values()}
    first_last = reversed(recording.fixed)  # the first reason is what the others follow from, but for parts kept whole
    for ids, reason in sorted(first_last, key=lambda entry: entry[1] in kept):
        channels = channel_of[ids]
        reasons[channels[channels >= 0]] = reason
    consumed = np.zeros(num_channels, bool)
    for tie in ties:
        if tie.role == "column":
            consumed[tie.channels.reshape(-1)] = True
    for ids in recording.outputs:
        channels = channel_of[ids]
        channels = channels[channels >= 0]
        reasons[channels[~consumed[channels]]] = OUTPUT
    for ids, reason in recording.mixed if reading.perhaps else ():
        channels = channel_of[ids]
        reasons[channels[channels >= 0]] = reason
    return reasons


def fix_lengths(
    recording: Recording, attentions: Sequence[Attention], channel_of: np.ndarray, fixed: np.ndarray
) -> None:
    """Fixes, in place, channels of which training takes the length; that of queries and keys is made exact."""
    folded = [attention.channels.reshape(-1) for attention in attentions if attention.positions]
    exact = np.concatenate([np.empty(0, int), *folded])
    for ids, module in recording.measured:
        channels = channel_of[ids]
        channels = channels[channels >= 0]
        if not np.isin(channels, exact).all():
            fixed[channels] = f"'{module}' takes the length of all"


def fix_products(records: Records, ties: Sequence[Tie], fixed: np.ndarray) -> None:
    """Fixes, in place, queries and keys that nothing can be folded into, and what is as wide as fixed channels.

    Parts may be of other numbers of groups than each other, so all of them are fixed if any channel is. Blocks of a
    grouped convolution or a norm are fixed if one of them is wholly so.
    """
    for attention in records.attentions:
        if not attention.positions:
            fixed[attention.channels] = f"no rows make the products of '{attention.module}' exact"
    parts = [(part, False) for part in records.parts]
    blocked = [(Parts(tie.tensor.rpartition(".")[0], tie.channels), True) for tie in ties if tie.blocks > 1]
    blocked += [(Parts(norm.module, norm.channels), True) for norm in records.norms]
    while any([_fix_alike(part, whole, fixed) for part, whole in (*parts, *blocked)]):  # noqa: C419 - each of them
        pass


def _fix_alike(part: Parts, whole: bool, fixed: np.ndarray) -> bool:
    """Fixes all channels of some parts, in place, if one is fixed (`whole`: one part); whether that is new."""
    free = fixed[part.channels] == ""
    if not free.any() or (free.any(1).all() if whole else free.all()):
        return False
    fixed[part.channels[free]] = f"as wide as others in '{part.module}'"
    return True
