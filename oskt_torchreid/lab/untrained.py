"""Students before any fine-tuning: the effect of statistics, recalibration and distances, on a run's data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tabulate import tabulate
from torch import nn
from tqdm.auto import tqdm

from ..chain.chain import WeightChain
from ..chain.distance import DISTANCES, check_foldable
from ..chain.expansion import STATISTICS, expand_to_plan, width_plan
from ..chain.recalibration import recalibrate
from ..config import Config
from ..host.compat import seed_everything
from ..runs.oskt.specification import StudentSpec
from ..runs.trainer import Trainer

RECALIBRATED = "recalibrated"


def untrained_table(config: Config, chain: WeightChain, students: Sequence[str], batches: int = 24) -> str:
    """mAP (in %) of students as they are expanded, a row per student and a column per choice.

    Statistics vary with features as they are, distances with the S-student's own statistics. Recalibrated students have
    their slots' means of norm parameters, as runs make them.

    Args:
        config: whole tree; its first target is evaluated, its sources give unlabelled images.
        chain: only read.
        students: entries as in `oskt.students`.
        batches: of training images for recalibration.

    Raises:
        ConfigError: a student that cannot be read.
        WidthError: a student out of range.
        GraphError: a network whose features cannot be scaled.
    """
    check_foldable(chain, DISTANCES[-1])
    plans = {name: width_plan(chain, **StudentSpec.parse(name).arguments()) for name in students}
    trainer = Trainer(config)
    rows = []
    for name, plan in tqdm(plans.items(), disable=None, unit="student", leave=False):
        variants = _variants(trainer, chain, plan, batches)
        rows.append((name, *(f"{100 * trainer.evaluate(network)['mAP']:.1f}" for network in variants)))
    headers = ("student", *(f"{name} statistics" for name in STATISTICS), "own, over slots", RECALIBRATED)
    headers += tuple(f"distance={name}" for name in DISTANCES[1:])
    return tabulate(rows, headers=headers, tablefmt="github", disable_numparse=True, stralign="right")


def _variants(trainer: Trainer, chain: WeightChain, plan: dict[str, int], batches: int) -> Iterator[nn.Module]:
    """The student of a plan in every choice, in the order of the table's columns."""
    for statistics in STATISTICS:
        yield expand_to_plan(chain, plan, statistics=statistics)
    yield expand_to_plan(chain, plan, vectors_over="slots")
    loader = trainer.datamanager(trainer.config.train.batch_size).train_loader
    seed_everything(trainer.config.train.seed)  # which training images, and how they are augmented
    yield recalibrate(expand_to_plan(chain, plan, vectors_over="slots"), loader, batches)
    for distance in DISTANCES[1:]:
        yield expand_to_plan(chain, plan, distance=distance)
