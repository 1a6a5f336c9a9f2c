"""Networks of sets: any registered backbone, frame by frame, averaged over the frames of a set (paper: section 3.1).

A set's embedding is the mean of its frames' features, its class scores the mean of those of each frame, after neck and
classifier. The backbone has its last stride set to 1 and its last ReLU removed, if it allows that.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from tabulate import tabulate
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from ..errors import CheckpointError, ConfigError, DataError
from ..files import load_checkpoint, weights
from ..host import models
from ..models.last_relu import NONE, LastRelu, find_last_relu, remove_last_relu
from ..models.neck import NeckModel, build_for_neck, last_strided
from ..models.registration import backbone_names, register_wrapper
from ..models.vit import VisionTransformer, VitBuilder
from ..networks import DEFAULT_INPUT_SIZE

SET_PREFIX = "vkd_"


class FrameAverage(nn.Module):
    """Turns a network of single images into one of sets: its outputs are averaged over the frames.

    Mixed in before the network's class, which has the attributes. An image is a set of one frame.

    Attributes:
        classifier: on the feature, without a bias.
        feature: which feature evaluation gives, `before` or `after` the necks.
        feature_dim: length of the feature.
        head_modules: names of necks and classifier.
        last_relu: where the last ReLU is, or was.
        loss: `softmax` or `triplet`.
    """

    classifier: nn.Linear
    feature: str
    feature_dim: int
    head_modules: tuple[str, ...]
    last_relu: LastRelu
    loss: str

    def forward(self, sets: Tensor) -> Any:
        """Set embeddings `[sets, feature_dim]` in evaluation; in training class scores `[sets, classes]`, for the
        triplet loss with embeddings.

        Args:
            sets: `[sets, frames, 3, height, width]`, or images `[sets, 3, height, width]`.

        Raises:
            DataError: any other number of axes, or sets without frames.
        """
        if sets.dim() == 4:
            return super().forward(sets)
        return tree_map(lambda values: values.mean(dim=1), self.per_frame(sets))

    def per_frame(self, sets: Tensor) -> Any:
        """What `forward` averages: the same outputs with a further axis, `[sets, frames, ...]`."""
        if sets.dim() != 5 or 0 in sets.shape[:2]:
            raise DataError(
                f"a network of sets got a batch of shape {tuple(sets.shape)}; give [sets, frames, 3, height, width] "
                "with at least one frame, or single images [sets, 3, height, width]"
            )
        outputs = super().forward(sets.flatten(0, 1))
        return tree_map(lambda values: values.unflatten(0, sets.shape[:2]), outputs)


class SetModel(FrameAverage, NeckModel):
    """A backbone with batch norm neck and bias-free classifier, over sets.

    State dicts have the names of `NeckModel`: `backbone.*`, `neck.*`, `classifier.weight`.

    Args:
        backbone: torchreid model with one classifier. It changes: the classifier becomes an identity, and the last ReLU
            is removed where that is possible.
        num_classes: training identities.
        loss: `softmax` (training gives class scores) or `triplet` (class scores and embeddings).
        feature: which feature makes embeddings in evaluation, `before` the neck as the paper's, or `after`.
        input_size: `(channels, height, width)` at which the backbone runs, without memory, to be looked into.
        classifier: name of the backbone's classifier if known; empty: find it.
        last_relu: the backbone's last ReLU if known; `None`: find it.
        whole_block: remove every use of the last ReLU's module in its block, as the authors' program does.
            Such a network is marked in its state dict, which others refuse.

    Attributes:
        last_relu: where it was; its `removable` says whether it is removed.
    """

    def __init__(
        self,
        backbone: nn.Module,
        num_classes: int,
        loss: str = "triplet",
        feature: str = "before",
        input_size: tuple[int, int, int] = DEFAULT_INPUT_SIZE,
        classifier: str = "",
        last_relu: LastRelu | None = None,
        whole_block: bool = False,
    ) -> None:
        last_relu = find_last_relu(backbone, input_size) if last_relu is None else last_relu
        super().__init__(backbone, num_classes, loss, feature, input_size, classifier)
        self.last_relu = last_relu
        remove_last_relu(self.backbone, last_relu, shared=whole_block)
        if whole_block and len(last_relu.shared) > 1:
            self.register_buffer("block_without_relu", torch.ones((), dtype=torch.bool))


def as_set_model(network: nn.Module, num_classes: int, input_size: tuple[int, int, int]) -> FrameAverage:
    """A network of sets, for the triplet loss, from any network of images; lets a narrow student learn from views.

    Args:
        network: changed: its weights become the result's. A neck, and a classifier of as many classes, are kept.
        num_classes: training identities.
        input_size: `(channels, height, width)` of a frame.

    Raises:
        ConfigError: no or several classifiers.
    """
    if isinstance(network, FrameAverage):
        sets = network
    elif isinstance(network, VisionTransformer):
        sets = _averaging(network, SetVisionTransformer)
    elif isinstance(network, NeckModel):
        sets = _averaging(network, SetModel)
        sets.last_relu = find_last_relu(network.backbone, input_size)
        remove_last_relu(network.backbone, sets.last_relu)
    else:
        return SetModel(network, num_classes, "triplet", input_size=input_size)
    sets.feature, sets.loss = "before", "triplet"
    if sets.classifier.out_features != num_classes:
        sets.classifier = nn.Linear(sets.feature_dim, num_classes, bias=False)
        nn.init.normal_(sets.classifier.weight, std=0.001)
    return sets


def _averaging(network: nn.Module, kind: type[FrameAverage]) -> FrameAverage:
    """A network's own parts in the class that averages them over frames."""
    sets = kind.__new__(kind)
    sets.__dict__ = network.__dict__
    return sets


