"""What networks for re-identification have in common, as far as torch alone can tell: outputs, classifiers, names.

Names of models are resolved by whoever knows a factory: ``host`` registers torchreid's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from .errors import ConfigError

DEFAULT_INPUT_SIZE = (3, 256, 128)
_WRAPPER = "backbone."


@dataclass(frozen=True)
class ModelSpec:
    """What rebuilds a model: arguments of a builder."""

    name: str
    num_classes: int
    loss: str


class Outputs(NamedTuple):
    """A model's outputs in one shape; one entry per branch, empty where the model gave none.

    Attributes:
        logits: tensors [batch, classes].
        features: tensors [batch, channels].
    """

    logits: tuple[Tensor, ...]
    features: tuple[Tensor, ...]


def parse_outputs(outputs: Any, training: bool, loss: str = "") -> Outputs:
    """Brings the outputs of any torchreid model into one shape.

    In evaluation models give features; in training logits (softmax) or a pair of logits and features (triplet); each
    may be a list of branches.

    Args:
        outputs: what the model returned.
        training: whether it was in training mode.
        loss: 'softmax' or 'triplet', as the model was built; empty: told from the structure.

    Raises:
        ConfigError: a pair of equally wide tensors without `loss`: two branches' logits or logits and features.
    """
    if not training:
        return Outputs((), _branches(outputs))
    if loss != "softmax" and isinstance(outputs, (tuple, list)) and len(outputs) == 2:
        logits, features = _branches(outputs[0]), _branches(outputs[1])
        nested = not (torch.is_tensor(outputs[0]) and torch.is_tensor(outputs[1]))
        if loss == "triplet" or nested or logits[0].shape[1] != features[0].shape[1]:
            return Outputs(logits, features)
        raise ConfigError(
            f"the model returned two tensors of shape {tuple(logits[0].shape)}: logits and features, or logits of two "
            "branches; pass loss='triplet' or loss='softmax' to parse_outputs"
        )
    return Outputs(_branches(outputs), ())


def _branches(outputs: Tensor | Sequence[Tensor]) -> tuple[Tensor, ...]:
    return (outputs,) if torch.is_tensor(outputs) else tuple(outputs)


def inner_names(names: Iterable[str]) -> dict[str, str]:
    """Names of the network inside a wrapper of this package -> full names; of a bare network all names, unchanged."""
    names = list(names)
    inner = {name.removeprefix(_WRAPPER): name for name in names if name.startswith(_WRAPPER)}
    return inner or {name: name for name in names}


def linear_of(model: nn.Module, name: str) -> nn.Linear:
    """The linear layer of a name, such as a network's classifier.

    Raises:
        ConfigError: the module of this name is another one.
    """
    module = model.get_submodule(name)
    if not isinstance(module, nn.Linear):
        raise ConfigError(
            f"'{name}' of {type(model).__name__} is a {type(module).__name__}; give the name of a linear layer"
        )
    return module


def is_classifier(name: str) -> bool:
    """Whether a tensor belongs to the classifier of torchreid's models."""
    return name.startswith("classifier")


def is_foreign_classifier(name: str) -> bool:
    """Whether a tensor belongs to a classifier as other programs name it (torchvision, timm).

    torchreid's own ``fc.0.weight``, a layer that makes a shorter feature, does not.
    """
    return name in ("fc.weight", "fc.bias", "head.weight", "head.bias")


@runtime_checkable
class _HasFeatureDim(Protocol):
    feature_dim: int


def set_feature_dim(model: nn.Module, feature_dim: int) -> None:
    """Corrects, in place, the attribute that holds the feature's length in torchreid's models, where there is one."""
    if isinstance(model, _HasFeatureDim) and isinstance(model.feature_dim, int):
        model.feature_dim = feature_dim


# ---- names of models -------------------------------------------------------------------------------------------------


class Resolver(Protocol):
    """Who knows the names of models."""

    def identify(self, model: nn.Module) -> ModelSpec | None:
        """What rebuilds a model; ``None`` where no name does."""

    def input_size(self, name: str) -> tuple[int, int, int]:
        """``(channels, height, width)`` that a model is made for."""

    def builder_of(self, name: str) -> Callable[..., nn.Module]:
        """What builds a model; raises ``ConfigError`` for an unknown name."""

    def skeleton(self, name: str, num_classes: int, loss: str = "softmax") -> nn.Module:
        """The model on the meta device, shared: copy it before changing it."""


class _NoNames:
    """Where nobody has registered a factory: networks are the user's own, and no name means any."""

    def identify(self, model: nn.Module) -> ModelSpec | None:
        return None

    def input_size(self, name: str) -> tuple[int, int, int]:
        return self._unknown(name)

    def builder_of(self, name: str) -> Callable[..., nn.Module]:
        return self._unknown(name)

    def skeleton(self, name: str, num_classes: int, loss: str = "softmax") -> nn.Module:
        return self._unknown(name)

    def _unknown(self, name: str) -> Any:
        raise ConfigError(
            f"the model '{name}' is asked for by name, which torchreid resolves: run `pip install torchreid`"
        )


_RESOLVERS: list[Resolver] = [_NoNames()]


def register_resolver(resolver: Resolver) -> None:
    """From here on, names of models are resolved by this one."""
    _RESOLVERS.append(resolver)


def resolver() -> Resolver:
    """Who resolves the names of models now."""
    return _RESOLVERS[-1]
