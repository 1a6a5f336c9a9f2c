"""Keys without effect under the values of other keys, such as a step size when the rate follows a cosine.

This depends on other keys and the data; for two keys also on the machine, see `BY_MACHINE`.
"""

from __future__ import annotations

from collections.abc import Iterator

from ..baselines import baseline
from ..config import Config, get, leaves
from ..config.nodes.oskt import DISTILLATION_KEYS, KD, KD_START
from ..config.nodes.training import STAGE_KEYS
from ..host.compat import device
from ..host.data import has_splits
from ..host.distributed import world_size
from ..host.optimization import SCHEDULE_KEYS
from .oskt.specification import asks_for_latency, students_of

Reasons = Iterator[tuple[str, str]]

BY_MACHINE = ("train.mixed_precision", "train.sync_batch_norm")
"""Keys that have an effect on some machines only."""

SCHEDULE = (*STAGE_KEYS, "start_epoch", "fixbase_epoch", "open_layers")
"""The keys of the train node that only concern its own stage."""

_STAGES = {
    "oskt": ("train", "oskt.refine", "oskt.finetune"),
    "vkd": ("vkd.teacher_stage", "vkd.student_stage"),
}
_SAMPLERS = {
    "sampler.num_instances": "RandomIdentitySampler",
    "sampler.num_cams": "RandomDomainSampler",
    "sampler.num_datasets": "RandomDatasetSampler",
}


def idle_keys(config: Config) -> dict[str, str]:
    """Dotted keys that do nothing in a run, and why.

    Example: `train.stepsize` does nothing, with the reason `train.lr_scheduler is 'cosine'`.
    """
    engine = config.engine or config.loss.name
    found = [
        *left_out_keys(config).items(),
        *_of_training(config),
        *_of_data(config, engine),
        *_of_losses(config),
        *_of_evaluation(config),
    ]
    for stage in _STAGES.get(engine, ("train",)):
        found += _of_schedule(config, stage)
    if engine == "oskt":
        found += [*_of_chain(config), *_of_students(config)]
    elif engine == "vkd":
        found += _of_sets(config)
    return dict(reversed(found))  # of several reasons the first


def left_out_keys(config: Config) -> dict[str, str]:
    """The keys of skipped stages: those without epochs, or replaced by a given teacher or chain.

    They are logged, never refused, so that a teacher or chain can be added to a command without other changes.
    """
    engine, oskt, vkd = config.engine or config.loss.name, config.oskt, config.vkd
    reasons: dict[str, str] = {}
    if engine == "oskt" and oskt.chain:
        refined = ("width", "keep", "unknown", "clustering", "normalize_rows", "attention", "nested", "contributions")
        keys = (*leaves(oskt.refine, "oskt.refine."), *(f"oskt.{key}" for key in refined))
        reasons |= dict.fromkeys(keys, "oskt.chain is given, so that nothing is refined")
    given = next((key for key in ("chain", "teacher") if oskt[key]), "") if engine == "oskt" else ""
    if given:
        keys = ("model.pretrained", "model.load_weights", *train_schedule(config))
        reasons |= dict.fromkeys(keys, f"oskt.{given} is given, so that no teacher is trained")
    if engine == "vkd" and vkd.teacher:
        keys = ("model.load_weights", *leaves(vkd.teacher_stage, "vkd.teacher_stage."))
        used = ("vkd.teacher_stage.num_views", "vkd.teacher_stage.strategy") if vkd.controls else ()
        unused = [key for key in keys if key not in used]
        reasons |= dict.fromkeys(unused, "vkd.teacher is given, so that none is trained")
    for stage in _STAGES.get(engine, ("train",)):
        reasons = dict.fromkeys(_without_epochs(config, stage), f"{stage}.max_epoch is 0") | reasons
    return reasons


