"""Small networks whose channels can be counted by hand, and their graphs as plain values."""

from __future__ import annotations

import torch
from torch import nn

IMAGE = (3, 8, 8)


class Head(nn.Module):
    """Spatial mean and a classifier of two classes, which every small network ends in."""

    def __init__(self, width):
        super().__init__()
        self.classifier = nn.Linear(width, 2)

    def forward(self, images):
        return self.classifier(images.mean((2, 3)))


class Network(nn.Module):
    """Parts by name and a forward function of them: `Network(lambda self, images: ..., first=nn.Conv2d(...))`."""

    def __init__(self, forward, **parts):
        super().__init__()
        self.call = forward
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, images):
        return self.call(self, images)


def conv(columns, rows, **options):
    return nn.Conv2d(columns, rows, 1, **{"bias": False, **options})


class TinyNet(nn.Module):
    """A residual network with torchreid's forward protocol, of four convolutions."""

    def __init__(self, num_classes, loss="softmax", **_):
        super().__init__()
        self.loss, self.feature_dim = loss, 24
        self.stem, self.norm = conv(3, 16, stride=2), nn.BatchNorm2d(16)
        self.inner, self.inner_norm, self.outer = conv(16, 16), nn.BatchNorm2d(16), conv(16, 16)
        self.last, self.last_norm = conv(16, 24), nn.BatchNorm2d(24)
        self.classifier = nn.Linear(24, num_classes)

    def forward(self, images):
        x = self.norm(self.stem(images)).relu()
        x = (x + self.outer(self.inner_norm(self.inner(x)).relu())).relu()
        feature = self.last_norm(self.last(x)).relu().mean((2, 3))
        if not self.training:
            return feature
        logits = self.classifier(feature)
        return (logits, feature) if self.loss == "triplet" else logits


class HalfAndHalf(nn.Module):
    """Instance norm on the first `half` channels, batch norm on the rest."""

    def __init__(self, width):
        super().__init__()
        self.half = width // 2
        self.instance, self.batch = nn.InstanceNorm2d(self.half, affine=True), nn.BatchNorm2d(width - self.half)

    def forward(self, images):
        left, right = torch.split(images, self.half, 1)
        return torch.cat([self.instance(left.contiguous()), self.batch(right.contiguous())], 1)


class ChannelMean(nn.Module):
    """A map per image, from the mean (or sum) over channels."""

    def __init__(self, operator="mean"):
        super().__init__()
        self.operator, self.scale = operator, nn.Conv2d(1, 1, 1)
        nn.init.constant_(self.scale.weight, 5.0)

    def forward(self, images):
        return torch.sigmoid(self.scale(getattr(images, self.operator)(1, keepdim=True)))


class Shuffle(nn.Module):
    """The channel shuffle of two groups: 0 1 2 3 becomes 0 2 1 3."""

    def forward(self, images):
        batch, channels, height, width = images.shape
        return images.view(batch, 2, channels // 2, height, width).transpose(1, 2).reshape(images.shape)


def of_everything():
    """A network with convolution groups, a split point, a reordering and fixed channels."""
    return nn.Sequential(conv(3, 8), HalfAndHalf(8), conv(8, 8, groups=2), Shuffle(), nn.Conv2d(8, 4, 1), Head(4))


def groups_of(traced):
    """Channels and reason per group name."""
    return {group.name: (group.channels.tolist(), group.fixed) for group in traced.groups}


def ties_of(traced):
    """`(axis, role, channels)` of every tie per tensor name; one block is given without its list."""
    result = {}
    for tie in traced.ties:
        channels = tie.channels.tolist()
        result.setdefault(tie.tensor, []).append((tie.dimension, tie.role, channels if tie.blocks > 1 else channels[0]))
    return result
