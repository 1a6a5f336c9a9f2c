"""torchreid's data manager with what this package adds: protocol checks, subsets of the identities, transforms."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from yacs.config import CfgNode

from ..host import data as host_data
from .fewshot import few_shot_dataset
from .protocols import PROTOCOL_FILES, check_protocol
from .transforms import complete_transforms
from .validation import validation_dataset


def drawn_sets(config: CfgNode) -> list[str]:
    """The data sets of a configuration that draw themselves on first use."""
    return [name for name in _names(config) if getattr(_class(config, name), "drawn_on_first_use", False)]


def missing_sets(config: CfgNode) -> list[str]:
    """The data sets of a configuration that have no folder below the data root, though they need one.

    Raises:
        ConfigError: unknown name.
    """
    root = Path(config.data.root).expanduser()
    missing = []
    for name in _names(config):
        known = PROTOCOL_FILES.get(name)
        folder = getattr(_class(config, name), "dataset_dir", None)
        folders = known.folders if known else (folder,) if isinstance(folder, str) else ("",)
        drawn = getattr(_class(config, name), "drawn_on_first_use", False)
        free = not known and folders == ("",)  # a user's class, which checks its own folder
        if not drawn and not free and not any((root / part).is_dir() for part in folders):
            missing.append(name)
    return missing


def _names(config: CfgNode) -> list[str]:
    return list(dict.fromkeys([*config.data.sources, *config.data.targets]))


def _class(config: CfgNode, name: str) -> type:
    return host_data.dataset_class(name, config.data.type)


def build_datamanager(
    config: CfgNode, batch_size: int = 0, types: Sequence[str] = ("image",), batch_key: str = "train.batch_size"
) -> Any:
    """Builds the data manager of a configuration.

    Args:
        config: whole tree; besides what `host.data.build_datamanager` reads, few_shot, validation and
            data.interpolation.
        batch_size: images (tracklets of video data) in a training batch; 0: `train.batch_size`.
        types: values of data.type that the caller can use.
        batch_key: key of the batch size, for messages.

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
