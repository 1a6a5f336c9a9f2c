"""Refining a chain in a run, with its teacher or an S-student: the work of a stage."""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from ...baselines.partitions import PARTITIONS
from ...chain.chain import WeightChain
from ...chain.contributions import Contributions, measure_contributions
from ...chain.losses import row_dispersion
from ...chain.sstudent import Refinement
from ...config import Config
from ...files import load_checkpoint
from ...files.weights import check_state_dict, state_dict_of
from ...graph import ChannelGraph
from ...host.compat import seed_everything
from ...host.oskt_engine import OSKTEngine
from ..compute import refining_compute
from ..stages import Facts
from ..trainer import LISTS, EngineBuilder, Numbers, Trainer, measured

CLUSTERING_KEYS = tuple(
    f"oskt.{key}" for key in ("keep", "unknown", "clustering", "attention", "normalize_rows", "nested", "contributions")
)
_TEACHER = "teacher."  # before the teacher's names in a checkpoint of refinement
_NORMALIZE = {"auto": None, "yes": True, "no": False}


def clustering_choices(oskt: Config, seed: int = 0) -> dict[str, Any]:
    """The clustering that the `oskt` node configures: arguments of `WeightChain.from_teacher`.

    Args:
        oskt: the node.
        seed: of random clusterings.
    """
    made_of_seed = PARTITIONS.get(oskt.clustering)
    return {
        "clustering": made_of_seed(seed) if made_of_seed else oskt.clustering,
        "attention": oskt.attention,
        "normalize_rows": _NORMALIZE[oskt.normalize_rows],
        "nested": oskt.nested,
        **({} if oskt.vectors_over == "chain" else {"vectors_over": oskt.vectors_over}),
    }


def measured_contributions(
    trainer: Trainer, teacher: nn.Module, graph: ChannelGraph, node: Config
) -> dict[str, Contributions] | None:
    """What the teacher's channels contribute, on the first training images of the seed; `None` where rows decide."""
    batches = trainer.config.oskt.contributions
    if not batches:
        return None
    seed_everything(trainer.config.train.seed)  # so that processes that share batches measure on the same images
    return measure_contributions(teacher, graph, trainer.datamanager(node.batch_size).train_loader, batches)


def refining_choices(node: Config) -> dict[str, Any]:
    """What the `oskt.refine` node says of the method: arguments of `OSKTEngine`."""
    names = (
        "vector_copies",
        "sstudent_weight",
        "distil_weight",
        "distil_temperature",
        "distil_from",
        "levels",
        "level_start",
    )
    choices = {name: node[name] for name in names}
    return {
        **choices,
        "lambda_weight": node["lambda"],
        "within": node.lambda_within,
        "lambda_shape": node.lambda_schedule,
    }


def refining_engine(chain: WeightChain | None, node: Config) -> EngineBuilder:
    """A builder of engines that refine a chain as the `oskt.refine` node says."""
    return partial(OSKTEngine, chain=chain, **refining_choices(node))


def refine(
    trainer: Trainer, chain: WeightChain, teacher: nn.Module, node: Config, folder: Path, continued: bool, path: Path
) -> Facts:
    """Trains a chain together with the network that it was made from, and saves it.

    Args:
        trainer: of the run.
        chain: as it was clustered; not changed.
        teacher: trained in place.
        node: `oskt.refine`; with no epochs the chain is saved as it is.
        folder: for checkpoints and TensorBoard files.
        continued: resume from an interrupted attempt.
        path: of the chain's file.

    Returns:
        `row_dispersion`, and if anything was trained `refined_teacher`, its numbers, and `training_flops`, the
        multiply-adds of all that was trained.
    """
    if node.max_epoch == 0:
        chain.save(path)
        return {"row_dispersion": row_dispersion(Refinement(teacher, chain).sstudent.row_pairs(teacher))}
    compute = refining_compute(trainer, node, chain)
    engine = trainer.train(teacher, node, folder, continued, refining_engine(chain, node))
    engine.chain.save(path)
    return {
        "refined_teacher": _without_lists(measured(engine)),
        "row_dispersion": engine.dispersion,
        "training_flops": compute,
    }


def evaluated_refinement(trainer: Trainer, teacher: nn.Module, node: Config, folder: Path, facts: Facts) -> Facts:
    """The facts of a finished refinement with its teacher measured again; without numbers if its weights are gone.

    Args:
        trainer: of the run.
        teacher: as it was before; not changed.
        node: `oskt.refine`.
        folder: with the checkpoint of the last epoch.
        facts: as they were.
    """
    kept = {name: value for name, value in facts.items() if name != "refined_teacher"}
    refined = refined_teacher(teacher, node, folder)
    if refined is None:
        return kept
    return {**kept, "refined_teacher": _without_lists(trainer.evaluate(refined))}


def _without_lists(numbers: Numbers) -> Numbers:
    """Ranked lists are shown of networks that are rows of the results."""
    return {name: value for name, value in numbers.items() if name != LISTS}


def refined_teacher(teacher: nn.Module, node: Config, folder: Path) -> nn.Module | None:
    """The teacher as a finished refinement left it; `None` if its weights are gone.

    Args:
        teacher: as it was before; not changed.
        node: `oskt.refine`.
        folder: of the refinement, with the checkpoint of the last epoch.

    Raises:
        CheckpointError: weights of another network.
    """
    path = folder / "model" / f"model.pth.tar-{node.max_epoch}"
    if not path.is_file():
        return None
    state = state_dict_of(load_checkpoint(path), path)
    refined = copy.deepcopy(teacher)
    own = {name.removeprefix(_TEACHER): tensor for name, tensor in state.items() if name.startswith(_TEACHER)}
    check_state_dict(own, refined.state_dict(), f"'{path}'", type(teacher).__name__)
    refined.load_state_dict(own)
    return refined
