"""What a configuration asks for: a run of OSKT, of VKD, or of one network alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import ConfigError
from ..host.compat import seed_everything
from ..models import build_model
from ..models import load_weights as load_any_weights
from ..registry import engine_class
from ..report import Results
from .oskt_run import OSKTRun
from .plan import check_start, make_plan
from .sets import run_sets
from .single import train_only
from .training import Trainer
from .wishes import keep_chosen_widths


def run(config: Any) -> Results:
    """Runs what the configuration asks for; stages that are done with the same configuration are not done again.

    Args:
        config: whole tree, as ``load_config`` gives it.

    Returns:
        One row per network. The folder ``data.save_dir`` holds them as ``results.json``, ``results.md`` and
        ``size_vs_map.png``, beside the resolved configuration, the log, the chain and every network.

    Raises:
        OsktError: everything that can be known beforehand is checked before anything is trained.
    """
    folder = Path(config.data.save_dir)
    method = config.engine or config.loss.name
    engine_class(method)
    if method == "vkd":
        return run_sets(config, folder)
    if method != "oskt" and method != config.loss.name:
        raise ConfigError(
            f"engine is '{method}', but loss.name is '{config.loss.name}', which decides what is trained; set both to "
            "one of softmax and triplet"
        )
    check_start(config)
    trainer = Trainer(config)
    if method == "oskt":
        plan = make_plan(config, trainer.num_classes)
        job = OSKTRun(config, trainer, plan, folder)
        trainer.record(folder)
        keep_chosen_widths(config, {student.name: student.widths for student in plan.students})
        return job.complete()
    num_classes = trainer.num_classes
    seed_everything(config.train.seed)
    model = build_model(config, num_classes)
    if config.model.load_weights:
        load_any_weights(model, config.model.load_weights)
    trainer.record(folder)
    return train_only(config, trainer, model, folder, method)
