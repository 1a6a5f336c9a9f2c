"""Channel groups: channels of one signature, named after what produces them, and why some keep their width.

They do that are results, that operators, modules or parts kept whole ask for, and that must be as wide as these.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from torch import nn

from .channel_graph import ChannelGroup, Tie
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


# ---- groups ----------------------------------------------------------------------------------------------------------


def signature_classes(
    axes: Sequence[np.ndarray], gates: list[tuple[np.ndarray, np.ndarray]], fixed: np.ndarray, num_channels: int
) -> np.ndarray:
    """Class per channel, `[num_channels]`: one class is refined by axes, gates and reasons until all agree.

    Axes are the channels `[blocks, length]` of ties, reductions and norms.

    Example with 4 channels: a tie of channels `[0, 1]` and one of `[[1, 2], [3, 3]]` (two convolution groups) give
    the signatures {0: first}, {1: first, block 0}, {2: block 0}, {3: block 1 twice}, hence four classes.
    """
    labels = np.zeros(num_channels, np.int64)
    for channels in axes:
        blocks = np.repeat(np.arange(channels.shape[0]), channels.shape[1])
        keys, counts = np.unique(channels.reshape(-1) * channels.shape[0] + blocks, return_counts=True)
        touched, block = np.divmod(keys, channels.shape[0])
        _refine(labels, touched, block * (counts.max(initial=0) + 1) + counts)
    for gate, fine in gates:
        known = (fine >= 0) & (gate >= 0)
        pairs = np.unique(fine[known] * num_channels + gate[known])
        _refine(labels, *np.divmod(pairs, max(1, num_channels)))
    reasons, reason = np.unique(fixed.astype(str), return_inverse=True)
    _refine(labels, np.arange(num_channels), reason)
    return labels


def _refine(labels: np.ndarray, channels: np.ndarray, codes: np.ndarray) -> None:
    """Splits classes, in place: a class is split if its channels received different codes, or none.

    Each code has a random number, and the sum of its numbers stands for the codes of a channel, whatever their order:
    two different ones agree with a probability of `2 ** -64`.
    """
    if not len(channels):
        return
    touched, place = np.unique(channels, return_inverse=True)
    different, code = np.unique(codes, return_inverse=True)
    numbers = np.random.default_rng(0).integers(0, 2**64, len(different), np.uint64)
    sums = np.zeros(len(touched), np.uint64)
    np.add.at(sums, place, numbers[code])
    order = np.lexsort((sums, labels[touched]))
    first, second = labels[touched][order], sums[order]
    begins = np.r_[True, (first[1:] != first[:-1]) | (second[1:] != second[:-1])]
    labels[touched[order]] = labels.max() + np.cumsum(begins)


def named_groups(labels: np.ndarray, ties: list[Tie], matrices: set[str], fixed: np.ndarray) -> tuple:
    """Groups in the order of their first channels, each named after the module that first produces it.

    Channels of a part that is kept whole are produced by none: they are named after the module that reads them.
    """
    producer = np.full(len(labels), "", dtype=object)
    for tie in reversed(ties):
        if tie.role == "column":
            producer[tie.channels] = f"{tie.tensor.rpartition('.')[0] or tie.tensor}.input"
    for preferred in (False, True):  # a matrix, where there is one, overrides a vector
        for tie in reversed(ties):
            if tie.role == "row" and (tie.tensor in matrices) == preferred:
                module = tie.tensor.rpartition(".")[0] or tie.tensor
                names = [f"{module}[{block}]" for block in range(tie.blocks)] if tie.blocks > 1 else [module]
                producer[tie.channels] = np.array(names, dtype=object)[:, None]
    order = np.argsort(labels, kind="stable")
    members = np.split(order, np.flatnonzero(np.diff(labels[order])) + 1) if len(order) else []
    members.sort(key=lambda channels: channels[0])
    names = [producer[channels[0]] for channels in members]
    shared = {name for name, count in Counter(names).items() if count > 1}
    seen: dict[str, int] = {}
    groups = []
    for name, channels in zip(names, members, strict=True):
        seen[name] = seen.get(name, -1) + 1
        groups.append(ChannelGroup(f"{name}:{seen[name]}" if name in shared else name, channels, fixed[channels[0]]))
    return tuple(groups)