def _without_epochs(config: Config, stage: str) -> list[str]:
    """The keys of a stage without epochs that have no effect."""
    node, controls = get(config, stage), config.oskt.controls
    # Controls get the epochs of refinement and fine-tuning together, at the resolutions of both.
    of_controls = stage == "oskt.finetune" and controls and config.oskt.refine.max_epoch
    if node.max_epoch or of_controls:
        return []
    used = {f"{stage}.max_epoch"}
    used |= {f"{stage}.half_resolution_epochs"} if stage == "oskt.refine" and controls else set()
    used |= {f"{stage}.batch_size"} if stage == "oskt.finetune" and config.oskt.recalibrate else set()
    own = train_schedule(config) if stage == "train" else leaves(node, f"{stage}.")
    return [key for key in own if key not in used]


def train_schedule(config: Config) -> list[str]:
    """The keys of the train node that only concern its own stage."""
    return [f"train.{name}" for name in config.train if name in SCHEDULE]


def _of_training(config: Config) -> Reasons:
    train = config.train
    if not train.staged_lr:
        yield from _each("train.staged_lr is False", "train.new_layers", "train.base_lr_mult")
    if not train.fixbase_epoch:
        yield "train.open_layers", "train.fixbase_epoch is 0"
    if device(config.use_gpu).type == "cpu":
        yield "train.mixed_precision", "nothing runs on a GPU"
    if not config.sgd.momentum:
        yield "sgd.dampening", "sgd.momentum is 0"
    if world_size() == 1:
        yield "train.sync_batch_norm", "there is one process"


def _of_schedule(config: Config, stage: str) -> Reasons:
    node = get(config, stage)
    for key, schedules in SCHEDULE_KEYS.items():
        if node.lr_scheduler not in schedules:
            yield f"{stage}.{key}", f"{stage}.lr_scheduler is '{node.lr_scheduler}'"
    if not node.warmup_epochs:
        yield f"{stage}.warmup_factor", f"{stage}.warmup_epochs is 0"


def _of_data(config: Config, engine: str) -> Reasons:
    data = config.data
    names = list(dict.fromkeys([*data.sources, *data.targets]))
    if not any(has_splits(name, data.type) for name in names):
        yield "data.split_id", f"none of {', '.join(names)} has several splits"
    for key, sampler in _SAMPLERS.items():
        if engine != "vkd" and config.sampler.train_sampler != sampler:
            yield key, f"sampler.train_sampler is '{config.sampler.train_sampler}'"
    if config.few_shot.ratio == 1:
        yield "few_shot.seed", "few_shot.ratio is 1"
    if not config.validation.share:
        yield "validation.seed", "validation.share is 0"


def _of_losses(config: Config) -> Reasons:
    loss, triplet = config.loss, config.loss.triplet
    if not loss.center.weight:
        yield "loss.center.lr", "loss.center.weight is 0"
    if loss.name != "triplet":
        yield from _each(f"loss.name is '{loss.name}'", *leaves(triplet, "loss.triplet."))
        return
    if not triplet.weight_x:
        yield "loss.softmax.label_smooth", "loss.triplet.weight_x is 0"
    if not triplet.weight_t:
        keys = ("margin", "soft_margin", "normalize")
        yield from _each("loss.triplet.weight_t is 0", *(f"loss.triplet.{key}" for key in keys))
    if triplet.soft_margin:
        yield "loss.triplet.margin", "loss.triplet.soft_margin is True"


def _of_evaluation(config: Config) -> Reasons:
    test = config.test
    if not test.visrank:
        yield "test.visrank_topk", "test.visrank is False"
    if test.eval_freq < 1 and not (config.engine == "oskt" and config.oskt.curves):
        yield "test.start_eval", f"test.eval_freq is {test.eval_freq}"
    if (config.engine or config.loss.name) == "vkd":
        yield "test.normalize_feature", "engine is 'vkd', whose distances are cosine ones"
    elif test.dist_metric == "cosine":
        yield "test.normalize_feature", "test.dist_metric is 'cosine'"


