"""A dry run: everything that a configuration asks for is built on stand-in data; nothing is trained but one step."""

from __future__ import annotations

import contextlib
import copy
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import cast

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler

from ...chain.counting import Costs
from ...chain.expansion import expand_to_plan
from ...config import Config, get
from ...datasets import synthped, synthped_video
from ...datasets.stand_in import CAMERAS, PICTURES_PER_CAMERA, make_stand_in, stand_ins
from ...datasets.synthetic import preset
from ...host.data import dataset_class
from ...models import build_model
from ..oskt.plan import check_start, make_plan, stand_in_chain
from ..oskt.refinement import refining_engine
from ..oskt.specification import students_of
from ..single import engine_of
from ..trainer import Trainer, schedule
from ..use import check_use
from ..vkd.trainer import SetTrainer
from .data import look_at_data
from .files import look_at_files
from .report import BuiltNetworks, DryRun, DryStage, details_of, dry_stage, network_cost, unbuilt_stage
from .sets import run_sets_dry, shrink_sets

IDENTITIES = 2
INSTANCES = PICTURES_PER_CAMERA * CAMERAS
DRAWN = (*synthped.VARIANTS, *synthped_video.VARIANTS)  # they draw their own data
TEST_PAIRS = 60  # identities times cameras: torchreid's ranking wants galleries of 51, which synthetic sets check


def run_dry(config: Config, built: BuiltNetworks | None = None, step: bool = True, given: Sequence[str] = ()) -> DryRun:
    """Builds networks, widths, data loaders, losses, optimisers and schedules, and makes one step.

    The data are stand-ins with two training identities in the real layouts, in a temporary folder. Batches are equally
    small; everything else is as configured. Files of an earlier run (teacher, chain, students) and initial weights need
    not exist: networks have fresh weights. Data sets that exist are checked themselves, see `look_at_data`.

    Args:
        config: whole tree, as `load_config` gives it.
        built: of an earlier dry run of the same networks, to save time.
        step: whether to make the one step, of the first student if there is one, at full resolution. Without it
            networks have shapes but no weights, if that is enough to build everything.
        given: dotted keys from the command line, which must have an effect.

    Returns:
        What the run would do.

    Raises:
        OsktError: as the run itself would, before it trains.
    """
    check_use(config, given)
    look_at_files(config)
    method = config.engine or config.loss.name
    if method != "vkd":
        check_start(config)
    report = _on_stand_ins(config, method, built, step)
    trainer = (SetTrainer if method == "vkd" else Trainer)(config)
    return replace(report, details=(*report.details, *look_at_data(config, trainer, report.stages)))


def _on_stand_ins(config: Config, method: str, built: BuiltNetworks | None, step: bool) -> DryRun:
    """Builds everything, and makes the one step, on stand-in data."""
    with _small_config(config) as small:
        if method == "vkd":
            return run_sets_dry(config, small, built, step)
        trainer = Trainer(small)
        if method == "oskt":
            built = built or _built(small, trainer.num_classes)
            stages, networks, student = _oskt_stages(config, small, trainer, built), built.sizes, built.student
        else:
            with contextlib.nullcontext() if step else torch.device("meta"):
                student = build_model(small, trainer.num_classes)
            stages = (unbuilt_stage(config, small, trainer, "train", student, "network"),)
            networks = ((config.model.name, *network_cost(student, small)),)
        terms = _one_step(small, trainer, student) if step else {}
        return DryRun(details_of(config), stages, networks, terms, built)


