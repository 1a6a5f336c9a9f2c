"""Pictures of a folder without labels, as batches that a network takes."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torchvision import transforms

from ..batches import IMAGENET_MEAN, IMAGENET_STD
from ..errors import DataError
from ..host.pictures import read_picture

logger = logging.getLogger(__name__)

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm")


def pictures_below(folder: str | Path) -> list[Path]:
    """Files below a folder that are pictures by their names, in the order of their paths; hidden ones are passed over.

    Links to folders are followed.

    Raises:
        DataError: no such folder, or one below it that cannot be read.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"'{folder}' is no folder of pictures (looked in '{folder.parent.absolute()}'); check the path")
    try:
        return sorted(_pictures_in(folder, frozenset()))
    except OSError as error:
        raise DataError(f"'{error.filename}' cannot be looked into ({error.strerror}); make it readable") from error


def _pictures_in(folder: Path, above: frozenset[str]) -> Iterator[Path]:
    """Pictures in a folder and below it; `above` are the folders that lead to it: a link to one would be a circle."""
    if (real := os.path.realpath(folder)) in above:
        return
    for path in folder.iterdir():
        if path.name.startswith("."):
            continue
        if path.is_dir():
            yield from _pictures_in(path, above | {real})
        elif path.suffix.lower() in SUFFIXES and path.is_file():
            yield path


def unlabelled_batches(
    folder: str | Path,
    size: Sequence[int],
    count: int = 256,
    batch: int = 64,
    mean: Sequence[float] = IMAGENET_MEAN,
    deviation: Sequence[float] = IMAGENET_STD,
) -> list[Tensor]:
    """Evenly spaced pictures of a folder, in memory.

    Args:
        folder: with pictures in it or in folders below it.
        size: `(3, height, width)` or `(height, width)` of an image.
        count: how many at most.
        batch: how many at a time.
        mean: of each colour, subtracted from colours of 0 to 1.
        deviation: of each colour, divided by.

    Returns:
        Batches `[batch, 3, height, width]`.

    Raises:
        DataError: no such folder, one without pictures, or a picture that cannot be read.
    """
    paths = pictures_below(folder)
    if not paths:
        raise DataError(f"'{folder}' holds no picture ({', '.join(SUFFIXES)}); give a folder of crops")
    places = np.unique(np.linspace(0, len(paths) - 1, min(count, len(paths))).astype(int))
    scaled = transforms.Compose(
        [transforms.Resize(tuple(size[-2:])), transforms.ToTensor(), transforms.Normalize(mean, deviation)]
    )
    images = torch.stack([scaled(read_picture(paths[place])) for place in places])
    logger.info("%d of %d pictures below '%s'", len(images), len(paths), folder)
    return list(images.split(batch))
