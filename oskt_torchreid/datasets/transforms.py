"""Training transforms that torchreid lacks, put into the chain that it builds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torchvision import transforms
from torchvision.transforms import InterpolationMode

PADDING = 10  # pixels on every side, as in the strong baseline (BoT)

Transform = Callable[[Any], Any]


def pad_crop(height: int, width: int) -> Transform:
    """Pads a picture with black by 10 pixels on every side and cuts a random part of the old size out of it."""
    return transforms.RandomCrop((height, width), padding=PADDING)


ADDED: dict[str, Callable[[int, int], Transform]] = {"pad_crop": pad_crop}


def complete_transforms(datamanager: Any, names: Sequence[str], interpolation: str = "bilinear") -> None:
    """Adds to a data manager's transforms, in place, those that torchreid does not have.

    The added ones work on pictures, just before they become tensors: after torchreid's flip, before normalisation and
    random erasing.

    Args:
        datamanager: torchreid image data manager.
        names: requested training transforms; torchreid's own are there already.
        interpolation: how training and test pictures are resized, `bilinear` or `bicubic`.
    """
    steps = datamanager.transform_tr.transforms
    place = next(index for index, step in enumerate(steps) if isinstance(step, transforms.ToTensor))
    steps[place:place] = [ADDED[name](datamanager.height, datamanager.width) for name in names if name in ADDED]
    for step in (*steps, *datamanager.transform_te.transforms):
        if isinstance(step, transforms.Resize):
            step.interpolation = InterpolationMode(interpolation)
