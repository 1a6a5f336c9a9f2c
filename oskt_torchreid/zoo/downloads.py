"""The cache of published files: its files were fetched completely, checked, and are the same as the first time."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from .. import files
from ..errors import CheckpointError, OsktError, ZooError
from ..files.weights import state_dict_of
from .archives import opened_archive
from .catalogue import Entry, entry_named
from .fetching import SECONDS, fetch_drive, fetch_https

logger = logging.getLogger(__name__)
CHECKSUMS = "checksums.json"
INCOMING = ".incoming"
CACHE_VARIABLE = "OSKT_ZOO"


def cache_folder(folder: str | Path = "") -> Path:
    """Where published files are kept: as asked, else by the environment's `OSKT_ZOO`, else in the user's cache."""
    own = folder or os.environ.get(CACHE_VARIABLE)
    return Path(own) if own else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "oskt_torchreid"


def place_of(entry: Entry, folder: str | Path = "") -> Path:
    """Where an entry's file or folder is, or will be."""
    base = cache_folder(folder)
    return base / entry.name if entry.is_folder else base / entry.file_name


def download(name: str | Entry, folder: str | Path = "", seconds: float = SECONDS) -> Path:
    """Fetches an entry of the catalogue, or takes it from the cache; a file that was put there by hand is taken too.

    Args:
        name: of the entry.
        folder: cache, see `cache_folder`.
        seconds: that a server may be silent.

    Returns:
        The file, or the folder, whole and checked: readable without running code, with the contents that the catalogue
        expects, and of the checksum that it states, or that was recorded the first time.

    Raises:
        ZooError: unknown name, no connection, a transfer that ended early, or another content. The message says how to
            get the file by hand. No unchecked file is ever in its place; a transfer that ended early is gone on with by
            the next call.
    """
    entry = name if isinstance(name, Entry) else entry_named(name)
    place = place_of(entry, folder)
    if place.exists():
        verify(entry, place, cache_folder(folder))
        return place
    incoming = cache_folder(folder) / INCOMING / place.name
    try:
        _fetch(entry, incoming, seconds)
    except (ZooError, OSError) as error:
        raise ZooError(f"{error}. {by_hand(entry, folder)}") from error
    try:
        verify(entry, incoming, cache_folder(folder))
    except ZooError as error:
        _remove(incoming)
        raise ZooError(f"{error}. {by_hand(entry, folder)}") from error
    os.replace(incoming, place)
    logger.info("'%s' is in '%s'", entry.name, place)
    return place


def _fetch(entry: Entry, incoming: Path, seconds: float) -> None:
    if not entry.link:
        raise ZooError(f"no link is known for '{entry.name}': {entry.note}")
    if entry.is_on_drive:
        fetch_drive(entry.link, incoming, entry.is_folder, seconds)
    else:
        fetch_https(entry.link, incoming, seconds)
        incoming.with_name(incoming.name + ".tag").unlink(missing_ok=True)


def by_hand(entry: Entry, folder: str | Path = "") -> str:
    """How to do without this program: what, where from, where to."""
    what = f"the folder with {' and '.join(entry.contents)}" if entry.is_folder else "the file"
    where = f"{entry.link} (described at {entry.page})" if entry.link else entry.page
    return (
        f"By hand: get {what} of '{entry.name}' from {where}, put it at '{place_of(entry, folder).absolute()}', and "
        "give the same command again"
    )


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


# ---- checking --------------------------------------------------------------------------------------------------------


def verify(entry: Entry, place: Path, base: Path) -> None:
    """Raises `ZooError` unless a file or folder is what the catalogue expects, and the same as the first time.

    Args:
        entry: of the catalogue.
        place: file or folder.
        base: folder of the recorded checksums. One that is not there yet is recorded.
    """
    found = sorted(place.rglob("*")) if entry.is_folder else [place]
    parts = [path for path in found if path.is_file() and not path.is_symlink()]
    _check_contents(entry, place, parts)
    recorded_path = base / CHECKSUMS
    recorded = files.read_json(recorded_path, ZooError) if recorded_path.is_file() else {}
    if not isinstance(recorded, dict):
        raise ZooError(f"'{recorded_path}' holds no checksums; remove it to record them again")
    own = dict(_checksums(entry, place, parts))
    for key, checksum in own.items():
        expected = entry.sha256 or recorded.get(key, checksum)
        if checksum != expected:
            said = "the catalogue states" if entry.sha256 else f"'{recorded_path}' recorded the first time"
            raise ZooError(
                f"'{key}' is not the file that it was: its SHA-256 is {checksum}, {said} {expected}"
                + ("" if entry.sha256 else "; if its authors changed it, remove the line")
            )
    if not own.items() <= recorded.items():
        files.write_json(recorded_path, {**recorded, **own})


def _checksums(entry: Entry, place: Path, parts: Iterable[Path]) -> Iterable[tuple[str, str]]:
    for path in parts:
        inner = path.relative_to(place).as_posix() if entry.is_folder else ""
        yield f"{entry.name}/{inner}".rstrip("/"), files.sha256(path)


def _check_contents(entry: Entry, place: Path, parts: list[Path]) -> None:
    """Each file can be read without running code; a folder has what is expected in it."""
    for pattern in entry.contents:
        if not any(path in parts for path in place.glob(pattern)):
            raise ZooError(f"'{place}' has no {pattern}; expected is {entry.expected}")
    for path in parts:
        try:
            if path.suffix == ".json":
                files.read_json(path, ZooError)
            elif path.suffix == ".zip":
                with opened_archive(path):
                    pass
            elif path.suffix in (".pth", ".pt") or not entry.is_folder:
                _check_state(files.load_checkpoint(path, ZooError), path)
        except OsktError as error:
            raise ZooError(f"'{path.name}' is not what '{entry.name}' must be, {entry.expected}: {error}") from error


def _check_state(content: object, path: Path) -> None:
    """Checks that a checkpoint has a state dict, as training programs store it."""
    inside = content if isinstance(content, dict) else {}
    for candidate in (inside, *(inside.get(key) for key in ("model", "teacher", "student"))):
        try:
            state_dict_of(candidate, path)
            return
        except CheckpointError:
            continue
    raise ZooError(f"'{path}' holds no state dict")
