"""The dry run of a run of VKD: its data managers of sets, its teacher and student, their schedules, and one step."""

from __future__ import annotations

import contextlib
from pathlib import Path

import torch

from ...config import Config
from ...datasets.synthetic import video_preset
from ...vkd.model import SET_PREFIX
from ..trainer import network_size, schedule
from ..vkd.plan import CHAIN, CHAIN_SUFFIX, IMAGENET, SELF, check_set_start, plan_sets, start_student, student_kind
from ..vkd.trainer import STUDENT_STAGE, TEACHER_STAGE, SetTrainer
from .report import (
    BuiltNetworks,
    Details,
    DryRun,
    data_details,
    few_shot_details,
    file_details,
    loss_text,
    unbuilt_stage,
)

SET_INSTANCES = 2  # sets of an identity in the one batch
TEST_TRACKLETS = 52  # torchreid's ranking wants galleries of 51, which synthetic sets check
DRAWN_FRAMES = 2
CLASSIFIERS = frozenset({"classifier.weight"})  # the same in every network of sets


def shrink_sets(small: Config, identities: int) -> None:
    """Takes files of earlier runs out of a configuration, in place, and makes batches and synthetic sets small."""
    node, drawn = small.vkd, small.synthped_video
    node.teacher = node.last_stage_weights = ""
    if node.student.endswith(CHAIN_SUFFIX):  # replaced by a student of the same width, expanded from the teacher
        node.student = f"width={node.student_width}"
    small.sampler.num_instances = min(small.sampler.num_instances, SET_INSTANCES)
    for stage in (node.teacher_stage, node.student_stage):
        stage.batch_size = identities * small.sampler.num_instances
    cameras = drawn.cameras or video_preset(drawn.preset).cameras
    drawn.num_train, drawn.num_test, drawn.frames = identities, -(-TEST_TRACKLETS // cameras), DRAWN_FRAMES


def run_sets_dry(config: Config, small: Config, built: BuiltNetworks | None = None, step: bool = True) -> DryRun:
    """`run_dry` for `engine: vkd`.

    Args:
        config: whole tree.
        small: the same on stand-in data, see `shrink_sets`.
        built: of an earlier dry run of the same networks.
        step: whether to make the one step, of the first student; without it networks have shapes and no weights.

    Raises:
        OsktError: as the run itself would, before it trains.
    """
    check_set_start(config)
    trainer = SetTrainer(small)
    built = built or _built(small, trainer.num_classes, step)
    stages = []
    if not config.vkd.teacher:
        stages.append(unbuilt_stage(config, small, trainer, TEACHER_STAGE, built.teacher, "teacher"))
    generations = config.vkd.generations
    name = "student" if generations == 1 else f"{generations} students, one after another"
    stages.append(unbuilt_stage(config, small, trainer, STUDENT_STAGE, built.student, name))
    terms = _one_step(small, trainer, built) if step else {}
    return DryRun(_details(config), tuple(stages), built.sizes, terms, built)


def _built(small: Config, num_classes: int, step: bool) -> BuiltNetworks:
    """Teacher and student, with weights if a step or a chain needs them."""
    has_weights = step or student_kind(small) == CHAIN
    with contextlib.nullcontext() if has_weights else torch.device("meta"):
        plan = plan_sets(small, num_classes)
        student = start_student(small, plan, plan.teacher, num_classes)
    size = (3, small.data.height, small.data.width)
    cost = network_size(plan.teacher, CLASSIFIERS, size)
    other = cost if plan.student == SELF else network_size(student, CLASSIFIERS, size)
    return BuiltNetworks(plan.teacher, (("teacher", *cost), ("student", *other)), student)


def _one_step(small: Config, trainer: SetTrainer, built: BuiltNetworks) -> dict[str, float]:
    """One step of distillation on a batch of the stand-in data, at full resolution; the student changes."""
    stage = schedule(small, STUDENT_STAGE, half_resolution_epochs=0)
    engine = trainer.build_engine(built.student, stage, trainer.distilling_engine(built.teacher), STUDENT_STAGE)
    engine.set_model_mode("train")
    return engine.forward_backward(next(iter(engine.train_loader)))


def _details(config: Config) -> Details:
    """Details that are not in the tables."""
    node, per_identity = config.vkd, config.sampler.num_instances
    name, taught = SET_PREFIX + config.model.name.removeprefix(SET_PREFIX), node.teacher_stage
    tested = [", ".join(config.data.targets), f"{', '.join(node.protocols)} by cosine distance"]
    tested.append(f"{node.test_frames or 'all'} frames of a tracklet")
    tested += ["queries in the gallery"] * node.query_in_gallery + ["without cameras"] * node.no_camera
    sets = (
        f"{node.num_views} views ({node.strategy}) for the teacher, {node.num_student_views} of them for the student; "
        f"{node.student_stage.batch_size // per_identity} identities x {per_identity} in a batch"
    )
    own = (
        f"{taught.num_views or node.num_views} views ({taught.strategy or node.strategy}); "
        f"{taught.batch_size // per_identity} identities x {per_identity} in a batch"
    )
    details = [
        ("network", f"{name} at {config.data.height}x{config.data.width}"),
        *data_details(config, "; ".join(tested)),
        ("sets", sets),
        *([] if node.teacher else [("teacher's own sets", own)]),
        ("loss", f"{loss_text(config)} + {node.alpha:g} x class scores at temperature {node.temperature:g} "
         f"+ {node.beta:g} x distances"),
        ("student", _start_text(config)),
        *few_shot_details(config),
    ]  # fmt: skip
    files = {"teacher": node.teacher, "weights": "" if node.teacher else config.model.load_weights}
    files["student's chain"] = node.student if node.student.endswith(CHAIN_SUFFIX) else ""
    files["last stage"] = "" if node.last_stage_weights == IMAGENET else node.last_stage_weights
    return (*details, *file_details(files))


def _start_text(config: Config) -> str:
    node = config.vkd
    if node.student.endswith(CHAIN_SUFFIX):
        return f"width {node.student_width:g} of the chain '{Path(node.student).name}'"
    if node.student:
        return f"{node.student} of a chain of the teacher" if "=" in node.student else node.student
    if not node.reinit_last_stage:
        return "its teacher's weights"
    return f"its teacher's weights, but for the last stage ({node.last_stage_weights or 'fresh'}) and the head (fresh)"
