"""What is checked of a training run when an engine is asked for it, by a configuration or by a script."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

from ..errors import ConfigError, TrainingError

_LOWEST = {"max_epoch": 0, "start_epoch": 0, "print_freq": 1, "fixbase_epoch": 0, "start_eval": 0, "visrank_topk": 1}
_TOO_FEW = "more than 1 value per channel"  # in what torch's norms say of a batch of one


def check_arguments(settings: Mapping[str, Any]) -> None:
    """Raises ConfigError for arguments of `run` that are out of range."""
    for name, lowest in _LOWEST.items():
        value = settings[name]
        if isinstance(value, bool) or not isinstance(value, int) or value < lowest:
            raise ConfigError(f"{name} of a run is {value!r}; allowed: whole numbers from {lowest}")


def check_loader(loader: Any) -> None:
    """Raises TrainingError for a loader without a batch, with which a run would train nothing and say nothing."""
    if len(loader):
        return
    size = getattr(loader, "batch_size", None)
    dataset = getattr(loader, "dataset", None)
    items = len(dataset) if dataset is not None else 0
    raise TrainingError(
        f"{items} training items fill no batch of {size}, so nothing would be trained; lower the batch size "
        "(batch_size_train of the data manager, train.batch_size), or give more pictures"
    )


@contextlib.contextmanager
def too_few_images(count: int) -> Iterator[None]:
    """Says what to do where torch refuses to norm a batch of one."""
    try:
        yield
    except ValueError as reason:
        if _TOO_FEW not in str(reason):
            raise
        raise TrainingError(
            f"a batch norm cannot be trained on a batch of {count}: {reason}; raise the batch size to 2 or more"
        ) from reason
