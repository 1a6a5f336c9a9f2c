"""Numbers of channels in a network's own code: attributes of its modules, and numbers taken from their inputs' shapes.

Code that cuts channels into heads, or joins heads again, names lengths. One that an attribute of the running module
holds (`self.head_dim`) is set in students. Any other that is as long as the module's input was, most likely, read off
it (`batch, tokens, width = x.shape`): what the code cuts must then be as wide as the input in every student. And parts
that one operator cuts an axis into are equally long.

Example: `qkv.reshape(batch, tokens, 3, self.heads, self.head_dim)` cuts an axis into `3 * heads` parts, whose length is
the attribute `head_dim`; `x.reshape(batch, tokens, width)` joins heads to something that is as wide as the input.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .recording import Recording
from .shadows import compact


@dataclass(frozen=True)
class Reading:
    """One way of understanding the numbers in a network's code.

    Attributes:
        perhaps: whether parts are equally long that need not be if attributes say how long they are, and modules
            that mix channels take numbers of channels off their inputs.
        without: name of an attribute that, where others hold the same number, is not one of channels.
    """

    perhaps: bool = False
    without: str = ""

    def lengths_of(self, recording: Recording) -> dict[tuple[str, str], list[np.ndarray]]:
        """Ids of all that is as long as an attribute says, `[length]` each, by module and attribute, as understood."""
        doubtful = ambiguous(recording)
        return {
            place: lengths
            for place, lengths in _by_place(recording).items()
            if place[1] != self.without or place not in doubtful
        }


PLAIN = Reading()


def readings(recording: Recording) -> list[Reading]:
    """Ways of understanding the numbers in a network's code, the most likely first."""
    names = dict.fromkeys(name for _, name in ambiguous(recording))
    found = [PLAIN, *(Reading(without=name) for name in names)]
    more = recording.perhaps or recording.mixed
    return found + [Reading(True, reading.without) for reading in found] if more else found


def ambiguous(recording: Recording) -> list[tuple[str, str]]:
    """Modules and attributes where several attributes hold the length of the same channels."""
    known: dict[tuple, list[tuple[str, str]]] = {}
    for (module, name), lengths in _by_place(recording).items():
        for length in lengths:
            places = known.setdefault((module, length.tobytes()), [])
            if (module, name) not in places:
                places.append((module, name))
    return list(dict.fromkeys(place for places in known.values() if len(places) > 1 for place in places))


def _by_place(recording: Recording) -> dict[tuple[str, str], list[np.ndarray]]:
    found: dict[tuple[str, str], list[np.ndarray]] = {}
    for module, attribute, ids in recording.named_lengths:
        found.setdefault((module, attribute), []).append(ids)
    return found


def numbers_of(module: nn.Module) -> Iterator[tuple[str, int]]:
    """A module's own whole numbers by name; those in tuples and lists as `name[place]`."""
    for name, value in vars(module).items():
        if type(value) is int:
            yield name, value
        elif type(value) in (tuple, list, torch.Size):
            yield from ((f"{name}[{place}]", entry) for place, entry in enumerate(value) if type(entry) is int)


def number_of(module: nn.Module, name: str) -> int | None:
    """One of `numbers_of`, or a buffer's length as `name.shape[axis]`; `None` if there is none of this name."""
    attribute, _, axis = name.removesuffix("]").partition(_LENGTH)
    buffer = module._buffers.get(attribute)
    if axis.isdecimal() and buffer is not None and int(axis) < buffer.dim():
        return buffer.shape[int(axis)]
    return dict(numbers_of(module)).get(name)


_LENGTH = ".shape["


def set_number(module: nn.Module, name: str, value: int) -> None:
    """Sets one of `numbers_of`, in place; tuples and lists are replaced by new ones, buffers cut."""
    attribute, _, place = name.removesuffix("]").partition(_LENGTH)
    if place:
        module._buffers[attribute] = module.get_buffer(attribute).narrow(int(place), 0, value).clone()
        return
    attribute, _, place = name.removesuffix("]").partition("[")
    if not place:
        setattr(module, attribute, value)
        return
    entries = list(getattr(module, attribute))
    entries[int(place)] = value
    setattr(module, attribute, type(getattr(module, attribute))(entries))


