"""The table of backbones that the invariants run over."""

from __future__ import annotations

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


# Deeper, wider or otherwise built like one that stays in ``one_of_each_kind``, and slow.
_ALIKE = {
    *("resnet50_bam", "resnet101_bam"),
    *("resnet34", "resnet50", "resnet101", "resnet152", "resnext101_32x8d", "se_resnet50_fc512", "se_resnet101"),
    *("se_resnext50_32x4d", "se_resnext101_32x4d", "densenet161", "densenet169", "densenet201", "densenet121_fc512"),
    *("inceptionresnetv2", "mobilenetv2_x1_4", "squeezenet1_0_fc512", "squeezenet1_1", "mudeep", "pcb_p6"),
    *("shufflenet_v2_x1_5", "shufflenet_v2_x2_0", "osnet_x0_75", "osnet_x0_5", "osnet_ain_x0_75", "osnet_ain_x0_5"),
}


def one_of_each_kind() -> list[str]:
    """Stock names for invariants that follow from those checked over all of them: the small ones of every family."""
    return [name for name in stock_names() if name not in _ALIKE]


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
