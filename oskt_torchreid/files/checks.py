"""Checks of a file before and after it is read: sizes, headers, names in a pickle, memory of tensors.

A file may be malicious. None of these checks runs any code from a file; each looks at its bytes, or at tensors that
were read without running code.
"""

from __future__ import annotations

import pickletools
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor, nn

from ..networks import is_image_size

LARGEST_FILE = 64 * 2**30
LARGEST_HEADER = 2**25  # bytes of the description in a safetensors file
LARGEST_JSON = 2**28
LARGEST_PICKLE = 2**27  # bytes of the description in a checkpoint
MOST_RECORDS = 2**18  # in a checkpoint
MOST_OPERATIONS = 2**23  # of a pickle
DEEPEST_TUPLE = 32  # of a pickle; what is hashed, compared or shown is walked to its depth
SHARED_TIMES = 16  # bytes of all tensors, as a multiple of the file: how often tensors may share memory
LONGEST_TENSOR_NAME = 200
MOST_CLASSES = 10**6
MOST_PIXELS = 2**20
MOST_PLANES = 64  # of an image

_LENGTH_BYTES = 8
_ZIP = b"PK\x03\x04"
_LEGACY = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."  # magic number of torch.save before version 1.6
_LEGACY_PICKLES = 5  # magic number, version, system, content, keys
_DATA_MODULES = ("torch", "numpy", "collections", "_codecs")
_BUILTINS = {f"{module} {name}" for module in ("builtins", "__builtin__") for name in ("set", "complex")}
_TUPLES = {"TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"}
_MEMO_GETS, _MEMO_PUTS = {"BINGET", "LONG_BINGET", "GET"}, {"BINPUT", "LONG_BINPUT", "PUT"}


class SuspectFile(Exception):  # noqa: N818 - a finding, which files.py turns into the error of the kind of file
    """Something about a file that forbids to read it."""


def check_size(path: Path, limit: int = LARGEST_FILE) -> int:
    """Bytes of a file; raises `SuspectFile` for more than the limit."""
    size = path.stat().st_size
    if size > limit:
        raise SuspectFile(f"it has {size} bytes, more than the {limit} that such a file may have")
    return size


def check_safetensors(path: Path) -> None:
    """Raises `SuspectFile` unless the announced length of the header is possible; the library checks the rest."""
    size = check_size(path)
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
    longest = min(size - _LENGTH_BYTES, LARGEST_HEADER)
    if not 0 < length <= longest:
        raise SuspectFile(f"its header says {length} bytes; at most {max(longest, 0)} are possible in {size}")


# ---- checkpoints -----------------------------------------------------------------------------------------------------


def check_checkpoint(path: Path) -> None:
    """Raises `SuspectFile` unless a file of `torch.save` describes no more than it holds and names only data.

    Two formats are known: the archive of torch 1.6 and later, and the row of pickles before it. In an archive nothing
    may be compressed, so that what is read is never longer than the file.
    """
    size = check_size(path)
    with open(path, "rb") as file:
        start = file.read(len(_LEGACY))
        if start == _LEGACY:
            file.seek(0)
            for _ in range(_LEGACY_PICKLES):
                check_pickle(file)
        elif not start.startswith(_ZIP):
            raise SuspectFile("it does not begin as a file of torch.save does")
    if start != _LEGACY:
        _check_archive(path, size)


def _check_archive(path: Path, size: int) -> None:
    with zipfile.ZipFile(path) as archive:
        records = archive.infolist()
        if len(records) > MOST_RECORDS:
            raise SuspectFile(f"it has {len(records)} records; at most {MOST_RECORDS} are read")
        packed = [record.filename for record in records if record.compress_type != zipfile.ZIP_STORED]
        if packed or sum(record.file_size for record in records) > size:
            raise SuspectFile("its records are longer than the file; torch.save compresses nothing")
        pickles = [record for record in records if record.filename.split("/")[1:] == ["data.pkl"]]
        if len(pickles) != 1 or pickles[0].file_size > LARGEST_PICKLE:
            raise SuspectFile("it must have one description 'data.pkl' of its tensors, of ordinary length")
        with archive.open(pickles[0]) as stream:
            check_pickle(stream)


