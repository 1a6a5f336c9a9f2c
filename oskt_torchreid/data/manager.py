"""torchreid's data manager with what this package adds: protocol checks, subsets of the identities, transforms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..host import data as host_data
from .fewshot import few_shot_dataset
from .protocols import check_protocol
from .transforms import complete_transforms
from .validation import validation_dataset


def build_datamanager(
    config: Any, batch_size: int = 0, types: Sequence[str] = ("image",), batch_key: str = "train.batch_size"
) -> Any:
    """Builds the data manager of a configuration.

    Args:
        config: whole tree; beside what ``host.data.build_datamanager`` reads, few_shot, validation and
            data.interpolation.
        batch_size: images (tracklets of video data) in a training batch; 0: ``train.batch_size``.
        types: values of data.type that the caller can use.
        batch_key: key that says how large a batch is, for messages.

    Raises:
        ConfigError: unknown data set or data type.
        DataError: a missing root, folder, list or split file, before anything is read; or too few identities.
    """
    data = config.data
    names = [*data.sources, *data.targets]
    host_data.check_datasets(data.root, names, data.type, types)
    for name in dict.fromkeys(names):
        check_protocol(data.root, name)
    chosen = config.clone()
    chosen.defrost()
    few, held_out = config.few_shot, config.validation
    sources, targets = (
        [validation_dataset(name, held_out.share, held_out.seed, data.type) for name in names]
        for names in (data.sources, data.targets)
    )
    chosen.data.sources = [few_shot_dataset(name, few.ratio, few.seed, data.type) for name in sources]
    chosen.data.targets = targets
    datamanager = host_data.build_datamanager(chosen, batch_size, types, batch_key)
    complete_transforms(datamanager, data.transforms, data.interpolation)
    return datamanager
