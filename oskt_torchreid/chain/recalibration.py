"""Recalibration: norm statistics of a student re-estimated from unlabelled images, before any fine-tuning."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ..batches import batches_of, images_of
from ..errors import DataError, expect
from ..graph.tracer import tracing_mode
from ..networks import unwrapped, watched

logger = logging.getLogger(__name__)

Norm = nn.modules.batchnorm._NormBase


def recalibrate(student: nn.Module, loader: Iterable[Any], batches: int | None = None) -> nn.Module:
    """Re-estimates the running statistics of every norm that has them, as the plain average over batches.

    With `x_t` the statistic of batch `t`, momentum `1 / t` makes the running average
    `r_t = r_(t-1) + (x_t - r_(t-1)) / t` the mean of `x_1 .. x_t`, whatever was there before. Example: the batch
    means `4, 2, 0` leave `4`, then `3`, then `2`.

    Parameters, other buffers, modes and momenta do not change, nor do the statistics of norms that the images never
    reach. All batches count equally, whatever their size; those of a single image are skipped, because they have no
    variance.

    Args:
        student: any network; changed in place. If anything fails, it is restored.
        loader: gives image batches `[batch, channels, height, width]`, transformed as for training: tensors, dicts
            with a tensor under `img` (torchreid's data managers), or tuples that begin with a tensor. Labels are
            not read.
        batches: how many to use at most; `None` for all.

    Returns:
        The student itself, in the mode it was in.

    Raises:
        DataError: no batch of two or more images, or one that is not an image batch, that the network cannot take, or
            that makes statistics NaN or infinite.
    """
    given, student = student, unwrapped(student)
    expect(nn.Module, student, "student", "give a network", DataError)
    expect(Iterable, loader, "loader", "give batches of images, such as a data loader", DataError)
    expect((int, type(None)), batches, "batches", "give a whole number, or None for all", DataError)
    if batches is not None and batches < 1:
        raise DataError(f"batches is {batches}; statistics are estimated from at least 1 batch (None for all)")
    norms = [m for m in student.modules() if isinstance(m, Norm) and m.running_mean is not None]
    if not norms:
        logger.info("%s has no norm with running statistics: there is nothing to recalibrate", type(student).__name__)
        return given
    device = next((tensor.device for tensor in student.parameters()), torch.device("cpu"))
    done = 0
    with _restored_on_error(norms), _averaging(student, norms), torch.no_grad():
        for number, batch in enumerate(batches_of(loader), 1):
            images = images_of(batch, number)
            if len(images) > 1:
                observe(student, images.to(device), number)
                _check_statistics(norms, number)
                done += 1
            if done == batches:
                break
        if not done:
            raise DataError("the loader gave no batch of two or more images; statistics need at least one")
    return given


def observe(student: nn.Module, images: Tensor, number: int) -> None:
    """Runs a network on a batch; raises `DataError` for images that it cannot take."""
    try:
        student(images)
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise DataError(
            f"{type(student).__name__} cannot take batch {number} of shape {tuple(images.shape)} ({reason}); give "
            "images of the size that it was made for"
        ) from error


def _check_statistics(norms: list[Norm], number: int) -> None:
    buffers = [buffer for norm in norms for buffer in (norm.running_mean, norm.running_var) if buffer is not None]
    if not torch.isfinite(torch.cat([buffer.flatten().float() for buffer in buffers])).all():
        raise DataError(
            f"batch {number} makes norm statistics NaN or infinite; nothing was changed: check its pictures"
        )


@contextlib.contextmanager
def _averaging(student: nn.Module, norms: list[Norm]) -> Iterator[None]:
    """Inside this block norms use the batch's statistics and average them; dropouts drop nothing.

    Modules are in training mode, so that the layers between feature and classifier run as well.
    """
    momenta = [norm.momentum for norm in norms]
    numbered = {str(number): norm for number, norm in enumerate(norms)}
    calls = dict.fromkeys(norms, 0)

    def count(number: str, *_: object) -> None:
        norm = numbered[number]
        if not calls[norm] and norm.num_batches_tracked is not None:
            norm.num_batches_tracked.zero_()
        calls[norm] += 1
        norm.momentum = 1 / calls[norm]

    try:
        with tracing_mode(student), watched(numbered.items(), count):
            for norm in norms:
                norm.training = True
            yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum


@contextlib.contextmanager
def _restored_on_error(norms: list[Norm]) -> Iterator[None]:
    kept = [{name: buffer.clone() for name, buffer in norm.named_buffers(recurse=False)} for norm in norms]
    try:
        yield
    except BaseException:
        for norm, buffers in zip(norms, kept, strict=True):
            for name, buffer in buffers.items():
                getattr(norm, name).copy_(buffer)
        raise
