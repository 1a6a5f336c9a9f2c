"""Networks that users write for re-identification: a ResNet with non-local blocks and GeM, an OSNet in two branches."""

from __future__ import annotations

import torch
import torchreid
import torchvision
from torch import Tensor, nn


class NonLocal(nn.Module):
    """Every position reads all others: `x + W (softmax(theta phi^T) g)`, as in AGW."""

    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        self.inner = inner
        self.theta, self.phi, self.g = (nn.Conv2d(channels, inner, 1) for _ in range(3))
        self.w = nn.Sequential(nn.Conv2d(inner, channels, 1), nn.BatchNorm2d(channels))

    def forward(self, images: Tensor) -> Tensor:
        batch = images.size(0)
        values = self.g(images).view(batch, self.inner, -1).permute(0, 2, 1)
        queries = self.theta(images).view(batch, self.inner, -1).permute(0, 2, 1)
        keys = self.phi(images).view(batch, self.inner, -1)
        scores = torch.matmul(queries, keys)
        mixed = torch.matmul(scores / scores.size(-1), values).permute(0, 2, 1).contiguous()
        return images + self.w(mixed.view(batch, self.inner, *images.shape[2:]))


class GeM(nn.Module):
    """Generalised mean over positions, with a power that is learned."""

    def __init__(self) -> None:
        super().__init__()
        self.p = nn.Parameter(torch.full((1,), 3.0))

    def forward(self, images: Tensor) -> Tensor:
        return images.clamp(min=1e-6).pow(self.p).mean((2, 3)).pow(1 / self.p)


class AttentiveResNet(nn.Module):
    """torchvision's ResNet-50 with non-local blocks behind its middle layers, GeM and a neck."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        base = torchvision.models.resnet50(weights=None)
        self.stem = nn.Sequential(base.conv1, base.bn1, base.relu, base.maxpool)
        self.stages = nn.ModuleList([base.layer1, base.layer2, base.layer3, base.layer4])
        self.attention = nn.ModuleList([nn.Identity(), NonLocal(512, 256), NonLocal(1024, 512), nn.Identity()])
        self.pool, self.neck = GeM(), nn.BatchNorm1d(2048)
        self.classifier = nn.Linear(2048, num_classes, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(images)
        for stage, attention in zip(self.stages, self.attention, strict=True):
            x = attention(stage(x))
        feature = self.neck(self.pool(x))
        return self.classifier(feature) if self.training else feature


class PartNetwork(nn.Module):
    """OSNet whose last stage exists twice: one copy pooled as a whole and by halves of the channels, one by parts."""

    def __init__(self, num_classes: int, parts: int = 2) -> None:
        super().__init__()
        first, second = (torchreid.models.build_model("osnet_x0_25", num_classes, pretrained=False) for _ in range(2))
        self.trunk = nn.Sequential(first.conv1, first.maxpool, first.conv2, first.conv3[:2])
        self.whole = nn.Sequential(first.conv3[2:], first.conv4, first.conv5)
        self.by_part = nn.Sequential(second.conv3[2:], second.conv4, second.conv5)
        self.parts = nn.AdaptiveAvgPool2d((parts, 1))
        width = first.conv5.conv.out_channels
        self.necks = nn.ModuleList(nn.BatchNorm1d(width) for _ in range(parts + 2))
        self.classifiers = nn.ModuleList(nn.Linear(width, num_classes, bias=False) for _ in range(parts + 2))

    def forward(self, images: Tensor) -> Tensor | list[Tensor]:
        x = self.trunk(images)
        whole, by_part = self.whole(x), self.by_part(x)
        pooled = [whole.mean((2, 3)), torch.amax(by_part, (2, 3)), *self.parts(by_part).squeeze(-1).unbind(-1)]
        features = [neck(feature) for neck, feature in zip(self.necks, pooled, strict=True)]
        if not self.training:
            return torch.stack(features, dim=2).flatten(1)
        return [classifier(feature) for classifier, feature in zip(self.classifiers, features, strict=True)]
