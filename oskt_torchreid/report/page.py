"""A report as one HTML file: pictures are inside, nothing is fetched, it reads on a phone."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2
from PIL import Image, UnidentifiedImageError

from ..files import atomic

TEMPLATE = "page.html"
THUMB = (64, 96)
"""Widest and highest a picture of a ranked list is, in pixels."""


@dataclass(frozen=True)
class Picture:
    """A picture with words.

    Attributes:
        source: its content as a `data:` address.
        text: what it shows, for those who do not see it.
        caption: how to read it; empty: nothing.
    """

    source: str
    text: str
    caption: str = ""


@dataclass(frozen=True)
class Place:
    """An entry of a ranked list; `right` says whether it shows the query's identity."""

    source: str
    right: bool


@dataclass(frozen=True)
class Ranked:
    """A query, and what every network found for it: `(network, its first places)`."""

    query: str
    identity: str
    lists: Sequence[tuple[str, Sequence[Place]]]


@dataclass(frozen=True)
class Table:
    """Words in rows; the first column is aligned to the left."""

    headers: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Section:
    """A part of a page; what it has none of is left out.

    Attributes:
        title: of the part.
        text: paragraphs.
        table: of numbers.
        pictures: beside each other where there is room.
        commands: what each is for, and the command.
        ranked: lists of queries.
    """

    title: str
    text: Sequence[str] = ()
    table: Table | None = None
    pictures: Sequence[Picture] = ()
    commands: Sequence[tuple[str, str]] = ()
    ranked: Sequence[Ranked] = ()


def write_page(path: str | Path, title: str, lead: str, sections: Sequence[Section]) -> None:
    """Writes a page, whole or not at all.

    Args:
        path: HTML file to write.
        title: its heading.
        lead: a sentence below it.
        sections: in order.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    text = environment.get_template(TEMPLATE).render(title=title, lead=lead, sections=sections)
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def address_of(content: bytes, kind: str) -> str:
    """Bytes as a `data:` address; `kind` such as `image/png`."""
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


def thumbnail(path: str | Path) -> str:
    """A small copy of a picture as a `data:` address; empty if the picture cannot be read any more."""
    try:
        with Image.open(path) as picture:
            small = picture.convert("RGB")
            small.thumbnail(THUMB)
    except (OSError, UnidentifiedImageError, ValueError):
        return ""
    content = io.BytesIO()
    small.save(content, "JPEG", quality=80)
    return address_of(content.getvalue(), "image/jpeg")


def picture_of(path: Path, text: str, caption: str = "") -> Picture | None:
    """A PNG of a run's folder; `None` if it is not there."""
    return Picture(address_of(path.read_bytes(), "image/png"), text, caption) if path.is_file() else None
