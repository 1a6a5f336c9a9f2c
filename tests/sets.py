"""Small networks of sets, and data managers in memory, that train in milliseconds."""

from __future__ import annotations

import torch
from torch import nn

from oskt_torchreid.vkd.model import SetModel

SIZE = (3, 16, 8)


class Tiny(nn.Module):
    """Two convolutions in torchreid's protocol; the first stands for the early stages, the second for the last one."""

    def __init__(self, num_classes: int, loss: str = "triplet", width: int = 6):
        super().__init__()
        self.loss = loss
        self.early = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
        self.late = nn.Sequential(nn.Conv2d(8, width, 3), nn.BatchNorm2d(width), nn.ReLU())
        self.classifier = nn.Linear(width, num_classes)

    def forward(self, images):
        features = self.late(self.early(images)).mean((2, 3))
        if not self.training:
            return features
        logits = self.classifier(features)
        return (logits, features) if self.loss == "triplet" else logits


def tiny(num_classes: int = 4, width: int = 6, **options) -> SetModel:
    return SetModel(Tiny(num_classes, width=width), num_classes, input_size=SIZE, **options)


def batch(sets: int, views: int, pids: list[int], camids: list[int], generator: torch.Generator) -> dict:
    """A batch as torchreid's loaders give it: noise around one picture per identity."""
    pictures = torch.randn(64, 1, *SIZE, generator=torch.Generator().manual_seed(9))
    noise = torch.randn(sets, views, *SIZE, generator=generator)
    return {"img": pictures[pids] + noise, "pid": torch.tensor(pids), "camid": torch.tensor(camids)}


class SetManager:
    """What an engine needs of a data manager: batches of sets in memory.

    Training: 3 batches of 4 identities x 2 sets. Test: 8 identities on 3 cameras, 2 gallery tracklets in each, a query
    tracklet in the first two.
    """

    data_type = "video"
    height, width = SIZE[1:]
    sources = targets = ["toy"]

    def __init__(self, views: int = 4, num_train_pids: int = 4, test_views: int = 3):
        generator = torch.Generator().manual_seed(1)
        self.num_train_pids = num_train_pids
        pids = [0, 0, 1, 1, 2, 2, 3, 3]
        self.train_loader = [batch(8, views, pids, [0, 1] * 4, generator) for _ in range(3)]
        cameras = {"query": [0, 1], "gallery": [0, 0, 1, 1, 2, 2]}
        self.test_loader = {"toy": {}}
        for side, camids in cameras.items():
            sides = [batch(len(camids), test_views, [pid] * len(camids), camids, generator) for pid in range(8)]
            self.test_loader["toy"][side] = sides