class SetVisionTransformer(FrameAverage, VisionTransformer):
    """A vision transformer with its own necks, over sets; no ReLU makes its feature."""

    last_relu = LastRelu(NONE)


# ---- names in the factory --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SetBuilder:
    """Builds `vkd_<backbone>`: the backbone over sets, with a neck, last stride 1 and no last ReLU."""

    backbone: str
    has_neck: ClassVar[bool] = True

    def __call__(
        self, num_classes: int, loss: str = "softmax", pretrained: bool = True, use_gpu: bool = True
    ) -> SetModel:
        """Arguments as every builder of torchreid's factory."""
        backbone, classifier = build_for_neck(self.backbone, num_classes, loss, pretrained, use_gpu)
        return SetModel(backbone, num_classes, loss, classifier=classifier, last_relu=last_relu_of(self.backbone))


@functools.lru_cache(maxsize=128)
def last_relu_of(name: str) -> LastRelu:
    """Where a registered backbone's last ReLU is; see `find_last_relu`."""
    size = models.input_size(name)
    try:
        return find_last_relu(models.skeleton(name, 2), size)
    except ConfigError:
        # Some operators fail without memory (a sampling grid of HACNN): run the network itself.
        return find_last_relu(models.build(name, 2), size)


def register_set_model(name: str) -> None:
    """Registers `vkd_<name>` for a backbone; doing it again changes nothing."""
    builder = models.builder_of(name)
    if isinstance(builder, VitBuilder):
        sets = replace(builder, name=SET_PREFIX + name, kind=SetVisionTransformer)
        models.register_model(SET_PREFIX + name, sets, defined_in=__name__)
    elif not getattr(builder, "has_neck", False):
        models.register_model(SET_PREFIX + name, SetBuilder(name), wraps=name)


def register_set_models() -> None:
    """Registers `vkd_<name>` for every backbone, those that are registered later included."""
    register_wrapper(SET_PREFIX, register_set_model)


def set_model_table(names: list[str] | None = None) -> str:
    """A Markdown table: what `vkd_<backbone>` changes in each backbone.

    Args:
        names: of backbones; `None`: all.
    """
    rows = [(name, *_changes(name)) for name in names or backbone_names()]
    return tabulate(rows, headers=("backbone", "last ReLU removed", "last stride 1"), tablefmt="github")


def _changes(name: str) -> tuple[str, str]:
    if isinstance(models.builder_of(name), VitBuilder):
        return NONE, NONE
    try:
        strided = last_strided(name)
    except ConfigError:
        return "-", "no: several classifiers"
    layers = f"yes, of {len(strided)} layer{'s' * (len(strided) > 1)}"
    return last_relu_of(name).removable, layers if strided else "as it was"


# ---- trained networks ------------------------------------------------------------------------------------------------


def class_count(model: nn.Module, who: str) -> int:
    """Number of classes of a network of sets.

    Args:
        model: the network.
        who: the role of the network, for the message.

    Raises:
        ConfigError: it has no classifier.
    """
    classifier = getattr(model, "classifier", None)
    if not isinstance(classifier, nn.Linear):
        raise ConfigError(
            f"the {who} is a {type(model).__name__} without a classifier, so it gives no class scores; give a network "
            f"of sets with its head, such as torchreid.models.build_model('{SET_PREFIX}resnet50', ...)"
        )
    return classifier.out_features


def load_set_model(name: str, path: str | Path, loss: str = "triplet") -> nn.Module:
    """Builds `vkd_<backbone>` with the weights of a checkpoint and as many classes as that has.

    Args:
        name: registered name, with or without `vkd_`.
        path: a state dict, or a checkpoint of an engine.
        loss: `softmax` or `triplet`.

    Raises:
        CheckpointError: unreadable, without a head, or of another network; nothing is loaded in part.
    """
    name = name if name.startswith(SET_PREFIX) else SET_PREFIX + name
    state = weights.state_dict_of(load_checkpoint(path), path)
    head = state.get("classifier.weight")
    if head is None or head.dim() != 2:
        raise CheckpointError(
            f"'{path}' has no head: none of its {len(state)} tensors is a 'classifier.weight' of [classes, channels]; "
            "give the checkpoint that the network's training wrote"
        )
    model = models.build(name, len(head), loss)
    fill(model, state, path)
    return model


def fill(model: nn.Module, state: Mapping[str, Tensor], path: str | Path) -> None:
    """Loads a state dict that fits in every tensor; raises `CheckpointError` for another one and loads nothing."""
    weights.check_state_dict(state, model.state_dict(), source=f"'{path}'", target=type(model).__name__)
    model.load_state_dict(dict(state))
