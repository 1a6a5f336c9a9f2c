"""What this package reads of torchreid's objects, and of those that a user gives in their place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol


class EngineData(Protocol):
    """A data manager, as far as engines read it: torchreid's, or one of one's own.

    Attributes:
        train_loader: of training batches.
        test_loader: of every target the loaders `query` and `gallery`.
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
        test_dataset: of every target the items of `query` and `gallery`.
        transform_tr: what is done to a picture in training.
        transform_te: what is done to one in evaluation.
    """

    test_dataset: Mapping[str, Mapping[str, Any]]
    transform_tr: Any
    transform_te: Any
