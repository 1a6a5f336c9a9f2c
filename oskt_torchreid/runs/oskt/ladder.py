"""A ladder in a run: the planned widths of its chains, and the stage that refines each further one."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from ...chain.chain import WeightChain
from ...chain.expansion import expand_to_plan, width_plan
from ...chain.ladder import Ladder
from ...chain.network import trace
from ...config import Config, get
from ...errors import ConfigError
from ...files import sha256
from ...host.distributed import broadcast
from ..stages import Facts
from ..trainer import Trainer
from .refinement import CLUSTERING_KEYS, clustering_choices, evaluated_refinement, measured_contributions, refine

Widths = dict[str, int]
logger = logging.getLogger(__name__)


def plan_rungs(anything: WeightChain, entries: Sequence[tuple[str, dict[str, Any]]]) -> tuple[Widths, ...]:
    """Widths of the chains of a ladder.

    Args:
        anything: a chain of the teacher that gives every width.
        entries: of `oskt.ladder`, from wide to narrow: its text, and the arguments of `width_plan`.

    Raises:
        ConfigError: a chain that is not narrower than the one before.
        WidthError: widths that the teacher does not have.
    """
    rungs = tuple(width_plan(anything, **how) for _, how in entries)
    for ((wide, _), (narrow, _)), (first, second) in zip(pairwise(entries), pairwise(rungs), strict=True):
        wider = next((name for name, width in second.items() if width > first[name]), "")
        if wider or first == second:
            where = f" in group '{wider}' ({second[wider]} after {first[wider]})" if wider else ""
            raise ConfigError(
                f"oskt.ladder has '{narrow}' after '{wide}', which is not narrower{where}; order it from wide to narrow"
            )
    return rungs


def refine_rung(
    trainer: Trainer, config: Config, folder: Path, number: int, widths: Widths, above: WeightChain, above_key: str
) -> tuple[WeightChain, str, Facts]:
    """Clusters the S-student of the chain above and refines both, as the first chain was refined with its teacher.

    Args:
        trainer: of the run.
        config: whole tree.
        folder: of the run; `refine-2` and `chain-2.safetensors` belong to rung 2.
        number: of the rung, counted from 1.
        widths: of its chain.
        above: the chain of the rung before.
        above_key: digest of that chain's file.

    Returns:
        The chain, the digest of its file, and what was measured.
    """
    node, choices = get(config, "oskt.refine"), clustering_choices(config.oskt)
    made = {"widths": widths, "the chain above": above_key}
    recipe = trainer.recipe("oskt.refine", *CLUSTERING_KEYS, **made)
    path = folder / rung_name(number)
    stage = trainer.stage(folder / f"refine-{number}", recipe, f"../{path.name}")

    def work(continued: bool) -> Facts:
        teacher = expand_to_plan(above, above.widths)
        measured = measured_contributions(
            trainer, teacher, trace(teacher, above.input_size, keep=above.graph.keep), node
        )
        chain = WeightChain.from_student(teacher, above, widths, contributions=measured, **choices)
        return refine(trainer, chain, teacher, node, stage.folder, continued, path)

    def evaluate(facts: Facts) -> Facts:
        return evaluated_refinement(trainer, expand_to_plan(above, above.widths), node, stage.folder, facts)

    facts = stage.complete(work, evaluate)
    return WeightChain.load(path, model=above.model), broadcast(lambda: sha256(path)), facts


def rung_name(number: int) -> str:
    """The file of a ladder's chain; rungs are counted from 1."""
    return f"chain-{number}.safetensors"


def log_ladder(chains: Sequence[WeightChain]) -> None:
    """Logs which widths each chain of a ladder gives."""
    if len(chains) > 1:
        logger.info("students come from the nearest of these chains:\n%s", Ladder(tuple(chains)).summary())
