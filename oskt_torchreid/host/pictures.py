"""The one reader of pictures, also for torchreid's data sets: it reads a file once, and reports a damaged one."""

import contextlib
import os
import stat
from collections.abc import Iterator

from PIL import Image, UnidentifiedImageError

from ..errors import ConfigError, DataError, first_line
from .compat import INSTALL, torchreid

SHOWN_BYTES = 12


def read_picture(path: str | os.PathLike[str]) -> Image.Image:
    """Reads a picture.

    Returns:
        A new RGB picture.

    Raises:
        DataError: the file is missing, damaged, too large, or no picture.
    """
    try:
        with _opened(path) as picture:
            return picture.convert("RGB")
    except Exception as reason:  # decoders may raise anything for a damaged file
        raise DataError(
            f"picture '{path}' cannot be read: {_described(reason, path)}; replace the file, or take it out of the "
            "data set"
        ) from reason


def damage_of(path: str | os.PathLike[str], decoded: bool = False) -> str:
    """Why a picture cannot be read; empty if it can.

    Args:
        path: of the file.
        decoded: whether to decode all of it; else it is only opened, which does not detect a truncated file.
    """
    try:
        with _opened(path) as picture:
            if decoded:
                picture.convert("RGB")
    except Exception as reason:  # as in `read_picture`
        return _described(reason, path)
    return ""


def install_reader(worker: int = 0) -> None:
    """Makes torchreid's data sets read by `read_picture`; doing it again changes nothing.

    torchreid's own reader retries a damaged file for ever, and prints a line each time. It is replaced among the
    globals of the module of its data sets, which serve the engines of this package and torchreid's own data managers
    alike, and in the module that other data sets would import it from.

    Args:
        worker: number of a data loader's worker, not used: a spawned worker, which has not imported this package,
            starts with this function.

    Raises:
        ConfigError: this torchreid has no such reader.
    """
    own = getattr(torchreid.utils, "read_image", None)
    places = [vars(torchreid.utils), getattr(own, "__globals__", {})]
    places += [kind.__getitem__.__globals__ for kind in (torchreid.data.ImageDataset, torchreid.data.VideoDataset)]
    if own is not read_picture and any("read_image" not in place for place in places):
        raise ConfigError(
            f"this torchreid ({torchreid.__file__}) has no read_image next to its data sets; versions 0.2.5 (PyPI) and "
            f"1.4 (source) do: run `{INSTALL}`"
        )
    for place in places:
        if "read_image" in place:
            place["read_image"] = read_picture


@contextlib.contextmanager
def _opened(path: str | os.PathLike[str]) -> Iterator[Image.Image]:
    """A picture whose header has been read; anything may be raised for another file."""
    found = os.stat(path)
    if not stat.S_ISREG(found.st_mode):  # opening a pipe would block for ever
        raise OSError("it is a folder" if stat.S_ISDIR(found.st_mode) else "it is no regular file")
    if not found.st_size:
        raise OSError("it is empty")
    with Image.open(path) as picture:
        pixels, most = picture.width * picture.height, Image.MAX_IMAGE_PIXELS
        if most and pixels > most:  # up to twice as many, PIL only warns
            raise Image.DecompressionBombError(f"it claims to have {pixels} pixels; at most {most} are read")
        yield picture


def _described(reason: Exception, path: str | os.PathLike[str]) -> str:
    if isinstance(reason, FileNotFoundError):
        return "it is missing"
    if isinstance(reason, PermissionError):
        return "this user may not read it"
    if isinstance(reason, UnidentifiedImageError):
        with open(path, "rb") as file:
            return f"it is no picture, for it begins with {file.read(SHOWN_BYTES)!r}"
    return first_line(reason)
