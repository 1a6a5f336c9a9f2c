"""What this package reads of torchreid's objects, and of those that a user passes instead."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol


class EngineData(Protocol):
    """A data manager, as engines read it: torchreid's, or the user's own.

    Attributes:
        train_loader: of training batches.
        test_loader: the loaders `query` and `gallery` of every target.
        num_train_pids: training identities.
        height: of images.
        width: of images.
    """

    train_loader: Any
    test_loader: Mapping[str, Mapping[str, Any]]
    num_train_pids: int
    height: int
    width: int


class DataManager(EngineData, Protocol):
    """torchreid's data manager, as runs read it.

    Attributes:
        test_dataset: the items of `query` and `gallery` of every target.
        transform_tr: transforms of a picture in training.
        transform_te: transforms of a picture in evaluation.
    """

    test_dataset: Mapping[str, Mapping[str, Any]]
    transform_tr: Any
    transform_te: Any
