"""Networks of this package, and their names in torchreid's factory."""

from typing import Any

from torch import nn

from ..host.models import build
from .neck import NeckModel, find_classifier, register_neck_models, set_last_stride

__all__ = ["NeckModel", "build_model", "find_classifier", "register_all", "set_last_stride"]


def register_all() -> None:
    """Registers every network of this package with torchreid; doing it again changes nothing."""
    register_neck_models()


def build_model(config: Any, num_classes: int) -> nn.Module:
    """Builds the model of a configuration: `model.name`, with `model.last_stride` and `model.neck` where asked for.

    Raises:
        ConfigError: unknown name, or a backbone that does not allow what was asked for.
    """
    node = config.model
    size = (3, config.data.height, config.data.width)
    model = build(node.name, num_classes, config.loss.name, node.pretrained, config.use_gpu)
    if node.last_stride:
        set_last_stride(model, node.last_stride, size)
    if node.neck and not isinstance(model, NeckModel):
        model = NeckModel(model, num_classes, config.loss.name, input_size=size)
    return model
