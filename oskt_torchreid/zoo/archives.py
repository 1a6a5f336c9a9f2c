"""Unpacking archives of others: into one folder, whole or not at all, and nothing but files in it."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple

from ..errors import ZooError
from ..files.checks import LARGEST_FILE

MOST_FILES = 100_000
MOST_TIMES = 200  # longer than the archive: ordinary compression reaches this, zip bombs exceed it
_ROOM = 2**20  # that any archive may take, however short
_CHUNK = 2**20


class Member(NamedTuple):
    """A file in an archive: its name, its stated length, and the function that opens it."""

    name: str
    size: int
    open: Callable[[], IO[bytes]]


def unpack(archive: str | Path, folder: str | Path) -> Path:
    """Unpacks a zip or tar archive.

    Args:
        archive: file.
        folder: must not be there yet; it is there when every file in it is.

    Returns:
        The folder.

    Raises:
        ZooError: damaged, of another format, too long when unpacked, or with a member that is no plain file inside the
            folder (`../x`, `/x`, `C:x`, a link, a device). Nothing is written then.
    """
    archive, folder = Path(archive), Path(folder)
    if folder.exists():
        raise ZooError(f"'{folder}' is there already; unpack into a folder that is not")
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".{folder.name}.{secrets.token_hex(6)}")
    try:
        with opened_archive(archive) as opened:
            members = _checked(_members(opened), archive)
            for member in members:
                _write(member, temporary.joinpath(*PurePosixPath(member.name).parts), archive)
        temporary.mkdir(exist_ok=True)
        os.replace(temporary, folder)
    except ZooError:
        raise
    except (zipfile.BadZipFile, tarfile.TarError, zlib.error, OSError, EOFError, RuntimeError, ValueError) as reason:
        raise ZooError(f"'{archive}' cannot be unpacked ({reason}); fetch it again") from reason
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


@contextlib.contextmanager
def opened_archive(archive: Path) -> Iterator[zipfile.ZipFile | tarfile.TarFile]:
    """An archive of either format, closed after the block; raises `ZooError` for anything else."""
    if not archive.is_file():
        raise ZooError(f"no file at '{archive}'; check the path")
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as opened:
            yield opened
    elif tarfile.is_tarfile(archive):
        with tarfile.open(archive) as opened:
            yield opened
    else:
        raise ZooError(f"'{archive}' is neither a zip nor a tar archive; it may be a page that a server sent instead")


def _members(opened: zipfile.ZipFile | tarfile.TarFile) -> Iterator[Member]:
    """Every file of an archive; folders come with their files."""
    if isinstance(opened, zipfile.ZipFile):
        for info in opened.infolist():
            kind = stat.S_IFMT(info.external_attr >> 16)
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise ZooError(f"'{info.filename[:200]}' in it is a link or a device; only plain files are unpacked")
            if not info.is_dir():
                yield Member(info.filename, info.file_size, partial(opened.open, info))
    else:
        for entry in opened:
            if not (entry.isreg() or entry.isdir()):
                raise ZooError(f"'{entry.name[:200]}' in it is a link or a device; only plain files are unpacked")
            if entry.isreg():
                yield Member(entry.name, entry.size, partial(tarfile.ExFileObject, opened, entry))


def _checked(members: Iterator[Member], archive: Path) -> list[Member]:
    """The members, if all of them may be written; sizes are the stated ones, which writing enforces."""
    limit = min(LARGEST_FILE, MOST_TIMES * archive.stat().st_size + _ROOM)
    found: dict[str, Member] = {}
    total = 0
    for member in members:
        path = PurePosixPath(member.name)
        unsafe = path.is_absolute() or ".." in path.parts or any(sign in member.name for sign in "\\:\0")
        if unsafe or not path.parts or member.name in found:
            raise ZooError(f"'{member.name[:200]}' in '{archive}' lies outside of the folder, or is there twice")
        found[member.name] = member
        total += member.size
        if total > limit or len(found) > MOST_FILES:
            raise ZooError(
                f"'{archive}' has {archive.stat().st_size} bytes and unpacks to more than {limit}, or to more than "
                f"{MOST_FILES} files"
            )
    return list(found.values())


def _write(member: Member, target: Path, archive: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with member.open() as source, open(target, "xb") as file:
        left = member.size
        while chunk := source.read(min(_CHUNK, left + 1)):
            left -= len(chunk)
            if left < 0:
                raise ZooError(f"'{member.name}' in '{archive}' is longer than it says")
            file.write(chunk)
