"""Vision transformers for tests: tiny ones, random weights in which nothing is neutral, and clusters of equal size."""

from __future__ import annotations

import numpy as np
import torch
from backbones import calibrate
from torch import nn

from oskt_torchreid.graph import ChannelGraph
from oskt_torchreid.models.vit import VisionTransformer

IMAGE = (3, 32, 16)
TINY = {"embed_dim": 24, "depth": 2, "num_heads": 3, "patch_size": 8, "image_size": (32, 16)}


def tiny(num_classes=7, **options):
    """A small vision transformer with nothing at a neutral value."""
    torch.manual_seed(0)
    return disturbed(VisionTransformer(num_classes, **{**TINY, **options}), IMAGE)


def disturbed(model: nn.Module, size) -> nn.Module:
    """Vectors and tokens away from 0 and 1, matrices large enough for attention to matter; norms calibrated."""
    for name, parameter in model.named_parameters():
        if name.endswith(("norm.weight", "norm1.weight", "norm2.weight", "bottleneck.weight")):
            nn.init.uniform_(parameter, 0.6, 1.4)
        elif parameter.dim() == 2 and "qkv" in name:
            nn.init.normal_(parameter, std=2 * parameter.shape[1] ** -0.5)
        elif parameter.dim() != 4:
            parameter.data.add_(
                0.3 * parameter.shape[-1] ** (-0.5 * (parameter.dim() == 2)) * torch.randn(parameter.shape)
            )
    return calibrate(model.eval(), torch.randn(2, *size))


def equal_labels(graph: ChannelGraph, parts: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Random clusters of `parts` members where a norm over channels reads the group, of any size elsewhere."""
    generator = np.random.default_rng(seed)
    normed = {int(i) for norm in graph.norms for i in np.unique(graph.group_of_channel[norm.channels])}
    labels = {}
    for index, group in enumerate(graph.groups):
        count = group.size if group.fixed else max(1, group.size // parts)
        label = np.concatenate([np.arange(count), generator.integers(0, count, group.size - count)])
        label = np.arange(group.size) % count if index in normed else label
        labels[group.name] = label if group.fixed else generator.permutation(label)
    return labels
