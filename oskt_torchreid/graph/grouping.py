"""Channel groups: channels of one signature, named after what produces them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from .channel_graph import ChannelGroup, Tie


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