@contextlib.contextmanager
def _small_config(config: Config) -> Iterator[Config]:
    """The configuration on stand-in data in a temporary folder, which is deleted afterwards."""
    small = config.clone()
    small.defrost()
    identities = round(IDENTITIES / config.few_shot.ratio + 0.499999)  # so many that two remain in the subset
    small.model.pretrained, small.model.load_weights = False, ""
    small.oskt.teacher = small.oskt.chain = ""
    small.oskt.students = [spec.text for spec in students_of(config) if not spec.is_file]
    small.validation.share, small.market1501.use_500k_distractors = 0.0, False
    small.data.workers, small.use_gpu = 0, False
    small.sampler.num_instances = min(small.sampler.num_instances, INSTANCES)
    for node in (small.train, small.oskt.refine, small.oskt.finetune):
        node.batch_size = IDENTITIES * small.sampler.num_instances
    drawn = small.synthped
    cameras = drawn.cameras or preset(drawn.preset).cameras
    drawn.num_train, drawn.num_test = identities, -(-TEST_PAIRS // cameras)
    if config.engine == "vkd":
        shrink_sets(small, identities)
    with tempfile.TemporaryDirectory(prefix="dry-run-") as root:
        small.data.root = small.data.save_dir = root
        names = [name for name in (*config.data.sources, *config.data.targets) if name not in DRAWN]
        for name in names:
            dataset_class(name, config.data.type)  # raises for an unknown one
        standing = stand_ins(names, config.data.type)
        for name in dict.fromkeys(standing.values()):
            make_stand_in(root, name, identities)
        for key in ("sources", "targets"):
            small.data[key] = [standing.get(name, name) for name in config.data[key]]
        small.freeze()
        yield small


def _built(small: Config, num_classes: int) -> BuiltNetworks:
    """The networks of a run of OSKT, with fresh weights."""
    plan = make_plan(small, num_classes)
    chain = stand_in_chain(plan.teacher, plan.graph, plan.chain_widths, small.oskt.nested)
    widths = {"chain (S-student)": plan.chain_widths, **{student.name: student.widths for student in plan.students}}
    counts = Costs(chain).count([plan.graph.sizes, *widths.values()])
    sizes = zip(("teacher", *widths), counts.params.tolist(), counts.flops.tolist(), strict=True)
    first = next((student for student in plan.students if student.spec.of_chain), None)
    rung = (plan.chain_widths, *plan.rungs)[first.rung if first else 0]
    student = expand_to_plan(stand_in_chain(plan.teacher, plan.graph, rung), first.widths if first else rung)
    names = tuple(student.name for student in plan.students)
    return BuiltNetworks(plan.teacher, tuple(sizes), student, names, chain)


def _oskt_stages(config: Config, small: Config, trainer: Trainer, built: BuiltNetworks) -> tuple[DryStage, ...]:
    """Stages of a run of OSKT, in order."""
    stages = []
    if not config.oskt.chain:
        if not config.oskt.teacher:
            stages.append(unbuilt_stage(config, small, trainer, "train", built.teacher, "teacher"))
        stages.append(_refine_stage(config, small, trainer, built))
    if built.students:
        stages.append(unbuilt_stage(config, small, trainer, "oskt.finetune", built.student, ", ".join(built.students)))
    return tuple(stages)


def _refine_stage(config: Config, small: Config, trainer: Trainer, built: BuiltNetworks) -> DryStage:
    """Builds the refinement's engine, which adds the S-student's parameters to the optimiser."""
    node = get(small, "oskt.refine")
    engine = trainer.build_engine(copy.copy(built.teacher), node, refining_engine(built.chain, node), "oskt.refine")
    scheduler = cast(LRScheduler, engine.scheduler)  # which every engine of a trainer has
    return dry_stage(config, small, trainer, "oskt.refine", "teacher, S-student", scheduler)


def _one_step(small: Config, trainer: Trainer, model: nn.Module) -> dict[str, float]:
    """One training step of a network on a batch of the stand-in data, at full resolution; the network changes."""
    engine = trainer.build_engine(model, schedule(small, "train", half_resolution_epochs=0), engine_of(small))
    engine.set_model_mode("train")
    with torch.enable_grad():
        return engine.forward_backward(next(iter(engine.train_loader)))
