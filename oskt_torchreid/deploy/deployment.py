"""A deployed network: images in, features out, and the metadata that a client needs to feed it."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..batches import IMAGENET_MEAN, IMAGENET_STD
from ..errors import ConfigError, ExportError
from ..networks import DEFAULT_INPUT_SIZE, is_image_size, parse_outputs, resolver, unwrapped
from .classifiers import evaluated_classifiers, fails
from .feeding import INPUTS, Feeding
from .lifting import FEATURES, Lifted, bare, lifting_of_student

INPUT, OUTPUT = "images", "features"
OUTPUTS = ("feature", "scores")


class Deployed(nn.Module):
    """A network in evaluation with one output, with any number of branches.

    Args:
        network: any module; a copy of it is kept, in single precision on the CPU, with channels before rows in memory:
            otherwise a trace writes a flattened feature as reads at computed positions, which clients run slowly or
            wrongly.
        normalized: divide each feature by its L2 norm.
        without: names of classifiers that are left out, so that the output is what they would be given.
        lifting: the entry of the output that each entry of a lifted feature is, see `lifting.py`; `None`: as it is.
        first: what comes before the network, see `Feeding.first`.
    """

    lifting: Tensor | None

    def __init__(
        self,
        network: nn.Module,
        normalized: bool = False,
        without: Sequence[str] = (),
        lifting: Sequence[int] | None = None,
        first: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.network = copy.deepcopy(unwrapped(network)).cpu().float().to(memory_format=torch.contiguous_format)
        self.first = first or nn.Identity()
        self.normalized = normalized
        self.register_buffer("lifting", None if lifting is None else torch.tensor(lifting), persistent=False)
        for name in without:
            self.network.set_submodule(name, nn.Identity())
        self.eval()
        self.requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        """Maps images, as `first` takes them, to features `[batch, length]`; branches are joined."""
        branches = parse_outputs(self.network(self.first(images)), training=False).features
        features = torch.cat(branches, 1) if len(branches) > 1 else branches[0]
        if self.lifting is not None:
            features = features.index_select(1, self.lifting)
        return functional.normalize(features, dim=1) if self.normalized else features


@dataclass(frozen=True)
class Deployment:
    """The content of an exported file.

    Attributes:
        network: maps images to features.
        name: registered name of the network, or of the teacher that a student comes from; empty: it has none.
        feeding: of the network.
        feature_dim: length of a feature, or the number of scores.
        output: which tensor of the network it is, in words.
        kind: `feature` or `scores`.
        origin: of a student, its chain, the lifting of its own feature, and whether the file gives lifted ones.
    """

    network: Deployed
    name: str
    feeding: Feeding
    feature_dim: int
    output: str = ""
    kind: str = OUTPUTS[0]
    origin: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        model: nn.Module,
        input_size: Sequence[int] | None = None,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        normalized: bool = False,
        output: str = OUTPUTS[0],
        feature: str = FEATURES[0],
        input: str = INPUTS[0],
        batch: int | None = None,
    ) -> Deployment:
        """Checks everything and runs the network once.

        Args:
            model: a student, teacher or any torchreid model; not changed.
            input_size: by default what a student's record or the model's registered name says, else 3x256x128.
            mean: see `Feeding`.
            std: see `Feeding`.
            normalized: divide each feature by its L2 norm.
            output: `feature`, what the classifier is given where evaluation runs one, as networks of torchvision and
                timm do, else what the network returns; or `scores`, the classifier's.
            feature: of a student, `own`, or `teacher`: lifted, as a student of `expand(..., feature="teacher")` has it.
            input: see `Feeding`.
            batch: see `Feeding`.

        Raises:
            ConfigError: no network, an impossible size, an unknown output, input or batch, scores of a network that
                gives none in evaluation, or a mean or std that does not fit it.
            FeatureError: a network whose features cannot be lifted.
            ExportError: a network that fails on an image, gives several tensors, no features, or NaN.
        """
        model = unwrapped(model)
        if output not in OUTPUTS:
            raise ConfigError(f"output of an export is {output!r:.100}; allowed: {', '.join(OUTPUTS)}")
        if not isinstance(model, nn.Module):
            raise ConfigError(f"what is exported is a {type(model).__name__}; give a network (torch.nn.Module)")
        record = getattr(model, "student_record", None)
        feature, model = ("teacher" if isinstance(model, Lifted) else feature), bare(model)
        lifting = _lifting(model, feature, output)
        spec = None if record else resolver().identify(model)
        name = record.name if record else spec.name if spec else ""
        known = record.input_size if record else resolver().input_size(name) if name else DEFAULT_INPUT_SIZE
        size = _checked_size(known if input_size is None else input_size)
        _check_statistics(mean, std, size[0])
        classifiers = evaluated_classifiers(model, size)
        if output == "scores" and not classifiers:
            raise ConfigError(
                f"{type(model).__name__} gives no class scores in evaluation that can be told from features; export "
                "output='feature'"
            )
        average, deviation = (tuple(float(value) for value in values) for values in (mean, std))
        feeding = Feeding(size, average, deviation, input, batch)
        network = Deployed(model, normalized, classifiers if output == "feature" else (), lifting, feeding.first)
        length = _feature_dim(network, type(model).__name__, feeding)
        words = "a lifted feature, in the places of the teacher's" if lifting else _in_words(output, classifiers)
        origin = _origin(record, feature) if output == "feature" else {}
        return cls(network, name, feeding, length, words, output, origin)

    def metadata(self, precision: str) -> dict[str, str]:
        """The metadata that a client needs, as JSON text per name.

        `network`, `input`, `layout`, `batch` (a fixed one), `input_size`, `mean`, `std`, `color`, `interpolation`,
        `output`, `feature_dim`, `l2_normalized` and `precision`; of a student of a chain also `chain`, `lifting`,
        `feature`, and if they were measured `thresholds` of these features and, of lifted ones, `fleet_thresholds` for
        features of all widths.
        """
        metadata: dict[str, Any] = {
            "network": self.name,
            "input": self.feeding.input,
            "layout": self.feeding.layout,
            **({"batch": self.feeding.batch} if self.feeding.batch else {}),  # others read a number there
            "input_size": list(self.feeding.input_size),
            "mean": list(self.feeding.mean),
            "std": list(self.feeding.std),
            "color": "RGB",
            "interpolation": "bilinear",
            "output": self.kind,
            "feature_dim": self.feature_dim,
            "l2_normalized": self.network.normalized,
            "precision": precision,
            **self.origin,
        }
        return {name: json.dumps(value) for name, value in metadata.items()}


def _lifting(model: nn.Module, feature: str, output: str) -> tuple[int, ...] | None:
    """How a network's features are lifted; `None` where they are not."""
    if feature not in FEATURES:
        raise ConfigError(f"feature of an export is {feature!r:.100}; allowed: {', '.join(FEATURES)}")
    if feature == "own":
        return None
    if output == "scores":
        raise ConfigError("class scores are not lifted; export output='feature', or feature='own'")
    return lifting_of_student(model)


