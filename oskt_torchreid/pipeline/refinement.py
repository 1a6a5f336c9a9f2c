"""Refining a chain in a run, whatever it was made of: the work of a stage."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from ..oskt.chain import WeightChain
from ..oskt.engine import OSKTEngine
from ..oskt.losses import row_dispersion
from ..oskt.sstudent import Refinement
from .stages import Facts
from .training import Trainer, first_target

_NORMALIZE = {"auto": None, "yes": True, "no": False}


def clustering_choices(oskt: Any) -> dict[str, Any]:
    """How the ``oskt`` node says that channels are clustered: arguments of ``WeightChain.from_teacher``."""
    return {
        "clustering": oskt.clustering,
        "attention": oskt.attention,
        "normalize_rows": _NORMALIZE[oskt.normalize_rows],
    }


def refine(
    trainer: Trainer, chain: WeightChain, teacher: nn.Module, node: Any, folder: Path, continued: bool, path: Path
) -> Facts:
    """Trains a chain together with the network that it was made of, and saves it.

    Args:
        trainer: of the run.
        chain: as it was clustered; not changed.
        teacher: trained in place.
        node: ``oskt.refine``; with no epochs the chain is saved as it is.
        folder: for checkpoints and TensorBoard files.
        continued: go on from an interrupted attempt.
        path: of the chain's file.

    Returns:
        ``row_dispersion``, and where anything was trained ``refined_teacher``, its numbers.
    """
    if node.max_epoch == 0:
        chain.save(path)
        return {"row_dispersion": row_dispersion(Refinement(teacher, chain).sstudent.row_pairs(teacher))}
    build = partial(
        OSKTEngine,
        chain=chain,
        lambda_weight=node["lambda"],
        lambda_shape=node["lambda_schedule"],
        vector_copies=node["vector_copies"],
        sstudent_weight=node["sstudent_weight"],
    )
    engine = trainer.train(teacher, node, folder, continued, build)
    engine.chain.save(path)
    return {"refined_teacher": first_target(engine), "row_dispersion": engine.dispersion}
