"""Whole files only: atomic writing, and reading that runs no code from the file."""

import hashlib
import json
import os
import re
import secrets
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import NamedTemporaryFile, TemporaryDirectory
from typing import Any

import numpy as np
import torch
import torch.distributed
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ..errors import ChainError, CheckpointError, ConfigError, OsktError, first_line
from .checks import (
    LARGEST_HEADER,
    LARGEST_JSON,
    SuspectFile,
    check_checkpoint,
    check_memory,
    check_safetensors,
    check_size,
)

METADATA_KEY = "oskt"
_KINDS = {
    b"PK\x03\x04": "a checkpoint",
    b"\x80\x02\x8a\x0al\xfc\x9c": "a checkpoint",
    b"\x08": "an ONNX file",
    b"{": "a JSON file",
    b"\x89PNG": "a picture",
    b"\xff\xd8\xff": "a picture",
    b"<": "an XML or HTML file",
}
"""What files begin with."""
_TAKEN_BY = {
    "a checkpoint": "oskt export takes networks and students, oskt.teacher and model.load_weights networks",
    "a weight chain": "oskt expand makes a student of it, and oskt.chain starts a run from it",
    "an ONNX file": "programs on the device take it; give the checkpoint that it was made of",
}
_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{12}(\.[^.]*)?|\.tmp\w{6}")  # as `atomic` and safetensors name them


@contextmanager
def atomic(path: str | Path, companion: str = "") -> Iterator[Path]:
    """Gives a temporary path next to `path` that replaces it when the block ends without an exception.

    Readers see the old file or the new one, never a part: on any exception, Ctrl-C included, the temporary file is
    removed and `path` does not change. If several processes train together, the first one's file is kept, and those of
    the others are dropped.

    Args:
        path: file to write; missing folders are made.
        companion: suffix of a second file of the same stem that the block writes too; it takes its place first.

    Yields:
        Path in the same folder with the same suffix, for the block to write.

    Raises:
        ConfigError: no folder can be there, or a folder has the file's name.
    """
    path = _as_path(path)
    if _another_writes():
        with TemporaryDirectory() as elsewhere:
            yield Path(elsewhere) / path.name
        return
    _make_room(path)
    temporary = path.with_name(f".{path.stem}.{secrets.token_hex(6)}{path.suffix}")
    files = [(temporary.with_suffix(companion), path.with_suffix(companion))] if companion else []
    files.append((temporary, path))
    try:
        yield temporary
        for written, _ in files:
            _flush(written)
        for written, place in files:
            os.replace(written, place)
        _flush(path.parent)
    finally:
        for written, _ in files:
            written.unlink(missing_ok=True)


def _as_path(path: str | Path, error: type[OsktError] = ConfigError) -> Path:
    if not isinstance(path, (str, os.PathLike)):
        raise error(f"a path is {path!r:.100}; give the path of a file")
    return Path(path)


def _make_room(path: Path) -> None:
    """Makes the folder of a file; raises `ConfigError` if that fails, or if a folder has the file's name."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with NamedTemporaryFile(dir=path.parent):
            pass  # some folders are there and take no file
    except OSError as reason:
        raise ConfigError(f"'{path}' cannot be written ({reason.strerror}); give another folder") from reason
    if path.is_dir():
        raise ConfigError(f"'{path}' is a folder, and a file is to be written there; move it away")


def remove_leftovers(folder: str | Path) -> None:
    """Removes the temporary files that a killed process left in a folder, which no other process may write to now."""
    for path in Path(folder).glob(".*"):
        if _TEMPORARY.fullmatch(path.name):
            path.unlink(missing_ok=True)


def save_tensors(path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
    """Writes tensors as safetensors, and `metadata` (anything that JSON can hold)."""
    # Clones, because safetensors refuses tensors that share memory.
    owned = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()
    }
    content = save(owned, metadata={METADATA_KEY: json.dumps(metadata, default=_plain)})
    with atomic(path) as temporary:
        temporary.write_bytes(content)  # safetensors' own files are nobody else's to read


def load_tensors(path: str | Path, error: type[OsktError] = ChainError) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Reads a file of `save_tensors`.

    Args:
        path: file to read.
        error: type of the error for a missing, truncated or unrelated file, and one that announces more than it holds.

    Returns:
        (tensors on the CPU, metadata).
    """
    path = _existing(path, error)
    try:
        check_safetensors(path)
        with safe_open(str(path), framework="pt") as file:
            metadata = (file.metadata() or {}).get(METADATA_KEY)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (SafetensorError, SuspectFile, OSError, RuntimeError, ValueError, MemoryError) as reason:
        raise error(
            f"cannot read '{path}': not a whole safetensors file ({reason}); "
            + (_advice(path, "a weight chain") or "it may be truncated or of another format: write or copy it again")
        ) from reason
    if metadata is None:
        raise error(
            f"'{path}' is a safetensors file of another program: it has no '{METADATA_KEY}' metadata; "
            "give a file that this package saved"
        )
    return tensors, _parse_json(metadata, path, error)