def _origin(record: Any, feature: str) -> dict[str, Any]:
    """What a client needs to compare features of several widths, where a network is a student of a chain."""
    if not record:
        return {}
    named = {"thresholds": feature, **({"fleet_thresholds": "fleet"} if feature == "teacher" else {})}
    thresholds = {name: record.thresholds[kind] for name, kind in named.items() if kind in record.thresholds}
    if not (record.chain and record.lifting):
        return thresholds
    return {"chain": record.chain, "lifting": list(record.lifting), "feature": feature, **thresholds}


def _in_words(output: str, classifiers: Sequence[str]) -> str:
    names = " and ".join(f"'{name}'" for name in classifiers)
    if not classifiers:
        return "what the network returns in evaluation"
    return f"class scores of {names}" if output == "scores" else f"the feature before the classifier {names}"


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


def _feature_dim(network: Deployed, name: str, feeding: Feeding) -> int:
    images = feeding.example()
    try:
        with torch.inference_mode():
            features = network(images)
    except Exception as error:  # a user's code
        raise fails(network.network, feeding.input_size, error) from error
    if features.dim() != 2 or len(features) != len(images):
        raise ExportError(
            f"{name} gives {tuple(features.shape)} for {len(images)} images in evaluation; a deployed network gives a "
            "feature for each, [images, length]"
        )
    if not torch.isfinite(features).all():
        raise ExportError(f"{name} gives features that are NaN or infinite; export a network whose training succeeded")
    return features.shape[1]
