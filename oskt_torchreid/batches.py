"""Batches of a loader, whose data set may raise anything while it is read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sized
from typing import Any

import torch
from torch import Tensor

from .errors import DataError, OsktError, first_line

_CHANNELS = 3


def batches_of(loader: Iterable[Any]) -> Iterator[Any]:
    """The batches of a loader, one by one.

    Raises:
        DataError: what its data set, its transforms or its workers raised, with their own message.
    """
    batches, count = iter(loader), 0
    while True:
        try:
            batch = next(batches)
        except StopIteration:
            if not count and isinstance(loader, Sized) and len(loader):
                raise DataError("the data set gave no picture at all; fix the data set, or its class") from None
            return
        except OsktError:
            raise
        except Exception as reason:  # a user's class may raise anything
            dataset = getattr(loader, "dataset", loader)
            raise DataError(
                f"{type(dataset).__name__} raised {type(reason).__name__} while it gave pictures: {_own_words(reason)}"
                "; fix the data set, its class or its transforms"
            ) from reason
        count += 1
        yield batch


def check_items(batch: Any, num_classes: int | None = None) -> None:
    """Raises `DataError` unless a batch has the form of torchreid's, images and labels by name.

    Args:
        batch: `img` `[batch, 3, height, width]` (sets `[batch, views, 3, height, width]`), `pid` `[batch]`.
        num_classes: identities that labels must be below; `None`: any.
    """
    if not isinstance(batch, Mapping) or not all(torch.is_tensor(batch.get(name)) for name in ("img", "pid")):
        raise DataError(
            f"a batch of the data set is a {type(batch).__name__}; its items must be dicts as those of torchreid's own "
            "data sets, with 'img', 'pid' and 'camid': fix the class"
        )
    images, pids = batch["img"], batch["pid"]
    if images.dim() not in (4, 5) or images.shape[-3] != _CHANNELS or not images.is_floating_point():
        raise DataError(
            f"a batch of the data set has images {tuple(images.shape)} of {images.dtype}; networks take floating point "
            "numbers [batch, 3, height, width]: fix the class, or its transforms"
        )
    if num_classes is not None and len(pids) and not 0 <= int(pids.min()) <= int(pids.max()) < num_classes:
        raise DataError(
            f"a batch of the data set has labels from {int(pids.min())} to {int(pids.max())}, and there are "
            f"{num_classes} training identities; its items must have the labels of its list 'train'"
        )


IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of each colour from 0 to 1: what torchreid normalises images by unless it is told otherwise."""


def images_of(batch: Any, number: int) -> Tensor:
    """The images of a batch: a tensor, a dict with one under `img` (torchreid), or a tuple that begins with one.

    Args:
        batch: from a loader.
        number: of the batch, for messages.

    Returns:
        `[batch, channels, height, width]`, floating point.

    Raises:
        DataError: anything else.
    """
    images = batch
    if isinstance(batch, Mapping):
        images = batch.get("img")
    elif isinstance(batch, (tuple, list)) and batch:
        images = batch[0]
    if torch.is_tensor(images) and images.dim() == 4 and images.is_floating_point():
        return images
    got = f"{images.dtype} of shape {tuple(images.shape)}" if torch.is_tensor(images) else type(images).__name__
    raise DataError(
        f"batch {number} holds {got}; give floating point images [batch, channels, height, width]: a tensor, a dict "
        "with one under 'img', or a tuple that begins with one"
    )


def _own_words(reason: Exception) -> str:
    """The message of an exception; one from a worker process has it after the worker's traceback."""
    lines = str(reason).strip().splitlines()
    if len(lines) > 1 and lines[0].startswith("Caught "):
        return lines[-1].removeprefix(f"{type(reason).__name__}: ")
    return first_line(reason)