def save_checkpoint(path: str | Path, content: Any, check: Callable[[Path], None] | None = None) -> None:
    """Writes tensors and plain containers with `torch.save`, atomically; equal content gives files of equal size.

    Args:
        path: file to write.
        content: what is written.
        check: reads the written file before it takes its place; if it raises an error, nothing is left behind.
    """
    # Given a path, torch would write the temporary name into every record.
    with atomic(path) as temporary, open(temporary, "wb") as stream:
        torch.save(content, stream)
        stream.flush()
        if check is not None:
            check(temporary)


def load_checkpoint(path: str | Path, error: type[OsktError] = CheckpointError) -> Any:
    """Reads a `torch.save` file onto the CPU without running code from it.

    Tensors, plain containers and NumPy scalars are read: torchreid stores its rank-1 as a NumPy scalar, which
    `torch.load` refuses by default. What the file describes is compared with what it holds first, see `checks.py`.

    Args:
        path: file to read.
        error: type of the error for a missing, damaged or unsafe file.
    """
    path = _existing(path, error)
    try:
        check_checkpoint(path)
        with torch.serialization.safe_globals(numpy_scalar_globals()), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about what is refused in the next line
            content = torch.load(path, map_location="cpu", weights_only=True)
        check_memory(content, path.stat().st_size)
        return content
    except Exception as reason:  # torch.load raises nearly any type for a damaged file
        raise error(
            f"cannot read '{path}': damaged, or it holds more than tensors, plain containers and NumPy scalars "
            f"({first_line(reason)}); " + (_advice(path, "a checkpoint") or "save it again as a state dict")
        ) from reason


def write_json(path: str | Path, content: Any) -> None:
    """Writes indented JSON atomically; NumPy scalars and arrays become plain numbers and lists."""
    text = json.dumps(content, indent=2, default=_plain) + "\n"
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_json(path: str | Path, error: type[OsktError] = ConfigError) -> Any:
    """Reads JSON; a missing, damaged or far too long file raises `error`."""
    path = _existing(path, error)
    try:
        check_size(path, LARGEST_JSON)
        text = path.read_text(encoding="utf-8")
    except (SuspectFile, OSError, UnicodeDecodeError) as reason:
        raise error(f"cannot read '{path}' as JSON: {reason}; write it again") from reason
    return _parse_json(text, path, error)


def sha256(path: str | Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _advice(path: Path, wanted: str) -> str:
    """The actual kind of a file, and what reads it; empty if its first bytes do not show it.

    Example: of a student's file that was given as a chain, "it is a checkpoint of torch.save, ... not a weight chain".
    """
    found = kind_of(path)
    if not found or found == wanted:
        return ""
    return f"it is {found}, not {wanted}: {_TAKEN_BY.get(found, 'give another file')}"


def kind_of(path: str | Path) -> str:
    """The kind of a file by its first bytes, with an article; empty if they do not show it."""
    try:
        with open(path, "rb") as file:
            start = file.read(16)
    except OSError:
        return ""
    if not start:
        return "an empty file"
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") < LARGEST_HEADER:
        return "a weight chain"
    return next((kind for magic, kind in _KINDS.items() if start.startswith(magic)), "")


def _another_writes() -> bool:
    processes = torch.distributed
    return processes.is_available() and processes.is_initialized() and processes.get_rank() > 0


def _existing(path: str | Path, error: type[OsktError]) -> Path:
    path = _as_path(path, error)
    try:
        found = path.is_file()
    except (OSError, ValueError):  # of a name that no file can have
        found = False
    if not found:
        raise error(f"no file at '{path}' (looked in '{path.parent.absolute()}'); check the path")
    return path


def _parse_json(text: str, path: Path, error: type[OsktError]) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError, MemoryError) as reason:  # too long a number, too deep a nesting
        raise error(f"'{path}' holds damaged JSON ({first_line(reason)}); write it again") from reason


def _flush(path: Path) -> None:
    """Asks the system to put a file's (or folder's) content on the disk, so that a rename never precedes it."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def numpy_scalar_globals() -> list[Any]:
    """Functions needed to unpickle a NumPy scalar, under the names of NumPy 1 and 2."""
    scalar = np.float32(0).__reduce__()[0]
    types = {type(np.dtype(kind)) for kind in ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "?")}
    names = ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")
    return [*((scalar, name) for name in names), np.dtype, *types]


def _plain(value: Any) -> Any:
    """JSON form of NumPy values and paths."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} has no JSON form")
