"""What a dry run checks of the real data, if present: labels, counts, matches, pictures, batches."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ...config import Config, get
from ...datasets.checks import check_batches, check_matches, check_pictures, counts_of, pictures_of
from ...datasets.manager import drawn_sets, missing_sets
from ...host.pictures import read_picture
from ..trainer import Trainer
from .report import Details, DryStage

DECODED = 10


def look_at_data(config: Config, trainer: Trainer, stages: Sequence[DryStage]) -> Details:
    """Reads data sets that exist; draws and fetches none.

    Args:
        config: whole tree.
        trainer: of the full configuration; it has not read any data yet.
        stages: that would be trained.

    Returns:
        What was read and found, or why nothing was read.

    Raises:
        OsktError: as the run itself would, before it trains.
    """
    missing, drawn = missing_sets(config), drawn_sets(config)
    if missing or drawn:
        reasons = [f"{', '.join(missing)} not there below '{config.data.root}'"] * bool(missing)
        reasons += [f"{', '.join(drawn)} drawn on first use"] * bool(drawn)
        return (("data", f"not looked at: {'; '.join(reasons)}"),)
    is_sets = (config.engine or config.loss.name) == "vkd"
    batches = []
    for stage in stages:
        if stage.epochs:
            manager = trainer.stage_datamanager(get(config, stage.name), stage.name)
            check_batches(manager, stage.name, f"{stage.name}.batch_size")
            batches.append(f"{stage.name} {len(manager.train_loader)}")
    manager = trainer.first_datamanager
    check_matches(manager, no_camera=is_sets and config.vkd.no_camera)
    looked_at = check_pictures(manager, config.data.check, config.data.workers)
    paths = list(dict.fromkeys(pictures_of(manager)))
    chosen = np.unique(np.linspace(0, len(paths) - 1, min(DECODED, len(paths))).astype(int))
    for place in chosen:
        read_picture(paths[place])
    found = [("train", manager.train_loader.dataset.train)]
    for name, parts in manager.test_dataset.items():
        found += [(f"{part} of {name}", items) for part, items in parts.items()]
    return (
        *((part, counts_of(items)) for part, items in found),
        ("looked at", f"{looked_at} pictures (data.check={config.data.check}), {len(chosen)} pictures decoded; queries "
         "have matches"),
        ("batches of an epoch", ", ".join(batches) or "none, because nothing is trained"),
    )  # fmt: skip
