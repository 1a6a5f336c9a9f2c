"""Reading a folder of crops, or a table of them: who is in which picture, and where it comes from.

A folder has a folder per identity. A picture's source is its camera, if names or a file say which; else the folder that
the picture lies in below the identity's, else the picture itself. In the test a query's own source is left out of its
ranking, so that nobody is found by a picture taken a moment later.

    crops/anna/cam1_000123.jpg      anna, camera 1
    crops/anna/cam2/000007.jpg      anna, camera 2
    crops/ben/walk_3/0001.jpg       ben, source walk_3 (no name says a camera)
    crops/ben/x.jpg                 ben, a source of its own
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ..errors import ConfigError, DataError
from ..files.tables import read_table
from ..host.pictures import damage_of
from .unlabelled import pictures_below

logger = logging.getLogger(__name__)

TABLE_SUFFIX, CAMERAS_NAME = ".csv", "cameras.csv"
AUTO, NONE = "auto", "none"
SPLITS = ("train", "query", "gallery")
NAMED = 10  # pictures that cannot be read and are named in the log
# Names of files may be digests and dates: before and after stands no other letter or digit, but Market's `c1s1`.
_CAMERA = re.compile(r"(?:^|[^a-z0-9])(?:camera|cam|c)[ _-]?0*(\d{1,4})(?=s\d|[^a-z0-9]|$)", re.IGNORECASE)
_NUMBER = re.compile(r"\d+")


@dataclass(frozen=True)
class Crop:
    """A picture.

    Attributes:
        path: of its file.
        identity: name of who is in it.
        source: name of the camera, folder or picture that it comes from.
        by_camera: whether the source is a camera.
        split: one of `SPLITS`, if a table says so; else empty.
    """

    path: Path
    identity: str
    source: str
    by_camera: bool
    split: str = ""

    @property
    def place(self) -> tuple[str, tuple[int, ...], str]:
        """What pictures of a source are ordered by: their folder, and the numbers in their names."""
        numbers = tuple(int(number) for number in _NUMBER.findall(self.path.stem))
        return str(self.path.parent), numbers, self.path.name


def read_crops(path: str | Path, cameras: str = AUTO, decoded: bool = False) -> list[Crop]:
    """The pictures of a folder or a table that can be read, in a fixed order; the others are named in the log.

    Args:
        path: a folder with a folder per identity; or a CSV with the columns `path` and `identity`, and if known
            `camera` and `split`, whose paths are relative to it.
        cameras: of a folder: `auto` (a file `cameras.csv` in it, with the columns `path` and `camera`; else names such
            as `cam2` or `c2`), `none`, or a regular expression of which the first group is the camera.
        decoded: whether every picture is decoded to see whether it can be read; else its header is.

    Raises:
        DataError: no such folder or file, no identities, or no picture that can be read.
        ConfigError: an expression that is none, a table without its columns or with a split that does not exist.
    """
    path = Path(path).expanduser()
    crops = _of_table(path) if path.suffix.lower() == TABLE_SUFFIX else _of_folder(path, cameras)
    damaged = {crop.path: why for crop in crops if (why := damage_of(crop.path, decoded))}
    if damaged:
        named = "; ".join(f"'{file}': {why}" for file, why in list(damaged.items())[:NAMED])
        more = f"; and {len(damaged) - NAMED} more" if len(damaged) > NAMED else ""
        logger.warning("%d of %d pictures cannot be read and are left out: %s%s", len(damaged), len(crops), named, more)
    left = [crop for crop in crops if crop.path not in damaged]
    if not left:
        looked = f"; the first was looked for at '{crops[0].path}'" if crops else ""
        raise DataError(f"'{path}' holds no picture that can be read{looked}; check its paths")
    return left


def split_identities(identities: Iterable[str], share: float, seed: int) -> set[str]:
    """The identities that are tested on.

    They are ordered by a digest of seed and name, and the first of them are taken: a folder that is added later hardly
    moves the others.

    Args:
        identities: names.
        share: of them that are tested on, rounded; at least two stay on either side.
        seed: of the draw.
    """
    names = sorted(set(identities), key=lambda name: hashlib.sha256(f"{seed}/{name}".encode()).digest())
    count = min(max(round(share * len(names)), 2), max(len(names) - 2, 0))
    return set(names[:count])


# ---- folders -------------------------------------------------------------------------------------------------------


def _of_folder(folder: Path, cameras: str) -> list[Crop]:
    found = [path.relative_to(folder) for path in pictures_below(folder)]
    found = [path for path in found if len(path.parts) > 1]
    if not found:
        raise DataError(
            f"'{folder}' has no folder with pictures in it; give a folder with a folder per identity, such as "
            "crops/anna/1.jpg, or a CSV of path, identity, camera"
        )
    table = folder / CAMERAS_NAME if cameras == AUTO and (folder / CAMERAS_NAME).is_file() else None
    known = _camera_table(table) if table else None
    pattern = _CAMERA if cameras == AUTO else None if cameras == NONE else _compiled(cameras)
    named = {path: _camera_of(path, known, pattern) for path in found}
    _check_cameras(folder, named, f"'{table}'" if table else "" if cameras in (AUTO, NONE) else "crops.cameras")
    if known and (unused := sorted(known.keys() - {path.as_posix() for path in found} - {path.name for path in found})):
        logger.warning("%d lines of '%s' are of no picture below it, such as '%s'", len(unused), table, unused[0])
    return [_crop(folder, path, named[path]) for path in sorted(found)]


def _check_cameras(folder: Path, named: Mapping[Path, str | None], said: str) -> None:
    """Checks the cameras of a folder, and logs which were found and what has none.

    Args:
        folder: of the pictures.
        named: camera of each picture below it.
        said: what the user has said cameras with; empty: nothing, names are looked at.

    Raises:
        DataError: what the user has said fits no picture.
    """
    missing = [path for path, camera in named.items() if camera is None]
    cameras = sorted({camera for camera in named.values() if camera is not None})
    if said and not cameras:
        raise DataError(
            f"{said} says the camera of none of the {len(named)} pictures below '{folder}', such as "
            f"'{missing[0].as_posix()}'; mend it, or leave it out"
        )
    if cameras:
        shown = ", ".join(cameras[:NAMED]) + (", ..." if len(cameras) > NAMED else "")
        logger.info(
            "%d cameras of pictures below '%s': %s (crops.cameras=none, if these are none)", len(cameras), folder, shown
        )
    if cameras and missing:
        logger.warning(
            "%d of %d pictures below '%s' do not say their camera, such as '%s'; each is a source of its own",
            len(missing),
            len(named),
            folder,
            missing[0],
        )


def _crop(folder: Path, path: Path, camera: str | None) -> Crop:
    inner = path.parts[1:-1]
    source = camera if camera is not None else "/".join(inner) or path.name
    return Crop(folder / path, path.parts[0], source, camera is not None)


def _camera_of(path: Path, known: dict[str, str] | None, pattern: re.Pattern[str] | None) -> str | None:
    """The camera of a picture, whose path is below the folder of all; identities' own names say none."""
    if known is not None:
        return known.get(path.as_posix(), known.get(path.name))
    match = pattern.search("/".join(path.parts[1:])) if pattern else None
    return match[1] if match else None