def check_pickle(stream: IO[bytes]) -> None:
    """Raises `SuspectFile` for a pickle that names more than data, or nests tuples deeply.

    It is read operation by operation, and nothing of it is run. Tuples may be keys of a mapping, and hashing one that
    is nested a million times ends the process.

    Example: the operations `NONE TUPLE1 TUPLE1` make `((None,),)`, of depth 2.
    """
    stack: list[Any] = []  # depth of each entry; marks as the object that pickletools has for them
    memo: dict[Any, int] = {}
    for number, (operation, argument, _) in enumerate(pickletools.genops(stream)):
        if number > MOST_OPERATIONS:
            raise SuspectFile(f"its description takes more than {MOST_OPERATIONS} operations")
        name = operation.name
        if name == "GLOBAL":
            _check_name(str(argument))
        elif name in ("STACK_GLOBAL", "INST", "OBJ", "EXT1", "EXT2", "EXT4", "PERSID"):
            raise SuspectFile(f"it uses '{name}', which no file of torch.save does")
        if name in _MEMO_PUTS or name == "MEMOIZE":
            memo[argument if name in _MEMO_PUTS else len(memo)] = stack[-1]
            continue
        depths = _taken_from(stack, operation)
        depth = memo.get(argument, 0) if name in _MEMO_GETS else 0
        if name in _TUPLES:
            depth = 1 + max(depths, default=0)
            if depth > DEEPEST_TUPLE:
                raise SuspectFile(f"it nests tuples deeper than {DEEPEST_TUPLE}")
        stack += [pickletools.markobject if kind is pickletools.markobject else depth for kind in operation.stack_after]


def _check_name(argument: str) -> None:
    module, _, name = argument.partition(" ")
    if module.partition(".")[0] not in _DATA_MODULES and argument not in _BUILTINS:
        raise SuspectFile(f"it wants to use '{module}.{name}', which is no data")


def _taken_from(stack: list[Any], operation: Any) -> list[int]:
    """Depths of the values that an operation takes off the stack."""
    before = operation.stack_before
    taken: list[int] = []
    if pickletools.stackslice in before:
        while (entry := stack.pop()) is not pickletools.markobject:
            taken.append(entry)
        before = before[: before.index(pickletools.markobject)]
    for _ in before:
        entry = stack.pop()
        taken += [] if entry is pickletools.markobject else [entry]
    return taken


# ---- tensors ---------------------------------------------------------------------------------------------------------


def check_memory(content: Any, size: int) -> None:
    """Raises `SuspectFile` unless every tensor in a checkpoint's content is a plain one that fits into the file.

    A tensor is a view of stored numbers, and with strides of 0 a view of four bytes may have any shape: the first
    operation on it would fill the memory.

    Args:
        content: mappings, sequences and tensors in any nesting.
        size: bytes of the file.
    """
    total = 0
    for tensor in _tensors_in(content):
        if type(tensor) not in (Tensor, nn.Parameter) or tensor.layout != torch.strided or tensor.is_quantized:
            raise SuspectFile(f"it has a {type(tensor).__name__} ({tensor.layout}, {tensor.dtype}), not a plain tensor")
        if tensor.device.type != "cpu":
            raise SuspectFile(f"it has a tensor of shape {tuple(tensor.shape)} without numbers ({tensor.device})")
        length = tensor.numel() * tensor.element_size()
        if length > tensor.untyped_storage().nbytes():
            raise SuspectFile(
                f"it has a tensor of shape {tuple(tensor.shape)}, {length} bytes, of which "
                f"{tensor.untyped_storage().nbytes()} are there"
            )
        total += length
    if total > SHARED_TIMES * size:
        raise SuspectFile(f"its tensors have {total} bytes together, and the file has {size}")


def _tensors_in(content: Any) -> Iterator[Tensor]:
    """Every tensor in nested containers, which may hold themselves."""
    known: set[int] = set()
    waiting = [content]
    while waiting:
        item = waiting.pop()
        if isinstance(item, Tensor):
            yield item
        elif isinstance(item, (Mapping, list, tuple, set)) and id(item) not in known:
            known.add(id(item))
            waiting.extend(item.values() if isinstance(item, Mapping) else item)


# ---- descriptions ----------------------------------------------------------------------------------------------------


def is_possible_image(size: Sequence[int]) -> bool:
    """Whether `(channels, height, width)` can be of an image, so that a network can be run on it."""
    return is_image_size(size) and size[0] <= MOST_PLANES and size[1] * size[2] <= MOST_PIXELS


def is_possible_model(num_classes: int, names: Iterable[str]) -> bool:
    """Whether a class count and names can be of a network, so that it can be built."""
    return 0 < num_classes <= MOST_CLASSES and all(len(name) <= LONGEST_TENSOR_NAME for name in names)
