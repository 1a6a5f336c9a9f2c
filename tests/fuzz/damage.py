"""Ways to damage a file: its bytes, its tensors, what it says of them. For tests of everything that reads files.

Each takes the content of a file and a source of random numbers and gives the content of a damaged one, the same for the
same numbers. Nothing here is needed to use the package.
"""

from __future__ import annotations

import io
import json
import os
import zipfile
from collections.abc import Callable
from random import Random
from typing import Any

import torch
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor

from oskt_torchreid.files import numpy_scalar_globals

Damage = Callable[[bytes, Random], bytes]
Tensors = dict[str, Tensor]

DEEP, LONG, HUGE = 200_000, 3_000_000, 10**12
STRANGE = (None, -1, 0, 1.5, 1e400, float("nan"), 10**30, HUGE, "row", "", [], {}, [[]], True, "x" * LONG)

# ---- bytes -----------------------------------------------------------------------------------------------------------


def truncate(content: bytes, random: Random) -> bytes:
    """The beginning of a file."""
    return content[: random.randrange(len(content))]


def flip(content: bytes, random: Random) -> bytes:
    """Some bits are turned over, more often where a file describes itself: at its ends."""
    damaged = bytearray(content)
    ends = min(len(content), 2048)
    for _ in range(random.choice((1, 2, 8, 64))):
        place = random.choice((random.randrange(len(content)), random.randrange(ends), -1 - random.randrange(ends)))
        damaged[place] ^= 1 << random.randrange(8)
    return bytes(damaged)


