"""Code of a user: a data set and a network that nothing here knows, as the text of a file of Python."""

from pathlib import Path

import cv2
import numpy as np

TEXT = """
import oskt_torchreid as oskt
import torch
import torchreid
from pathlib import Path
from torch import nn


class OwnSet(torchreid.data.ImageDataset):
    dataset_dir = "own"

    def __init__(self, root="", **kwargs):
        super().__init__(*(self.items(Path(root) / "own" / part) for part in ("train", "query", "gallery")), **kwargs)

    def items(self, folder):
        return [(str(path), *map(int, path.stem.split("_")[:2])) for path in sorted(folder.glob("*.png"))]


class OwnNet(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, stride=2)
        self.norm = nn.BatchNorm2d(8)
        self.second = nn.Conv2d(8, 16, 3, stride=2)
        self.classifier = nn.Linear(16, num_classes)

    def forward(self, images):
        features = self.second(self.norm(self.first(images)).relu()).mean((2, 3))
        return self.classifier(features) if self.training else features


torchreid.data.register_image_dataset("own_set", OwnSet)
oskt.register_backbone("own_net", OwnNet, input_size=(3, 32, 16))
"""

OPTIONS = [
    "engine=oskt",
    "model.name=own_net",
    "model.pretrained=False",
    "data.height=32",
    "data.width=16",
    "data.workers=0",
    "train.max_epoch=1",
    "train.batch_size=8",
    "oskt.width=0.5",
    "oskt.refine.max_epoch=1",
    "oskt.refine.batch_size=8",
    "oskt.finetune.max_epoch=1",
    "oskt.finetune.batch_size=8",
    "oskt.students=['width=0.5']",
    "use_gpu=False",
]
IDENTITIES = {"train": range(6), "query": range(10, 16), "gallery": range(10, 16)}
VIEWS = {"train": 2, "query": 1, "gallery": 5}


def draw(root: Path) -> None:
    """Writes pictures of noise, of every identity by two cameras."""
    random = np.random.default_rng(0)
    for part, identities in IDENTITIES.items():
        folder = root / "own" / part
        folder.mkdir(parents=True)
        for identity in identities:
            for place in range(2 * VIEWS[part]):
                picture = random.integers(0, 256, (32, 16, 3), dtype=np.uint8)
                cv2.imwrite(str(folder / f"{identity}_{place % 2}_{place}.png"), picture)
