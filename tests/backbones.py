"""The table of backbones that the invariants run over."""

from __future__ import annotations

import os

import pytest
import torch
from torch import nn

from oskt_torchreid.host import models

_INPUT_SIZES = {
    "hacnn": (3, 160, 64),
    "mudeep": (3, 256, 128),
    "inceptionv4": (3, 128, 96),
    "inceptionresnetv2": (3, 128, 96),
    "nasnsetmobile": (3, 128, 64),
}
NUM_CLASSES = 7


def stock_names() -> list[str]:
    """Names that torchreid itself registers, and the stock networks with gates."""
    wrappers = ("oskt_", "neck_", "vkd_", "vit_")
    return [name for name in models.model_names() if not name.startswith(wrappers)]


EVERY_NETWORK = os.environ.get("OSKT_NETWORKS") == "all"
REST = pytest.mark.skipif(not EVERY_NETWORK, reason="takes long: OSKT_NETWORKS=all tries every network")
_LARGER = (
    *("osnet_x0_75", "osnet_x1_0", "osnet_ain_x0_5", "osnet_ain_x0_75", "osnet_ain_x1_0"),
    *("shufflenet_v2_x1_0", "shufflenet_v2_x1_5", "shufflenet_v2_x2_0"),
    *("resnet34", "resnet101", "resnet152", "resnext101_32x8d", "resnet101_bam", "se_resnet101", "se_resnet152"),
    *("se_resnext101_32x4d", "densenet161", "densenet169", "densenet201"),
)
"""Other networks of the table with more of the same blocks, or wider ones."""


def every_stock_name() -> list:
    """All stock names as parameters; the larger of two alike are left out unless every network is asked for."""
    return [pytest.param(name, marks=[REST] if name in _LARGER else []) for name in stock_names()]


# One of every way in which channels are tied together: residuals, groups, gates, concatenations, split norms, routes,
# separable convolutions, several heads, attention over channels, sums and concatenations in turn.
_KINDS = (
    *("resnet18", "resnext50_32x4d", "se_resnet50", "densenet121", "resnet50_ibn_a", "mobilenetv2_x1_0", "shufflenet"),
    *("shufflenet_v2_x0_5", "squeezenet1_0", "pcb_p4", "hacnn", "mlfn", "osnet_x0_25", "osnet_ain_x0_25"),
    *("nasnsetmobile", "inceptionv4"),
)


def one_of_each_kind() -> list[str]:
    """Stock names for invariants that follow from those checked over all of them: the small ones of every structure."""
    return list(_KINDS)


def input_size(name: str) -> tuple[int, int, int]:
    """The smallest image that a backbone runs on, rounded up."""
    return _INPUT_SIZES.get(name, (3, 64, 32))


def build(name: str, seed: int = 0) -> nn.Module:
    """A backbone with random weights in which nothing is at a neutral value, and activations of moderate size."""
    torch.manual_seed(seed)
    model = models.build(name, NUM_CLASSES)
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)) and module.bias is not None:
            nn.init.uniform_(module.bias, -0.3, 0.3)
        if isinstance(module, (nn.modules.batchnorm._BatchNorm, nn.InstanceNorm2d)) and module.weight is not None:
            nn.init.uniform_(module.weight, 0.6, 1.4)
            nn.init.uniform_(module.bias, -0.3, 0.3)
    return calibrate(model.eval(), torch.randn(2, *input_size(name)))


def calibrate(model: nn.Module, images: torch.Tensor) -> nn.Module:
    """Sets batch norm statistics near those of `images`, so that deep random networks neither explode nor vanish."""

    def observe(module: nn.Module, inputs: tuple) -> None:
        values = inputs[0].transpose(0, 1).flatten(1)
        module.running_mean.copy_(values.mean(1) * torch.empty_like(module.running_mean).uniform_(0.9, 1.1))
        spread = values.var(1, unbiased=False) if values.shape[1] > 1 else torch.ones_like(module.running_var)
        module.running_var.copy_((spread + 1e-2) * torch.empty_like(spread).uniform_(0.7, 1.3))

    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    handles = [module.register_forward_pre_hook(observe) for module in norms]
    with torch.no_grad():
        model(images)
    for handle in handles:
        handle.remove()
    return model
