"""Whether an exported file computes the same as the network, checked by running both."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from ..errors import ExportError
from .feeding import Feeding

Run = Callable[[np.ndarray], np.ndarray]
"""Images, in the form that a file takes, to features `[batch, length]`."""

BATCHES = (1, 3, 2)  # none is a multiple of another, so that a graph with a fixed length fails


@dataclass(frozen=True)
class Tolerance:
    """How far features may be off.

    Attributes:
        relative: largest difference, as a share of the largest entry of any feature.
        cosine: least cosine of the two features of an image.
        confused: whether a feature may be as near to the network's feature of another image as to its own image's.
    """

    relative: float
    cosine: float
    confused: bool = False


TOLERANCES = {
    "fp32": Tolerance(1e-3, 0.9999),
    "fp16": Tolerance(5e-2, 0.999),
    "int8": Tolerance(float("inf"), 0.9, confused=True),  # two frames of one person may be closer than eight bits
}


@dataclass(frozen=True)
class Parity:
    """How far an exported file is from its network.

    Attributes:
        max_abs: largest difference of two entries.
        relative: the same as a share of the largest entry of any feature.
        cosine: least cosine of the two features of an image.
        apart: least distance between exported features of different images, as a share of the longest feature.
        confused: exported features that are as near to the network's feature of another image as to their own image's.
        batches: images in each batch.
    """

    max_abs: float
    relative: float
    cosine: float
    apart: float
    confused: int
    batches: tuple[int, ...]

    def __str__(self) -> str:
        sizes = ", ".join(map(str, self.batches))
        return (
            f"max abs difference {self.max_abs:.2g} ({self.relative:.1g} of the largest entry), cosine "
            f"{self.cosine:.6f}, different images at least {self.apart:.2g} apart (batches of {sizes})"
        )


def pictures(feeding: Feeding) -> list[Tensor]:
    """Batches of different random pictures, coarse colours and fine grain, in the form that a file takes.

    Returns:
        Of the sizes `BATCHES`, or of the one that the file takes; the same in every call.
    """
    channels, height, width = feeding.input_size
    generator = torch.Generator().manual_seed(0)
    center, scale = (torch.tensor(values).reshape(-1, 1, 1) for values in (feeding.mean, feeding.std))
    batches = []
    for count in [feeding.batch] * 2 if feeding.batch else BATCHES:
        coarse = torch.rand(count, channels, 4, 2, generator=generator)
        colours = functional.interpolate(coarse, size=(height, width), mode="bilinear")
        grain = torch.rand(count, channels, height, width, generator=generator)
        batches.append(feeding.fed((0.8 * colours + 0.2 * grain - center) / scale))
    return batches


def check_parity(network: nn.Module, run: Run, batches: Iterable[Tensor], precision: str, path: object) -> Parity:
    """Compares the features of a network and of its exported file.

    Args:
        network: in evaluation, on the CPU.
        run: features `[batch, length]` of images, as the exported file takes them.
        batches: images, different ones.
        precision: `fp32`, `fp16` or `int8`; determines the tolerance.
        path: of the file, for messages.

    Raises:
        ExportError: another shape, features that differ, or that do not distinguish the images.
    """
    expected, found = [], []
    with torch.inference_mode():
        for images in batches:
            expected.append(network(images).numpy())
            found.append(_run(run, images.numpy(), expected[-1].shape, path))
    parity = _compare(np.concatenate(expected), np.concatenate(found), tuple(map(len, expected)))
    tolerance = TOLERANCES[precision]
    if not (parity.relative <= tolerance.relative and parity.cosine >= tolerance.cosine):
        raise ExportError(
            f"'{path}' does not compute what the network does: {parity}; allowed for {precision}: differences up to "
            f"{tolerance.relative:g} of the largest entry, cosines from {tolerance.cosine:g}. The file was deleted; "
            f"{_advice(precision)}"
        )
    if not parity.apart > 0 or (parity.confused and not tolerance.confused):
        raise ExportError(
            f"'{path}' does not distinguish images: {parity.confused} of {sum(parity.batches)} features are as near to "
            f"another image's as to their own ({parity}). The file was deleted; export a trained network, or "
            f"{_advice(precision)}"
        )
    return parity


def _run(run: Run, images: np.ndarray, shape: tuple[int, ...], path: object) -> np.ndarray:
    try:
        found = run(images)
    except Exception as error:  # each runtime has its own errors
        reason = str(error).strip().partition("\n")[0]
        raise ExportError(
            f"'{path}' does not run on a batch of {len(images)} ({reason}). The file was deleted; export to another "
            "format, or fix the network's code where it fixes the batch size"
        ) from error
    if found.shape != shape:
        raise ExportError(f"'{path}' gives features {found.shape} instead of {shape}. The file was deleted")
    return found


def _compare(expected: np.ndarray, found: np.ndarray, batches: tuple[int, ...]) -> Parity:
    """Example: `[3, 4]` and `[3, 4.5]` differ by 0.5, which is 0.125 of 4, and have the cosine 0.9984."""
    expected, found = expected.astype(np.float64), found.astype(np.float64)
    max_abs = float(np.abs(expected - found).max())
    largest = float(np.abs(expected).max())
    lengths = np.linalg.norm(expected, axis=1), np.linalg.norm(found, axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        cosine = float(((expected * found).sum(1) / (lengths[0] * lengths[1])).min())
        relative = float(np.float64(max_abs) / largest)
        apart = float((_distances(found, found) + np.diag([np.inf] * len(found))).min() / lengths[1].max())
    # Equally near counts as confused: a file with the same feature for all images is equally near to each.
    off = _distances(found, expected)
    others = np.where(np.eye(len(found), dtype=bool), np.inf, off).min(axis=1, initial=np.inf)
    confused = int((np.diag(off) >= others).sum())
    return Parity(max_abs, relative, cosine, apart, confused, batches)


def _distances(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    return np.linalg.norm(left[:, None] - right[None], axis=2)


def _advice(precision: str) -> str:
    if precision == "int8":
        return "calibrate with more images of the deployment's kind, or export in fp16"
    if precision == "fp16":
        return "its activations may leave the range of half precision: export in fp32"
    return "export to another format"
