"""Training labels that are not numbered from 0, as a user's own data manager may have them."""

import logging
from typing import Any

import torch
from torch import Tensor

from ..errors import DataError

logger = logging.getLogger(__name__)


def unordered_labels(loader: Any, num_classes: int) -> Tensor | None:
    """The distinct labels of a loader's pictures in increasing order, if they are not 0, 1, 2, ...

    Args:
        loader: whose data set keeps its items, (path, label, ...) each, as `train`; other loaders are not checked.
        num_classes: training identities that the data manager counts.

    Raises:
        DataError: more distinct labels than that.
    """
    items = getattr(getattr(loader, "dataset", None), "train", None)
    if not items:
        return None
    labels = torch.tensor(sorted({int(item[1]) for item in items}))
    if len(labels) > num_classes:
        raise DataError(
            f"the training pictures have {len(labels)} distinct labels, but the data manager counts {num_classes} "
            "training identities (num_train_pids); correct the one or the other"
        )
    if labels[0] == 0 and labels[-1] == len(labels) - 1:
        return None
    logger.info("training labels, from %d to %d, are numbered from 0 to %d", labels[0], labels[-1], len(labels) - 1)
    return labels


def in_order(pids: Tensor, labels: Tensor | None) -> Tensor:
    """Labels as their positions among all of them; unchanged if they are already numbered from 0.

    Example: of the labels 5, 7 and 9, a batch of 9, 5, 9 is 2, 0, 2.
    """
    return pids if labels is None else torch.searchsorted(labels, pids.cpu())
