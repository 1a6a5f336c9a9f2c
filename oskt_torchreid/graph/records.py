"""What a trace says of modules whose own code moves, cuts, counts, normalises or multiplies channels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .modules import Attention, ChannelNorm, Parts, Reduction, Route, SplitPoint
from .notes import RecordedAttention, RecordedTie
from .recording import Recording
from .sizes import Reading


class Records(NamedTuple):
    """Records of a channel graph, see `ChannelGraph`."""

    splits: tuple[SplitPoint, ...]
    routes: tuple[Route, ...]
    reductions: tuple[Reduction, ...]
    norms: tuple[ChannelNorm, ...]
    attentions: tuple[Attention, ...]
    parts: tuple[Parts, ...]

    @property
    def axes(self) -> list[np.ndarray]:
        """Channels `[blocks, length]` of all that tells blocks apart."""
        found = [reduction.channels[None] for reduction in self.reductions]
        found += [norm.channels for norm in self.norms]
        found += [attention.channels for attention in self.attentions]
        return found + [parts.channels for parts in self.parts]

    def without_parts(self, fixed: np.ndarray) -> Records:
        """The same without parts that keep their length, as all their channels do; `fixed` is `[num_channels]`."""
        return self._replace(parts=tuple(part for part in self.parts if not fixed[part.channels].all()))


def records_of(
    recording: Recording,
    recorded: list[RecordedTie],
    channel_of: np.ndarray,
    routes: Sequence[Route],
    reading: Reading,
) -> Records:
    """The records of a trace.

    Args:
        recording: the trace.
        recorded: its ties.
        channel_of: channel per provisional id, -1 for those that lie along no tensor.
        routes: of its modules, in provisional ids.
        reading: how the numbers in the network's code are understood.
    """
    replaced = {route.module for route in routes}
    return Records(
        _splits_of(recording, channel_of, replaced, reading),
        _routes_of(routes, channel_of),
        _reductions_of(recording, channel_of),
        _norms_of(recording, channel_of),
        _attentions_of(recording, recorded, channel_of),
        _parts_of(recording, channel_of, replaced, reading),
    )


def _splits_of(
    recording: Recording, channel_of: np.ndarray, routed: set[str], reading: Reading
) -> tuple[SplitPoint, ...]:
    """Split points of known channels, except those of modules whose own code will not run in a student."""
    found = list(recording.splits)
    found += [(*place, lengths[:1]) for place, lengths in reading.lengths_of(recording).items()]
    return tuple(
        SplitPoint(module, attribute, tuple(channel_of[part] for part in parts))
        for module, attribute, parts in found
        if module not in routed and all((channel_of[part] >= 0).all() for part in parts)
    )


def _parts_of(recording: Recording, channel_of: np.ndarray, routed: set[str], reading: Reading) -> tuple[Parts, ...]:
    """Parts of known channels that differ, except those of modules whose own code will not run in a student."""
    found: dict[tuple, Parts] = {}
    named = [(module, np.stack(lengths)) for (module, _), lengths in reading.lengths_of(recording).items()]
    for module, ids in (*recording.parts, *named, *(recording.perhaps if reading.perhaps else ())):
        channels = channel_of[ids]
        channels = channels[sorted(np.unique(channels, axis=0, return_index=True)[1])]
        alike = (np.sort(channels, 1) == np.sort(channels[:1], 1)).all()
        if module not in routed and (channels >= 0).all() and not alike:
            found[channels.shape, channels.tobytes()] = Parts(module, channels)
    return tuple(found.values())


def _routes_of(routes: Sequence[Route], channel_of: np.ndarray) -> tuple[Route, ...]:
    """Routes of known channels."""
    return tuple(
        replace(route, sources=tuple(channel_of[source] for source in route.sources))
        for route in routes
        if all((channel_of[source] >= 0).all() for source in route.sources)
    )


def _reductions_of(recording: Recording, channel_of: np.ndarray) -> tuple[Reduction, ...]:
    reductions = []
    for module, (operator, ids) in recording.reductions.items():
        channels = channel_of[ids.numpy()]
        if (channels >= 0).all():
            reductions.append(Reduction(module, operator, channels))
        else:
            _fix_beside_constants(recording, ids, module)
    return tuple(reductions)


def _norms_of(recording: Recording, channel_of: np.ndarray) -> tuple[ChannelNorm, ...]:
    """Norms over channels that some layer produces."""
    found: dict[tuple, ChannelNorm] = {}
    for module, ids in recording.norms:
        channels = channel_of[ids]
        if (channels >= 0).all():
            found.setdefault((module, channels.shape, channels.tobytes()), ChannelNorm(module, channels))
        elif (channels >= 0).any():
            _fix_beside_constants(recording, torch.from_numpy(ids), module)
    return tuple(found.values())


def _fix_beside_constants(recording: Recording, ids: Tensor, module: str) -> None:
    """Channels that are summed over together with constants, which no width can make up for, stay."""
    recording.fix(ids, f"summed over with a constant in '{module}'")


def _attentions_of(recording: Recording, recorded: list[RecordedTie], channel_of: np.ndarray) -> tuple[Attention, ...]:
    """Attentions, with the rows of the tensors that a factor on queries and keys can be folded into.

    Provisional ids still distinguish queries, keys and values, which may have been united since. A bare parameter that
    is added to rows has ids of its own, and stands for theirs.
    """
    rows = np.arange(recording.num_ids)
    for bare, others in recording.stands_for:
        rows[bare] = others
    found: dict[tuple, Attention] = {}
    for product in recording.attentions:
        channels = channel_of[product.queries]
        if (channels < 0).any():
            if (channels >= 0).any():  # others are of parameters alone
                _fix_beside_constants(recording, torch.from_numpy(product.queries), product.module)
            continue
        positions = {} if _is_read(recording, product) else _positions(product, recorded, rows)
        key = product.module, channels.shape, channels.tobytes()
        known = found.get(key, Attention(product.module, channels, positions, product.scale_follows))
        found[key] = replace(known, positions=_of_both(known.positions, positions))
    return tuple(found.values())


def _of_both(first: dict[str, np.ndarray], second: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Positions of two products of the same channels, as of queries with two tables; none if one has none."""
    if not first or not second:
        return {}
    names = dict.fromkeys([*first, *second])
    return {name: np.union1d(first.get(name, []), second.get(name, [])).astype(int) for name in names}


def _positions(product: RecordedAttention, recorded: list[RecordedTie], rows: np.ndarray) -> dict[str, np.ndarray]:
    """Positions of a product's queries and keys along the tensors that make them; empty if nothing does for one."""
    found: dict[str, np.ndarray] = {}
    if None in product.makers:
        return found
    for ids, makers in zip((product.queries, product.keys), product.makers, strict=True):
        for tie in recorded:
            if tie.role == "row" and tie.tensor in (makers or ()):
                places = np.flatnonzero(np.isin(rows[tie.ids.reshape(-1)], rows[ids.reshape(-1)]))
                if len(places):
                    found[tie.tensor] = np.union1d(found.get(tie.tensor, places), places)
    return found


def _is_read(recording: Recording, product: RecordedAttention) -> bool:
    """Whether anything else reads the queries or keys of a product, which a factor would change."""
    return any(
        not names.isdisjoint(makers or ()) and np.isin(ids, read).any()
        for ids, makers in zip((product.queries, product.keys), product.makers, strict=True)
        for names, read in recording.reads
    )
