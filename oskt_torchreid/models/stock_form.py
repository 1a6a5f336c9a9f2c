"""A network with a neck in the form of the stock model, for programs that only know that form."""

import copy

import torch
from torch import nn

from ..errors import ConfigError
from ..networks import set_feature_dim
from .neck import NeckModel


def without_neck(model: nn.Module) -> nn.Module:
    """The backbone in its stock form, with the neck's effect on class scores folded into a classifier with a bias.

    With `n(x) = s (x - m) + b` and `s = g / sqrt(v + eps)`, the scores `W n(x)` are those of the weight `W s`
    and the bias `W (b - s m)`. Example, one feature and one class: `g = 2, v + eps = 4, m = 1, b = 3, W = 5` give
    `s = 1`, the weight 5 and the bias 10; the feature 4 scores 30 either way.

    Args:
        model: a network with a neck; not changed.

    Returns:
        A copy of the backbone. In training it gives the class scores that `model` gives with the neck's running
        statistics, in evaluation the feature before the neck.

    Raises:
        ConfigError: a network that is no `NeckModel`.
    """
    if not isinstance(model, NeckModel):
        raise ConfigError(f"{type(model).__name__} is no network with a neck (NeckModel); it is in its stock form")
    backbone, neck, weight = copy.deepcopy(model.backbone), model.neck, model.classifier.weight.detach()
    own = neck.state_dict()
    scale = own["weight"] * (own["running_var"] + neck.eps).rsqrt()
    classifier = nn.Linear(weight.shape[1], weight.shape[0], device=weight.device, dtype=weight.dtype)
    with torch.no_grad():
        classifier.weight.copy_(weight * scale)
        classifier.bias.copy_(weight @ (own["bias"] - scale * own["running_mean"]))
    backbone.set_submodule(model.replaced, classifier)
    set_feature_dim(backbone, weight.shape[1])
    return backbone.train(model.training)
