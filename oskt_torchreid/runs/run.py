"""Runs a configuration: OSKT, VKD, or a single network."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from ..config import Config, get, merged
from ..errors import CheckpointError, ConfigError
from ..files import remove_leftovers
from ..host.compat import seed_everything
from ..host.distributed import check_share, is_rank_zero, world_size
from ..host.models import LOSSES
from ..host.showing import shown
from ..models import build_model
from ..models import load_weights as load_any_weights
from ..registry import engine_class
from ..report import Results, text_table
from .checks import StageToCome, check_evaluation, check_stages, stages_to_come
from .oskt.plan import check_start, make_plan
from .oskt.run import OSKTRun, check_processes
from .oskt.specification import asks_for_latency, keep_chosen_widths
from .processes import prepare_processes, processes_of
from .single import train_only
from .trainer import Trainer
from .use import check_use
from .vkd.run import run_sets

logger = logging.getLogger(__name__)

RESUME_AUTO = "auto"


def run(config: Config, given: Sequence[str] = (), quiet: bool = False) -> Results:
    """Runs a configuration; stages that were finished with the same configuration are not run again.

    Where nobody has set up logging, messages and the table of results go to standard output.

    Args:
        config: whole tree, as `load_config` gives it.
        given: dotted keys from the command line, which must have an effect.
        quiet: show no messages.

    Returns:
        One row per network. The folder `data.save_dir` holds them as `results.json`, `results.md` and
        `size_vs_map.png`, with the resolved configuration, the log, the chain and every network.

    Raises:
        OsktError: everything that can be known beforehand is checked before anything is trained.
    """
    with shown(not quiet) as alone:
        results = _run(config, given)
        if alone:  # a command prints it
            logger.info("results, also in '%s':\n%s", config.data.save_dir, text_table(results.rows))
    return results


def _run(config: Config, given: Sequence[str]) -> Results:
    folder = Path(config.data.save_dir)
    method = config.engine or config.loss.name
    engine_class(method)
    resume = _checked_resume(config, method)
    config = merged(config, {"model.resume": ""})  # the place to resume from is not a setting of the run
    _check_processes(config, method)
    if is_rank_zero():
        remove_leftovers(folder)
    if method == "vkd":
        if processes_of(config.vkd) > 1 and not config.test.evaluate:
            prepare_processes()
        check_use(config, given)
        return run_sets(config, folder)
    if method in LOSSES and method != config.loss.name:
        raise ConfigError(
            f"engine is '{method}', but loss.name is '{config.loss.name}', which decides what is trained; set both to "
            "one of softmax and triplet"
        )
    check_start(config)
    check_use(config, given)
    if method == "oskt":
        return _run_oskt(config, folder)
    trainer = Trainer(config, resume)
    num_classes = trainer.num_classes
    seed_everything(config.train.seed)
    model = build_model(config, num_classes)
    if config.model.load_weights:
        load_any_weights(model, config.model.load_weights)
    if config.test.evaluate:
        check_evaluation(trainer)
    else:
        check_stages(trainer, [StageToCome("train", model)])
    trainer.record(folder)
    seed_everything(config.train.seed)
    return train_only(config, trainer, model, folder, method, resume)


def _run_oskt(config: Config, folder: Path) -> Results:
    evaluates = config.test.evaluate
    if processes_of(config.oskt) > 1 and not evaluates:
        prepare_processes()  # while the data are read or drawn
    trainer = Trainer(config)
    plan = make_plan(config, trainer.num_classes)
    if evaluates:
        check_evaluation(trainer)
    else:
        check_stages(trainer, stages_to_come(config, plan))
        check_processes(config, plan)
    job = OSKTRun(config, trainer, plan, folder)
    trainer.record(folder)
    keep_chosen_widths(config, {student.name: student.widths for student in plan.students})
    return job.complete()


def _checked_resume(config: Config, method: str) -> str:
    """The checkpoint that `model.resume` names; empty if the run resumes by itself.

    Raises:
        ConfigError: no single network is trained.
        CheckpointError: there is no such file.
    """
    path = config.model.resume
    if path in ("", RESUME_AUTO):
        return ""
    if method in ("oskt", "vkd") or config.test.evaluate:
        who = "test.evaluate" if config.test.evaluate else f"engine {method}"
        raise ConfigError(
            f"model.resume is '{path}', but {who} trains no single network that could resume from a file; stages "
            f"resume by themselves (model.resume={RESUME_AUTO}), and weights are given as model.load_weights, "
            "oskt.teacher or vkd.teacher"
        )
    if not Path(path).is_file():
        raise CheckpointError(
            f"model.resume is '{path}', and there is no such file (looked in '{Path(path).parent.absolute()}'); give a "
            f"checkpoint, or '{RESUME_AUTO}' to resume where the run in data.save_dir stopped"
        )
    return path


def _check_processes(config: Config, method: str) -> None:
    """Raises `ConfigError` unless several processes can share every batch and no latency has to be measured."""
    if world_size() == 1:
        return
    measured = asks_for_latency(
        [*config.oskt.students, *config.oskt.ladder] if method == "oskt" else [config.vkd.student]
    )
    if measured and method in ("oskt", "vkd"):
        raise ConfigError(
            f"'{measured}' requires a latency, which {world_size()} processes would measure differently while they "
            "share a machine; choose the widths in one process, by oskt expand, and name them here"
        )
    stages = {"oskt": ("train", "oskt.refine", "oskt.finetune"), "vkd": ("vkd.teacher_stage", "vkd.student_stage")}
    identities = method == "vkd" or config.sampler.train_sampler == "RandomIdentitySampler"
    for stage in stages.get(method, ("train",)):
        check_share(get(config, f"{stage}.batch_size"), config.sampler.num_instances if identities else 0, stage)
