"""Fetching one file: HTTPS with progress and resuming, and Google Drive by gdown. Received files are not trusted."""

from __future__ import annotations

import http.client
import inspect
import os
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tqdm.auto import tqdm

from ..errors import ZooError, first_line
from ..files.checks import LARGEST_FILE

CHUNK = 2**18
ATTEMPTS = 3
SECONDS = 30.0
_LOCAL = ("127.0.0.1", "localhost", "::1")
_RANGE_REFUSED = 416


class Interrupted(Exception):  # noqa: N818 - not an error yet: the received part is kept, and the next attempt resumes
    """A transfer that ended early."""


def fetch_https(link: str, part: Path, seconds: float = SECONDS, attempts: int = ATTEMPTS) -> None:
    """Fetches a file, resuming where an earlier attempt ended.

    Args:
        link: HTTPS; plain HTTP only of this machine.
        part: file to write. Its existing content is the beginning; `<part>.tag` next to it holds the version.
        seconds: that the server may be silent.
        attempts: how often a transfer that ends early is gone on with.

    Raises:
        ZooError: another protocol, the server's refusal, or a transfer that ended early in every attempt; what has
            arrived is kept for the next call.
    """
    address = urlsplit(link)
    if address.scheme != "https" and not (address.scheme == "http" and address.hostname in _LOCAL):
        raise ZooError(f"'{link}' is no HTTPS link; nothing is fetched over a connection that others can change")
    part.parent.mkdir(parents=True, exist_ok=True)
    reason = ""
    for _ in range(attempts):
        try:
            _transfer(link, part, seconds)
            return
        except urllib.error.HTTPError as error:
            raise ZooError(f"'{link}' answers {error.code} ({error.reason})") from error
        except (Interrupted, OSError, http.client.HTTPException) as error:
            reason = str(error) or type(error).__name__
    kept = part.stat().st_size if part.is_file() else 0
    raise ZooError(f"'{link}' cannot be fetched ({reason}); {kept} bytes have arrived and are kept")


def _transfer(link: str, part: Path, seconds: float) -> None:
    tag = part.with_name(part.name + ".tag")
    start = part.stat().st_size if part.is_file() and tag.is_file() else 0
    request = urllib.request.Request(link, headers={"Accept-Encoding": "identity"})
    if start:
        request.add_header("Range", f"bytes={start}-")
        request.add_header("If-Range", tag.read_text(encoding="utf-8"))
    try:
        response = urllib.request.urlopen(request, timeout=seconds)
    except urllib.error.HTTPError as error:
        if error.code != _RANGE_REFUSED or not start:
            raise
        part.unlink()  # longer than the file: not its beginning
        raise Interrupted("what was kept is not the beginning of this file") from error
    with response:
        goes_on = response.status == http.HTTPStatus.PARTIAL_CONTENT
        start = start if goes_on else 0
        if goes_on and not response.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
            part.unlink()
            raise Interrupted("the server resumed at another place")
        version = response.headers.get("ETag") or response.headers.get("Last-Modified")
        if version:
            tag.write_text(version, encoding="utf-8")
        else:
            tag.unlink(missing_ok=True)  # without a version it is unknown what to resume
        _write(response, part, start)


def _write(response: Any, part: Path, start: int) -> None:
    """Appends the received bytes, and raises `Interrupted` if they are fewer than announced."""
    length = response.headers.get("Content-Length")
    total = start + int(length) if length and length.isdecimal() else None
    if (total or 0) > LARGEST_FILE:
        raise ZooError(f"the server announces {total} bytes, more than the {LARGEST_FILE} that are fetched")
    done = start
    bar = tqdm(total=total, initial=start, unit="B", unit_scale=True, desc=part.stem, disable=None, leave=False)
    with bar, open(part, "ab" if start else "wb") as file:
        while chunk := response.read(CHUNK):
            file.write(chunk)
            done += len(chunk)
            bar.update(len(chunk))
            if done > LARGEST_FILE:
                raise ZooError(f"the server sends more than the {LARGEST_FILE} bytes that are fetched")
        file.flush()
        os.fsync(file.fileno())
    if total is not None and done != total:
        raise Interrupted(f"{done} of {total} bytes arrived")


def fetch_drive(link: str, target: Path, is_folder: bool = False, seconds: float = SECONDS) -> None:
    """Fetches a file or a folder with gdown, which resumes where an earlier attempt ended.

    Args:
        link: of Google Drive, or any other that gdown takes.
        target: file or folder to write.
        is_folder: whether the link is one of a folder.
        seconds: that the server may be silent.

    Raises:
        ZooError: gdown failed.
    """
    import gdown  # slow to import, and needed for nothing else

    target.parent.mkdir(parents=True, exist_ok=True)
    fetch = gdown.download_folder if is_folder else gdown.download
    options: dict[str, Any] = {"quiet": False, "resume": True, "use_cookies": False}
    options |= {"timeout": seconds, "retries": ATTEMPTS - 1}
    known = inspect.signature(fetch).parameters  # older versions know fewer
    try:
        got = fetch(link, output=str(target), **{name: value for name, value in options.items() if name in known})
    except Exception as error:  # gdown and its libraries may raise anything
        raise ZooError(f"'{link}' cannot be fetched ({first_line(error)})") from error
    if not got:
        raise ZooError(f"'{link}' cannot be fetched: Google Drive gave nothing")
