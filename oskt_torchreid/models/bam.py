"""Bottleneck attention modules (Park et al., BMVC 2018) after the first three stages of a ResNet.

    F' = F * (1 + sigmoid(M_c(F) * M_s(F)))

`M_c` is a gate per channel made from the map's mean, `M_s` a gate per place made by dilated convolutions. The paper
adds the two gates before the sigmoid; its authors' program, with which VKD's networks were trained, multiplies them,
and so do the registered networks.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..errors import ConfigError
from ..host.models import build, builder_of, register_model

REDUCTION, DILATION = 16, 4
BACKBONES = ("resnet50", "resnet101")
_GATED_STAGES = ("layer1", "layer2", "layer3")
_COMBINATIONS = ("product", "sum")


class BAM(nn.Module):
    """Gates a feature map by channel and by place.

    Args:
        channels: of the map, at least `reduction`.
        reduction: how many times narrower the gates are inside.
        dilation: of the spatial gate's convolutions.
        combine: `product` of the two gates, or their `sum`.

    Raises:
        ConfigError: too few channels, or an unknown combination.
    """

    def __init__(
        self, channels: int, reduction: int = REDUCTION, dilation: int = DILATION, combine: str = "product"
    ) -> None:
        super().__init__()
        if combine not in _COMBINATIONS:
            raise ConfigError(f"combine of BAM is '{combine}'; allowed: {', '.join(_COMBINATIONS)}")
        if channels < reduction:
            raise ConfigError(
                f"BAM narrows {channels} channels {reduction} times; give a reduction of {channels} or less"
            )
        narrow = channels // reduction
        self.combine = combine
        self.channel_gate = nn.Sequential(
            nn.Linear(channels, narrow), nn.BatchNorm1d(narrow), nn.ReLU(), nn.Linear(narrow, channels)
        )
        self.spatial_gate = nn.Sequential(
            *_normed(nn.Conv2d(channels, narrow, 1)),
            *_normed(nn.Conv2d(narrow, narrow, 3, padding=dilation, dilation=dilation)),
            *_normed(nn.Conv2d(narrow, narrow, 3, padding=dilation, dilation=dilation)),
            nn.Conv2d(narrow, 1, 1),
        )

    def forward(self, maps: Tensor) -> Tensor:
        """Maps `[batch, channels, height, width]` to the same shape."""
        by_channel = self.channel_gate(maps.mean(dim=(2, 3)))[:, :, None, None]
        by_place = self.spatial_gate(maps)
        both = by_channel * by_place if self.combine == "product" else by_channel + by_place
        return maps * (1 + torch.sigmoid(both))


def _normed(convolution: nn.Conv2d) -> list[nn.Module]:
    return [convolution, nn.BatchNorm2d(convolution.out_channels), nn.ReLU()]


@dataclass(frozen=True)
class BamBuilder:
    """Builds `<resnet>_bam`: the stock network with a gate behind each of its first three stages."""

    backbone: str

    def __call__(
        self, num_classes: int, loss: str = "softmax", pretrained: bool = True, use_gpu: bool = True
    ) -> nn.Module:
        """Arguments as every builder of torchreid's factory; pretrained weights are those of the stock network."""
        model = build(self.backbone, num_classes, loss, pretrained, use_gpu)
        for stage in _GATED_STAGES:
            blocks = getattr(model, stage)
            blocks.add_module("bam", BAM(blocks[-1].conv3.out_channels))
        return model


def register_bams() -> None:
    """Registers `resnet50_bam` and `resnet101_bam`; doing it again changes nothing."""
    for name in BACKBONES:
        register_model(f"{name}_bam", BamBuilder(name), defined_in=builder_of(name).__module__)