def swap(content: bytes, random: Random) -> bytes:
    """Two stretches change places, possibly including the header."""
    length = random.choice((8, 64, 512, len(content) // 4)) or 1
    first, second = random.choice((0, random.randrange(len(content)))), random.randrange(len(content))
    damaged = bytearray(content)
    damaged[first : first + length], damaged[second : second + length] = (
        content[second : second + length],
        content[first : first + length],
    )
    return bytes(damaged)


def overwrite(content: bytes, random: Random) -> bytes:
    """A stretch of zeros, ones or noise."""
    start, length = random.randrange(len(content)), random.choice((4, 8, 256, 4096))
    filling = random.choice((b"\x00", b"\xff", random.randbytes(1))) * length
    return content[:start] + filling[: max(0, len(content) - start)] + content[start + length :]


def extend(content: bytes, random: Random) -> bytes:
    """Something is added, inside or at the end."""
    place = random.choice((0, len(content), random.randrange(len(content))))
    return content[:place] + random.randbytes(random.choice((1, 8, 1000))) + content[place:]


def replace(_: bytes, random: Random) -> bytes:
    """Another file altogether."""
    others = (b"", b"\x00" * 64, b"PK\x03\x04", b"{}", random.randbytes(512), b"\x80\x02.", b"<html>quota</html>")
    return random.choice(others)


BYTES: dict[str, Damage] = {d.__name__: d for d in (truncate, flip, swap, overwrite, extend, replace)}

# ---- tensors ---------------------------------------------------------------------------------------------------------


def _damaged_tensor(tensor: Tensor, random: Random) -> Tensor:
    value = random.choice((float("nan"), float("inf"), -float("inf"), 1e30, -1.0))
    poisoned = tensor.clone() if tensor.is_floating_point() else tensor.double()
    poisoned.reshape(-1)[random.randrange(max(1, tensor.numel())) :][:1] = value
    dtypes = (torch.bool, torch.int64, torch.uint8, torch.float64, torch.float16, torch.bfloat16)
    changed = (
        poisoned,
        tensor.to(random.choice(dtypes)),
        tensor.reshape(-1)[: tensor.numel() // 2].clone(),
        tensor.unsqueeze(0),
        tensor.transpose(0, -1).contiguous() if tensor.dim() else tensor.reshape(1),
        torch.zeros((0, *tensor.shape), dtype=tensor.dtype),
        torch.cat([tensor.reshape(-1), tensor.reshape(-1)]),
        torch.randint(-5, 100, tuple(tensor.shape)).to(tensor.dtype),
    )
    return random.choice(changed)


def _damage_tensors(tensors: Tensors, random: Random) -> Tensors:
    """Some tensors are of other values, kinds or shapes, exchanged, renamed, gone, or too many."""
    names = sorted(tensors)
    first, second = random.choice(names), random.choice(names)
    damaged = dict(tensors)
    way = random.randrange(8)
    if way < 4:
        damaged[first] = _damaged_tensor(tensors[first], random)
    elif way == 4:
        damaged[first], damaged[second] = tensors[second].clone(), tensors[first].clone()
    elif way == 5:
        del damaged[first]
    elif way == 6:
        damaged[random.choice(("", "x", first + "/" + second, "../" + first, "x" * 5000))] = tensors[first].clone()
    else:
        damaged[f"{first}.9{'9' * random.choice((1, 6000))}"] = damaged.pop(first)
    return damaged


def damage_json(content: Any, random: Random) -> Any:
    """A value anywhere in nested lists and mappings is another one; the content is changed in place."""
    node = content
    while True:
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        if not keys:
            return content
        key = random.choice(keys)
        if not isinstance(node[key], (dict, list)) or not node[key] or random.randrange(4) == 0:
            break
        node = node[key]
    way = random.randrange(6)
    if way == 0 and isinstance(node, dict):
        node[random.choice(("x", "", "__class__"))] = node.pop(key)
    elif way == 1 and isinstance(node, list):
        node.extend([node[key]] * random.choice((1, 1000)))
    elif way == 2 and type(node[key]) is int:
        node[key] += random.choice((-1, 1, 7, HUGE))
    else:
        node[key] = random.choice(STRANGE)
    return content


def _json_text(content: Any, random: Random) -> str:
    """JSON with a value that is another one, nested too deep, too long, or not JSON at all."""
    way = random.randrange(8)
    if way == 0:
        return "[" * DEEP + "]" * random.choice((0, DEEP))
    if way == 1:
        return '{"a":' * DEEP
    if way == 2:
        return json.dumps(content).replace("1", "1" * 6000, 1)
    return json.dumps(damage_json(content, random))


# ---- formats ---------------------------------------------------------------------------------------------------------


def safetensors_header(content: bytes, random: Random) -> bytes:
    """Length, shapes, types or offsets in the header are others."""
    length = int.from_bytes(content[:8], "little")
    body = content[8 + length :]
    if random.randrange(3) == 0:
        lengths = (0, 1, 2**63, 2**64 - 1, 2**40, 100_000_001, length + 1, max(0, length - 1))
        return random.choice(lengths).to_bytes(8, "little") + content[8:]
    text = _json_text(json.loads(content[8 : 8 + length]), random).encode()
    return len(text).to_bytes(8, "little") + text + body


def safetensors_tensors(content: bytes, random: Random) -> bytes:
    """Tensors are others; the header is right."""
    return save_safetensors(_damage_tensors(load_safetensors(content), random), _metadata(content))


def safetensors_metadata(content: bytes, random: Random) -> bytes:
    """The program's other entries, besides the tensors, are damaged."""
    metadata = {key: _json_text(json.loads(text), random) for key, text in _metadata(content).items()}
    return save_safetensors(load_safetensors(content), metadata)


def _metadata(content: bytes) -> dict[str, str]:
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length]).get("__metadata__", {})


def _saved(content: Any) -> bytes:
    stream = io.BytesIO()
    torch.save(content, stream)
    return stream.getvalue()


def _loaded(content: bytes) -> Any:
    with torch.serialization.safe_globals(numpy_scalar_globals()):
        return torch.load(io.BytesIO(content), weights_only=True)


def _state_in(content: Any) -> Tensors:
    return content.get("state_dict", content)


def checkpoint_tensors(content: bytes, random: Random) -> bytes:
    """Tensors are others, or views of next to nothing, sparse, or without memory."""
    whole = _loaded(content)
    state = _state_in(whole)
    name = random.choice(sorted(state))
    way = random.randrange(4)
    if way == 0:
        shape = random.choice((tuple(state[name].shape), (HUGE,), (10**6, 10**5)))
        state[name] = torch.zeros(()).expand(shape)
    elif way == 1:
        empty = torch.empty(state[name].shape, device="meta")
        sparse = torch.sparse_coo_tensor(size=(10**6, 10**6), check_invariants=True)
        state[name] = random.choice((empty, sparse, state[name].to_sparse()))
    else:
        damaged = _damage_tensors(state, random)
        state.clear()
        state.update(damaged)
    return _saved(whole)


def checkpoint_values(content: bytes, random: Random) -> bytes:
    """The other entries, besides the tensors, are damaged."""
    whole = _loaded(content)
    way = random.randrange(5)
    beside = {key: value for key, value in whole.items() if key != "state_dict" and not torch.is_tensor(value)}
    if way == 0 or not beside:
        return _saved(random.choice(([], {}, {"state_dict": {}}, {"state_dict": 3}, {3: torch.ones(1)}, None, [whole])))
    key = random.choice(sorted(beside))
    whole[key] = damage_json(beside, random).get(key) if way < 4 else random.choice(STRANGE)
    return _saved(whole)


class _Bomb:
    """Pickles as a call of the operating system."""

    def __reduce__(self) -> tuple:
        return os.mkdir, (BOMB_FOLDER,)


BOMB_FOLDER = "went-off"
"""Folder in the working directory that is there once code of a file has run."""


def bomb(content: bytes, random: Random) -> bytes:
    """A pickle that calls the operating system, at one of the places where something is unpickled."""
    whole = _loaded(content)
    state = _state_in(whole)
    way = random.randrange(5)
    if way == 0:
        whole = _Bomb()
    elif way == 1:
        state[random.choice(sorted(state))] = _Bomb()
    elif way == 2:
        whole["bomb"] = _Bomb()
    elif way == 3:
        whole = {**whole, "state_dict": _Bomb()}
    else:
        whole = [_Bomb(), whole]
    stream = io.BytesIO()
    torch.save(whole, stream, _use_new_zipfile_serialization=random.random() < 0.7)
    return stream.getvalue()


def pickle_operations(content: bytes, random: Random) -> bytes:
    """The archive's pickle is another one: deep, endless, or of other numbers; or a record is compressed."""
    stream = io.BytesIO()
    way = random.randrange(5)
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(stream, "w") as new:
        for record in old.infolist():
            data, packing = old.read(record), zipfile.ZIP_STORED
            if record.filename.endswith("data.pkl"):
                deep = b"\x80\x02}N" + b"\x85" * DEEP + b"Ns."
                texts = (deep, b"\x80\x02" + b"(" * DEEP, flip(data, random), truncate(data, random))
                data = texts[way] if way < len(texts) else data
            elif way == 4 and "/data/" in record.filename:
                data, packing = data + bytes(HUGE // 10**5), zipfile.ZIP_DEFLATED
            new.writestr(record.filename, data, packing)
    return stream.getvalue()


def labels(content: bytes, random: Random) -> bytes:
    """A JSON file says something else."""
    return _json_text(json.loads(content), random).encode()


SAFETENSORS = {**BYTES, **{d.__name__: d for d in (safetensors_header, safetensors_tensors, safetensors_metadata)}}
CHECKPOINT = {
    **BYTES,
    **{d.__name__: d for d in (checkpoint_tensors, checkpoint_values, bomb, pickle_operations)},
}
JSON = {**BYTES, "labels": labels}