def blocks_of(shadow: Tensor) -> Tensor:
    """Channels along the last axis that has several, shape `[blocks, length]`: one block per place on all others."""
    small = compact(shadow)
    axis = max((axis for axis, size in enumerate(small.shape) if size > 1), default=-1)
    return small.movedim(axis, -1).reshape(-1, small.shape[axis]) if small.dim() else small.reshape(1, 1)


def note_view(recording: Recording, given: Sequence[int], before: Tensor, after: Tensor) -> None:
    """Notes the lengths that a view named.

    Args:
        recording: of the network.
        given: the lengths, with -1 for one that is left open; empty if there are none.
        before: the shadow of its input.
        after: the shadow of its output.
    """
    small = compact(after)
    axes = [axis for axis, size in enumerate(small.shape) if size > 1]
    if not axes:
        return
    blocks, whole = blocks_of(after), blocks_of(before)
    if len(blocks) > 1 and len(blocks) > len(whole):
        note_parts(recording, blocks)
    if given and given[axes[-1]] != -1:
        note_length(recording, blocks, whole[0] if len(whole) == 1 else None)


def note_parts(recording: Recording, parts: Tensor) -> None:
    """Notes that parts, `[parts, length]`, are equally long in every student."""
    recording.parts.append((recording.owner, parts.numpy()))


def note_length(recording: Recording, blocks: Tensor, whole: Tensor | None = None) -> None:
    """Notes that code named the length of each of some blocks.

    Args:
        recording: of the network.
        blocks: channels, `[blocks, length]`.
        whole: channels of what they are parts of, `[length]`, whose number code may have divided.
    """
    if blocks.shape[1] < 2:
        return
    longer = [] if whole is None or len(whole) == blocks.shape[1] else [whole[None]]
    known = [held(recording, lengths) for lengths in (blocks, *longer)]
    known.append(_divided(recording, blocks.shape[1]))
    for lengths in (blocks, *longer):
        for ids in recording.running[-1].inputs if recording.running else []:
            times, rest = divmod(lengths.shape[1], len(ids))
            if rest == 0 and (times == 1 or len(ids) % blocks.shape[1] == 0):
                alike = torch.cat([ids[None], lengths.reshape(-1, len(ids))]).numpy()
                (recording.perhaps if any(known) or times > 1 else recording.parts).append((recording.owner, alike))


def _divided(recording: Recording, length: int) -> bool:
    """Whether an attribute of the running module holds a half, third or quarter of a length."""
    held_numbers = {value for _, value in numbers_of(recording.submodule(recording.owner)) if value > 1}
    return any(length == times * value for value in held_numbers for times in (2, 3, 4))


def note_repeated(recording: Recording, constant: Tensor, axis: int, channels: Tensor) -> bool:
    """Whether a constant is a buffer outside of the state dict with one value for all channels; students cut it.

    Args:
        recording: of the network.
        constant: the tensor.
        axis: along which its channels lie.
        channels: they, `[length]`.
    """
    module, name = recording.transient.get(id(constant), ("", ""))
    if not name or constant.is_meta or not bool((constant == constant.narrow(axis, 0, 1)).all()):
        return False
    recording.named_lengths.append((module, f"{name}{_LENGTH}{axis}]", channels.numpy()))
    return True


def held(recording: Recording, blocks: Tensor) -> bool:
    """Whether attributes of the running module hold the length of these blocks; notes which."""
    owner = recording.owner
    names = [name for name, value in numbers_of(recording.submodule(owner)) if value == blocks.shape[1]]
    for name in names:
        recording.named_lengths += [(owner, name, lengths) for lengths in blocks.numpy()]
    return bool(names)


def input_channels(recording: Recording, values: Sequence[Any]) -> list[Tensor]:
    """Channels, `[length]` each, of those values that are tensors with several channels along an axis."""
    shadows = [recording.known_shadow(value) for value in values]
    blocks = [blocks_of(shadow)[0] for shadow in shadows if shadow is not None and shadow.dim()]
    return [channels for channels in blocks if len(channels) > 1]
