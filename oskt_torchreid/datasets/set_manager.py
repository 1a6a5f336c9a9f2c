"""The data manager of VKD: torchreid's own, with loaders of sets.

torchreid's VideoDataManager draws a clip from one tracklet alone, repeats the last frame of a short one, and tries a
damaged picture forever; it is used for what it reads (data sets, labels, transforms), not for its loaders.
"""

from __future__ import annotations

import copy
import logging
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset
from yacs.config import CfgNode

from ..errors import DataError
from ..host.data import dataset_class
from ..vkd.index import IdentityIndex, Tracklet, as_tracklets, completed
from ..vkd.sets import IdentitySampler, TestSets, TrainingSets
from ..vkd.views import check_view_counts, strategy_of
from .manager import build_datamanager

logger = logging.getLogger(__name__)


def build_set_datamanager(
    config: CfgNode,
    batch_size: int = 0,
    num_views: int = 0,
    strategy: str = "",
    batch_key: str = "vkd.teacher_stage.batch_size",
) -> Any:
    """Builds a data manager whose batches are sets, from video data or from image data.

    Pictures of an image data set with the same identity and camera are put together as one tracklet, in training, query
    and gallery; junk and distractors stay single; queries are followed by the gallery's pictures of their identity and
    camera, see `vkd.index.completed`. With `vkd.no_camera` each training picture stays single, queries are not
    followed by others, and tracklets of video data are drawn from all their cameras.

    Args:
        config: whole tree; besides what `datasets.manager.build_datamanager` reads, data.type, sampler.num_instances
            (sets of an identity in a batch) and vkd.{num_views, num_student_views, strategy, no_camera, test_frames}.
        batch_size: sets in a training batch; 0: vkd.teacher_stage.batch_size.
        num_views: frames of a training set; 0: vkd.num_views.
        strategy: where they come from; empty: vkd.strategy.
        batch_key: key of the batch size, for messages.

    Returns:
        torchreid's data manager (`num_train_pids`, `transform_tr`, `fetch_test_loaders`, ...) with

        * `train_loader`: batches with `img` [B, N, C, H, W], `pid`, `camid`, `dsetid` and `impath`;
        * `test_loader[name]["query" or "gallery"]`: the same with `vkd.test_frames` evenly spaced frames, of which
          `img[:, 0]` is the tracklet's first; with all frames (0) a batch is one set of any size;
        * `test_dataset[name]["query" or "gallery"]`: tracklets (paths, label, camera, data set).

    Raises:
        ConfigError: as `datasets.manager.build_datamanager`; an unknown strategy; more student views than views; a
            batch size that is no multiple of sampler.num_instances.
        DataError: as there; too few identities for a batch; an empty query or gallery.
    """
    node = config.vkd
    num_views, strategy = num_views or node.num_views, strategy or node.strategy
    strategy_of(strategy)
    check_view_counts(node.num_views, node.num_student_views)
    manager = copy.copy(build_datamanager(_host_config(config), types=("image", "video")))
    manager.data_type = "video"
    index = IdentityIndex(as_tracklets(manager.train_loader.dataset.train, node.no_camera), node.no_camera)
    _check_views(num_views, index)
    size = batch_size or node.teacher_stage.batch_size
    sets = TrainingSets(index, manager.transform_tr, num_views, strategy, node.frame_memory)
    sampler = IdentitySampler(index, size, config.sampler.num_instances, batch_key)
    manager.train_loader = _loader(config, sets, size, sampler=sampler, drop_last=True)
    manager.test_dataset = {name: _test_tracklets(config, name, parts) for name, parts in manager.test_dataset.items()}
    manager.test_loader = {
        name: _test_loaders(config, parts, manager.transform_te) for name, parts in manager.test_dataset.items()
    }
    return manager


def _check_views(num_views: int, index: IdentityIndex) -> None:
    """Warns if no identity has as many frames as a set takes, so that every set repeats some of them."""
    frames = int(np.bincount(index.identities, weights=index.lengths).max())
    if num_views > frames:
        logger.warning(
            "sets of %d views, and no training identity has more than %d frames, so that views repeat; lower "
            "vkd.num_views",
            num_views,
            frames,
        )


def _host_config(config: CfgNode) -> CfgNode:
    """The configuration for torchreid's manager, whose own sampler has no part in this."""
    host = config.clone()
    host.defrost()
    host.sampler.train_sampler = "RandomSampler"
    host.train.batch_size = 1  # whose batches are never used
    return host


def _test_tracklets(config: CfgNode, name: str, parts: dict[str, Any]) -> dict[str, list[Tracklet]]:
    """Query and gallery of a target as tracklets."""
    junk = getattr(dataset_class(name, config.data.type), "_junk_pids", ())
    tracklets = {part: as_tracklets(items, alone=junk) for part, items in parts.items()}
    if config.data.type == "image" and not config.vkd.no_camera:
        tracklets["query"] = completed(tracklets["query"], tracklets["gallery"])
    for part, items in tracklets.items():
        if not items:
            raise DataError(f"the {part} of data set '{name}' is empty; evaluation needs a query and a gallery")
    return tracklets


def _test_loaders(config: CfgNode, parts: dict[str, list[Tracklet]], transform: Any) -> dict[str, DataLoader]:
    """Loaders of the query and the gallery of a target."""
    frames = config.vkd.test_frames
    size = config.test.batch_size if frames else 1
    return {part: _loader(config, TestSets(items, transform, frames), size) for part, items in parts.items()}


def _loader(config: CfgNode, sets: Dataset, batch_size: int, **arguments: Any) -> DataLoader:
    pinned = config.use_gpu and torch.cuda.is_available()
    return DataLoader(sets, batch_size, num_workers=config.data.workers, pin_memory=pinned, **arguments)
