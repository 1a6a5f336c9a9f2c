"""Which published files there are: names, links, licences, expected contents, as data in `catalogue.yaml`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

from ..errors import ZooError
from ..registry import nearest

KINDS = {
    "weights": "a state dict of one network",
    "chains": "weight chains of the OSKT authors, each in a separate folder",
    "sets": "archives of the VKD authors' checkpoint folders",
}
_PATH = Path(__file__).with_name("catalogue.yaml")
_DRIVE = ("drive.google.com", "docs.google.com")


@dataclass(frozen=True)
class Entry:
    """One published file, or folder of files.

    Attributes:
        name: in this catalogue.
        collection: that it belongs to.
        kind: `weights` (a state dict), `chains` (of the OSKT authors) or `sets` (archives of the VKD authors).
        model: registered name of the network that it is of.
        link: its address; empty if the source names none.
        page: where its authors describe it.
        source: where the link is taken from.
        licence: as the source states it; empty if it states none.
        note: its training data, or other remarks.
        contents: patterns of files in a folder; empty for a single file.
        sha256: checksum that the source states; empty if it states none.
    """

    name: str
    collection: str
    kind: str
    model: str
    link: str
    page: str
    source: str
    licence: str = ""
    note: str = ""
    contents: tuple[str, ...] = ()
    sha256: str = ""

    @property
    def file_name(self) -> str:
        """Name of a single file in the cache."""
        return f"{self.name}.pth"

    @property
    def is_folder(self) -> bool:
        """Whether it is several files."""
        return bool(self.contents)

    @property
    def is_on_drive(self) -> bool:
        """Whether the link is one of Google Drive, which plain HTTPS does not fetch."""
        return urlsplit(self.link).hostname in _DRIVE

    @property
    def expected(self) -> str:
        """Its required content, as text."""
        files = f"{' and '.join(self.contents)}: " if self.contents else ""
        return f"{files}{KINDS[self.kind]} ({self.model})"


@cache
def catalogue() -> Mapping[str, Entry]:
    """Every entry by name, in the order of the file."""
    collections = yaml.safe_load(_PATH.read_text(encoding="utf-8"))
    entries = [_entry(name, key, own, shared) for key, shared in collections.items() for name, own in _named(shared)]
    return {entry.name: entry for entry in entries}


def _named(shared: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    return list(shared["entries"].items())


def _entry(name: str, collection: str, own: Mapping[str, Any], shared: Mapping[str, Any]) -> Entry:
    common = {key: shared[key] for key in ("kind", "page", "source", "licence")}
    contents = tuple(own.get("contents", ()))
    return Entry(name=name, collection=collection, **{**common, **own, "contents": contents})


def entry_named(name: str) -> Entry:
    """One entry.

    Raises:
        ZooError: unknown name; the message has the nearest ones.
    """
    entries = catalogue()
    if name not in entries:
        raise ZooError(f"the zoo has no '{name}'{nearest(name, entries) or ''}; `oskt zoo list` shows what it has")
    return entries[name]