def _of_chain(config: Config) -> Reasons:
    oskt = config.oskt
    if oskt.ladder:
        yield "oskt.width", "oskt.ladder has the widths of the chains"
    if not oskt.refine["lambda"]:
        yield "oskt.refine.lambda_schedule", "oskt.refine.lambda is 0"
        yield "oskt.refine.lambda_within", "oskt.refine.lambda is 0"
    if not oskt.refine.distil_weight:
        yield from _each("oskt.refine.distil_weight is 0", "oskt.refine.distil_temperature", "oskt.refine.distil_from")
    if oskt.contributions:
        yield "oskt.refine.lambda_within", f"oskt.contributions is {oskt.contributions}, and clusters have leaders"
        yield "oskt.normalize_rows", f"oskt.contributions is {oskt.contributions}, which clusters follow"
    if not oskt.refine.levels:
        yield "oskt.refine.level_start", "oskt.refine.levels is 0"


def _of_students(config: Config) -> Reasons:
    """Keys that depend on which networks there are."""
    oskt = config.oskt
    students = students_of(config)
    of_chain = any(spec.of_chain for spec in students)
    if not of_chain:
        names = ["distance", "statistics", "vectors_over", "feature", "recalibrate"]
        names += ["distillation.of_chain", "finetune.compatible"]
        keys = [f"oskt.{name}" for name in names]
        yield from _each("oskt.students has no student of the chain", *keys)
    trained = [*(spec.method for spec in students), *oskt.controls]
    if not trained:
        yield from _each("oskt.students and oskt.controls are empty", *leaves(oskt.finetune, "oskt.finetune."))
    epochs = oskt.finetune.max_epoch or (oskt.controls and oskt.refine.max_epoch)
    if not (trained and epochs):
        yield "oskt.curves", "oskt.finetune.max_epoch is 0, or oskt.students and oskt.controls are empty"
    if trained and all(spec.of_baseline for spec in students):
        yield "oskt.finetune.lr", "oskt.students and oskt.controls are baselines, see oskt.control_lr"
    if oskt.nested and not oskt.chain:
        yield "oskt.vectors_over", "oskt.nested is True, and students are between S-student and teacher"
    elif oskt.statistics != "own":
        yield "oskt.vectors_over", f"oskt.statistics is {oskt.statistics}, which go with slots"
    if oskt.recalibrate:
        yield "oskt.statistics", f"oskt.recalibrate is {oskt.recalibrate}, and estimates them again"
    if not oskt.distillation.weight_kl:
        yield "oskt.distillation.temperature", "oskt.distillation.weight_kl is 0"
    for name in oskt.control_lr:
        if name not in trained:
            yield f"oskt.control_lr.{name}", f"oskt.students and oskt.controls name no '{name}'"
    distils = any(spec.distils for spec in students) or any(baseline(name).distils for name in oskt.controls)
    if not distils and not (of_chain and oskt.distillation.of_chain):
        yield from _each(
            "oskt.distillation.of_chain is False, oskt.students and oskt.controls name nothing that is distilled",
            *DISTILLATION_KEYS,
            KD_START,
        )
    elif KD not in trained:
        yield KD_START, f"oskt.students and oskt.controls name no '{KD}'"
    if not asks_for_latency((*oskt.students, *oskt.ladder)):
        yield from _each("oskt.students and oskt.ladder request no latency", *leaves(oskt.latency, "oskt.latency."))


def _of_sets(config: Config) -> Reasons:
    node = config.vkd
    if not node.student.endswith(".safetensors"):
        yield "vkd.student_width", "vkd.student is no chain's file"
    if node.student and node.generations == 1:
        keys = ("vkd.reinit_last_stage", "vkd.last_stage_weights")
        yield from _each("vkd.student is no repetition of its teacher, and vkd.generations is 1", *keys)
    if not node.reinit_last_stage:
        yield "vkd.last_stage_weights", "vkd.reinit_last_stage is False"
    if not node.alpha:
        yield "vkd.temperature", "vkd.alpha is 0"
    if not node.beta:
        yield "vkd.distances", "vkd.beta is 0"
    if not node.controls:
        yield "vkd.trained_on_lr", "vkd.controls is False"


def _each(reason: str, *keys: str) -> Reasons:
    for key in keys:
        yield key, reason
