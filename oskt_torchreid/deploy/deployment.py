"""A deployed network: images in, features out, and the metadata that a client needs to feed it."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..errors import ConfigError, ExportError
from ..networks import DEFAULT_INPUT_SIZE, is_image_size, parse_outputs, resolver

INPUT, OUTPUT = "images", "features"
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # torchreid's own default


class Deployed(nn.Module):
    """A network in evaluation with one output, with any number of branches.

    Args:
        network: a torchreid model; a copy of it, in single precision on the CPU, is kept.
        normalized: divide each feature by its L2 norm.
    """

    def __init__(self, network: nn.Module, normalized: bool = False) -> None:
        super().__init__()
        self.network = copy.deepcopy(network).cpu().float()
        self.normalized = normalized
        self.eval()
        self.requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        """Maps images `[batch, channels, height, width]` to features `[batch, length]`; branches are joined."""
        branches = parse_outputs(self.network(images), training=False).features
        features = torch.cat(branches, 1) if len(branches) > 1 else branches[0]
        return functional.normalize(features, dim=1) if self.normalized else features


@dataclass(frozen=True)
class Deployment:
    """The content of an exported file.

    Attributes:
        network: maps images to features.
        name: registered name of the network, or of the teacher that a student comes from; empty: it has none.
        input_size: `(channels, height, width)` of an image.
        mean: per channel, of pixels in `[0, 1]`; subtracted first.
        std: per channel; divided by afterwards.
        feature_dim: length of a feature.
    """

    network: Deployed
    name: str
    input_size: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    feature_dim: int

    @classmethod
    def of(
        cls,
        model: nn.Module,
        input_size: Sequence[int] | None = None,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        normalized: bool = False,
    ) -> Deployment:
        """Checks everything and runs the network once.

        Args:
            model: a student, teacher or any torchreid model; not changed.
            input_size: by default what a student's record or the model's registered name says, else 3x256x128.
            mean: see the class.
            std: see the class.
            normalized: divide each feature by its L2 norm.

        Raises:
            ConfigError: no network, an impossible size, or a mean or std that does not fit it.
            ExportError: a network that fails on an image, gives no features, or gives NaN.
        """
        if not isinstance(model, nn.Module):
            raise ConfigError(f"what is exported is a {type(model).__name__}; give a network (torch.nn.Module)")
        record = getattr(model, "student_record", None)
        spec = None if record else resolver().identify(model)
        name = record.name if record else spec.name if spec else ""
        known = record.input_size if record else resolver().input_size(name) if name else DEFAULT_INPUT_SIZE
        size = _checked_size(known if input_size is None else input_size)
        _check_statistics(mean, std, size[0])
        network = Deployed(model, normalized)
        mean, std = (tuple(float(value) for value in values) for values in (mean, std))
        return cls(network, name, size, mean, std, _feature_dim(network, type(model).__name__, size))

    def metadata(self, precision: str) -> dict[str, str]:
        """The metadata that a client needs, as JSON text per name."""
        metadata: dict[str, Any] = {
            "network": self.name,
            "input_size": list(self.input_size),
            "mean": list(self.mean),
            "std": list(self.std),
            "color": "RGB",
            "interpolation": "bilinear",
            "feature_dim": self.feature_dim,
            "l2_normalized": self.network.normalized,
            "precision": precision,
        }
        return {name: json.dumps(value) for name, value in metadata.items()}


def _checked_size(size: Sequence[int]) -> tuple[int, int, int]:
    if not is_image_size(size):
        raise ConfigError(f"the input size of an export is {size!r}; give (channels, height, width), each 1 or more")
    channels, height, width = size
    return channels, height, width


def _check_statistics(mean: Sequence[float], std: Sequence[float], channels: int) -> None:
    for name, values in (("mean", mean), ("std", std)):
        if not isinstance(values, Sequence) or not all(isinstance(value, Real) for value in values):
            raise ConfigError(f"{name} of an export is {values!r:.100}; give a number for each of {channels} channels")
        if len(values) != channels:
            raise ConfigError(f"{name} of an export has {len(values)} numbers; images have {channels} channels")
    if min(std) <= 0:
        raise ConfigError(f"std of an export is {tuple(std)}; pixels are divided by it: give numbers above 0")


def _feature_dim(network: Deployed, name: str, size: tuple[int, int, int]) -> int:
    images = torch.rand(2, *size, generator=torch.Generator().manual_seed(0))
    try:
        with torch.inference_mode():
            features = network(images)
    except Exception as error:  # a user's code
        reason = str(error).strip().partition("\n")[0]
        raise ExportError(
            f"{name} fails on images {'x'.join(map(str, size))} ({reason}); give the size that it was made for"
        ) from error
    if features.dim() != 2 or len(features) != 2:
        raise ExportError(
            f"{name} gives {tuple(features.shape)} for 2 images in evaluation; a deployed network gives a feature for "
            "each, [2, length]"
        )
    if not torch.isfinite(features).all():
        raise ExportError(f"{name} gives features that are NaN or infinite; export a network whose training succeeded")
    return features.shape[1]