def _compiled(pattern: str) -> re.Pattern[str]:
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ConfigError(
            f"crops.cameras is {pattern!r}, which is no regular expression ({error}); mend it, or write auto"
        ) from error
    if compiled.groups < 1:
        raise ConfigError(f"crops.cameras is {pattern!r}; put the camera into a group, as in 'view(\\d+)'")
    return compiled


# ---- tables --------------------------------------------------------------------------------------------------------


def _camera_table(path: Path) -> dict[str, str]:
    rows = read_table(path, ("path", "camera"), "cameras", DataError)
    return {PurePosixPath(row["path"].replace("\\", "/")).as_posix(): row["camera"] for row in rows if row["camera"]}


def _of_table(path: Path) -> list[Crop]:
    crops: dict[Path, Crop] = {}
    for row in read_table(path, ("path", "identity"), "pictures", DataError):
        where = f"line {row.number} of '{path}'"
        camera, split = row.get("camera", ""), row.get("split", "").lower()
        if split not in ("", *SPLITS):
            raise ConfigError(f"{where} has the split '{split}'; allowed: {', '.join(SPLITS)}, or nothing")
        if not (row["path"] and row["identity"]):
            raise ConfigError(f"{where} is without path or identity: {dict(row)}; mend it")
        file = Path(os.path.normpath(path.parent / Path(row["path"]).expanduser()))
        if file in crops:
            raise ConfigError(f"{where} has the picture '{row['path']}' once more; a picture has one line")
        crops[file] = Crop(file, row["identity"], camera or row["path"], bool(camera), split)
    if not crops:
        raise DataError(f"'{path}' has a header and no line; give one for each picture")
    given = [crop for crop in crops.values() if crop.split]
    if given and len(given) < len(crops):
        raise ConfigError(
            f"'{path}' says the split of {len(given)} pictures and of {len(crops) - len(given)} not; fill in all, or "
            "none"
        )
    return sorted(crops.values(), key=lambda crop: str(crop.path))
