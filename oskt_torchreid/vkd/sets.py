"""Data sets and batches of sets: every item is the N frames of one identity, every batch has shape (B, N, C, H, W).

Each frame of a set is transformed separately, with the image transforms of training, as the authors do: frames of a set
come from several cameras, so there is no movement between them that a common flip or crop would keep whole.

All randomness comes from torch's generator of the process: in a data loader's worker that one follows from the seed
and the worker's number, so runs with the same seed and number of workers draw the same sets.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from ..errors import ConfigError, DataError
from ..host.pictures import read_picture
from .index import IdentityIndex, Tracklet
from .views import evenly_spaced, strategy_of

logger = logging.getLogger(__name__)

Transform = Callable[[Image.Image], Tensor]
Reader = Callable[[str], Image.Image]
SetItem = dict[str, Any]


class TrainingSets(Dataset[SetItem]):
    """A set of views for every tracklet, drawn again each time.

    Args:
        index: of the training tracklets.
        transform: makes a tensor [C, H, W] of a picture.
        num_views: N, frames of a set.
        strategy: name in `views.STRATEGIES`.
        memory: megabytes of decoded frames that are kept, see `FrameReader`.

    Attributes:
        train: the tracklets, under torchreid's name.

    Raises:
        ConfigError: unknown strategy, or N below 1.
    """

    def __init__(
        self,
        index: IdentityIndex,
        transform: Transform,
        num_views: int = 8,
        strategy: str = "multiview",
        memory: float = 0,
    ) -> None:
        self.draw = strategy_of(strategy)
        if num_views < 1:
            raise ConfigError(f"vkd.num_views is {num_views}; a set has 1 frame or more")
        self.index = index
        self.train = index.tracklets
        self.transform = transform
        self.num_views = num_views
        self.read = FrameReader(memory)
        if strategy == "multiview":
            _report_poor(index, num_views)

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, tracklet: int) -> SetItem:
        """The set that begins in a tracklet.

        Returns:
            `img` [N, C, H, W]; `pid`, `camid` and `dsetid` of the tracklet, and `impath` of the first frame.

        Raises:
            DataError: a frame is missing or damaged.
        """
        tracklets, frames = self.draw(self.index, int(tracklet), self.num_views, uniform_numbers)
        paths = [self.train[own][0][frame] for own, frame in zip(tracklets, frames, strict=True)]
        return _item(paths, self.train[int(tracklet)], self.transform, self.read)


class TestSets(Dataset[SetItem]):
    """Evenly spaced frames of every tracklet, for evaluation; the first one is the tracklet's first.

    Args:
        tracklets: of query or gallery.
        transform: makes a tensor [C, H, W] of a picture.
        num_frames: frames of each; 0: all, so that sets have different sizes and batches can hold one only.
    """

    __test__ = False  # not a test class, in spite of its name

    def __init__(self, tracklets: Sequence[Tracklet], transform: Transform, num_frames: int = 8) -> None:
        self.tracklets = tracklets
        self.transform = transform
        self.num_frames = num_frames

    def __len__(self) -> int:
        return len(self.tracklets)

    def __getitem__(self, place: int) -> SetItem:
        """`img` [frames, C, H, W], `pid`, `camid`, `dsetid`, and `impath` of the first frame."""
        paths = self.tracklets[place][0]
        chosen = [paths[frame] for frame in evenly_spaced(len(paths), self.num_frames)]
        return _item(chosen, self.tracklets[place], self.transform)


class IdentitySampler(Sampler[int]):
    """Tracklets for batches of P identities with K sets each; an epoch has each identity once, as the authors' has.

    torchreid's RandomIdentitySampler goes through all tracklets in an epoch (three times as many batches on MARS, so
    the recipes' epochs would not mean the same), and its length is larger than the number of its batches.

    Args:
        index: of the training tracklets.
        batch_size: P * K.
        num_instances: K; an identity with fewer tracklets has some of them twice.
        batch_key: key of the batch size, for messages.

    Raises:
        ConfigError: `batch_size` is no multiple of `num_instances`.
        DataError: fewer than P identities.
    """

    def __init__(
        self,
        index: IdentityIndex,
        batch_size: int,
        num_instances: int,
        batch_key: str = "vkd.teacher_stage.batch_size",
    ) -> None:
        if batch_size % num_instances or batch_size < 1:
            raise ConfigError(
                f"a batch of {batch_size} sets cannot hold {num_instances} of each identity; make "
                f"{batch_key} a multiple of sampler.num_instances"
            )
        self.index = index
        self.num_instances = num_instances
        self.identities_per_batch = batch_size // num_instances
        self.batches = index.num_identities // self.identities_per_batch
        if not self.batches:
            raise DataError(
                f"a batch of {batch_size} sets, {num_instances} of each identity, needs {self.identities_per_batch} "
                f"training identities, and there are {index.num_identities}; lower {batch_key} or raise "
                "sampler.num_instances"
            )

    def __len__(self) -> int:
        return self.batches * self.identities_per_batch * self.num_instances

    def __iter__(self) -> Iterator[int]:
        generator = np.random.default_rng(int(torch.randint(2**63 - 1, ())))
        identities = generator.permutation(self.index.num_identities)
        for identity in identities[: self.batches * self.identities_per_batch]:
            own = generator.permutation(self.index.order[self.index.places(identity)])
            yield from np.resize(own, self.num_instances).tolist()


def uniform_numbers(shape: Any) -> np.ndarray:
    """Random numbers of [0, 1) from torch's generator of the process."""
    return torch.rand(shape, dtype=torch.float64).numpy()


class FrameReader:
    """`read_picture` with a cache of decoded pictures, limited to a share of memory.

    Every process of a loader has its own, and loses it with the epoch: of use with `data.workers 0`.

    Args:
        megabytes: of decoded frames (3 bytes a pixel); 0 keeps none.
    """

    def __init__(self, megabytes: float) -> None:
        self._left = megabytes * 1e6
        self._kept: dict[str, Image.Image] = {}

    def __call__(self, path: str) -> Image.Image:
        """A picture of the caller's own: some transforms draw into theirs."""
        picture = self._kept.get(path)
        if picture is None:
            picture = read_picture(path)
            size = 3 * picture.width * picture.height
            if size <= self._left:
                self._left -= size
                self._kept[path] = picture
        return picture.copy() if self._kept else picture


def _item(paths: Sequence[str], tracklet: Tracklet, transform: Transform, read: Reader = read_picture) -> SetItem:
    _, label, camera, *rest = tracklet
    frames = torch.stack([transform(read(path)) for path in paths])
    return {"img": frames, "pid": label, "camid": camera, "impath": paths[0], "dsetid": rest[0] if rest else 0}


def _report_poor(index: IdentityIndex, num_views: int) -> None:
    """Says how far identities are from having a view for each frame of a set."""
    one_camera, one_tracklet = index.count_poor()
    fewer = int((np.diff(index.starts) < num_views).sum())
    logger.info(
        "multiview: of %d identities %d have one camera, %d one tracklet, and %d fewer than %d tracklets (cycled)",
        index.num_identities,
        one_camera,
        one_tracklet,
        fewer,
        num_views,
    )
