"""A ladder in a run: what its chains are planned to be, and the stage that refines each further one."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

from torch import nn

from ..config import digest, get
from ..errors import ConfigError
from ..oskt.chain import WeightChain
from ..oskt.engine import OSKTEngine
from ..oskt.expand import expand_to_plan
from ..oskt.ladder import Ladder
from ..oskt.losses import row_dispersion
from ..oskt.sstudent import Refinement
from ..oskt.students import width_plan
from .stages import Facts, Stage
from .training import Trainer, first_target

Widths = dict[str, int]
logger = logging.getLogger(__name__)


def plan_rungs(anything: WeightChain, entries: Sequence[tuple[str, dict[str, Any]]]) -> tuple[Widths, ...]:
    """Widths of the chains of a ladder.

    Args:
        anything: a chain of the teacher that gives every width.
        entries: of ``oskt.ladder``, from wide to narrow: its words, and the arguments of ``width_plan``.

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
    trainer: Trainer, config: Any, folder: Path, number: int, widths: Widths, above: WeightChain, above_key: str
) -> tuple[WeightChain, str, Facts]:
    """Clusters the S-student of the chain above and refines both, as the first chain was refined with its teacher.

    Args:
        trainer: of the run.
        config: whole tree.
        folder: of the run; ``refine-2`` and ``chain-2.safetensors`` belong to rung 2.
        number: of the rung, counted from 1.
        widths: of its chain.
        above: the chain of the rung before.
        above_key: digest of how that was made.

    Returns:
        The chain, the digest of how it was made, and what was measured.
    """
    node, oskt = get(config, "oskt.refine"), config.oskt
    choices = {"clustering": oskt.clustering, "attention": oskt.attention}
    choices["normalize_rows"] = {"auto": None, "yes": True, "no": False}[oskt.normalize_rows]
    key = digest("rung", above_key, widths, choices, node)
    path = folder / f"chain-{number}.safetensors"
    stage = Stage(folder / f"refine-{number}", key, (f"../{path.name}",))

    def work(continued: bool) -> Facts:
        teacher = expand_to_plan(above, above.widths)
        chain = WeightChain.from_student(teacher, above, widths, **choices)
        if node.max_epoch == 0:
            return save_unrefined(chain, teacher, path)
        build = partial(
            OSKTEngine,
            chain=chain,
            lambda_weight=node["lambda"],
            lambda_shape=node["lambda_schedule"],
            vector_copies=node["vector_copies"],
            sstudent_weight=node["sstudent_weight"],
        )
        engine = trainer.train(teacher, node, stage.folder, continued, build)
        engine.chain.save(path)
        return {"refined_teacher": first_target(engine), "row_dispersion": engine.dispersion}

    facts = stage.complete(work)
    return WeightChain.load(path, model=above.model), key, facts


def log_ladder(chains: Sequence[WeightChain]) -> None:
    """Says in the log which widths each chain of a ladder gives."""
    if len(chains) > 1:
        logger.info("students come from the nearest of these chains:\n%s", Ladder(tuple(chains)).summary())


def save_unrefined(chain: WeightChain, teacher: nn.Module, path: Path) -> Facts:
    """Writes a chain as it was clustered, for a run without refinement, and measures it."""
    chain.save(path)
    return {"row_dispersion": row_dispersion(Refinement(teacher, chain).sstudent.row_pairs(teacher))}
