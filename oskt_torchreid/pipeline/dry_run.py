"""A rehearsal: everything that a configuration asks for is built on stand-in data; nothing is trained but one step."""

from __future__ import annotations

import contextlib
import copy
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate
from torch import nn
from torch.optim import Optimizer

from ..config import get
from ..data.stand_in import CAMERAS, VIEWS, make_stand_in
from ..data.synthped import VARIANTS
from ..errors import ConfigError
from ..host.engine import TransferEngine
from ..host.losses import loss_from_config
from ..host.optimization import build_optimizer, build_scheduler
from ..models import build_model, find_classifier
from ..oskt.counting import Costs
from ..oskt.engine import OSKTEngine
from ..oskt.expand import expand_to_plan
from .baselines import FILE_METHOD, method_of
from .plan import RunPlan, make_plan, stand_in_chain
from .training import Trainer, network_size

IDENTITIES = 2
INSTANCES = VIEWS * CAMERAS
SYNTHETIC_TEST_IDENTITIES = 10  # torchreid's ranking wants galleries of 51 pictures, which synthetic sets check


@dataclass(frozen=True)
class StageRehearsal:
    """One training stage as it would run.

    Attributes:
        name: key of its node.
        networks: what is trained.
        epochs: of the schedule.
        batch_size: images, as the configuration says.
        optimizer: class name and, per parameter group, tensors and learning rate.
        rates: learning rate of the first group in each epoch.
        marks: epochs at which the schedule begins, turns or ends.
    """

    name: str
    networks: str
    epochs: int
    batch_size: int
    optimizer: str
    rates: tuple[float, ...]
    marks: tuple[int, ...]

    def curve(self) -> str:
        """Rates at the marks: "0: 3.5e-06, 10: 0.00035, 40: 3.5e-05"."""
        return ", ".join(f"{epoch}: {self.rates[epoch]:.3g}" for epoch in self.marks)


@dataclass(frozen=True)
class Rehearsal:
    """What a run would do.

    Attributes:
        facts: what and value: network, data, loss and files that an earlier run has to leave.
        stages: training stages in order.
        networks: (name, parameters, multiply-adds) of teacher, chain width and students, without classifiers.
        step: terms of the loss of the one step, if it was made.
        plan: the networks and widths, for a rehearsal of the same networks on other data; None where no chain is made.
    """

    facts: tuple[tuple[str, str], ...]
    stages: tuple[StageRehearsal, ...]
    networks: tuple[tuple[str, int, int], ...]
    step: dict[str, float]
    plan: RunPlan | None

    def summary(self) -> str:
        """The plan as text."""
        stages = [(s.name, s.networks, s.epochs, s.batch_size, s.optimizer, s.curve()) for s in self.stages]
        networks = [(name, f"{params / 1e6:.2f} M", f"{flops / 1e9:.2f} G") for name, params, flops in self.networks]
        parts = [
            tabulate(self.facts, tablefmt="plain"),
            tabulate(stages, ("stage", "trains", "epochs", "batch", "optimiser", "learning rate at epoch")),
            tabulate(networks, ("network", "params", "FLOPs"), disable_numparse=True),
        ]
        if self.step:
            terms = ", ".join(f"{name} {value:.3g}" for name, value in self.step.items())
            parts.append(f"one step on stand-in data: {terms}")
        return "\n\n".join(parts)


def rehearse(config: Any, plan: RunPlan | None = None, step: bool = True) -> Rehearsal:
    """Builds networks, widths, data loaders, losses, optimisers and schedules, and makes one step.

    The data are stand-ins of two training identities in the real layouts, in a temporary folder. Batches are as small
    as they are, everything else is as configured. Files of an earlier run (teacher, chain) and starting weights need
    not be there: networks have fresh weights.

    Args:
        config: whole tree, as ``load_config`` gives it.
        plan: of an earlier rehearsal of the same networks, to save time.
        step: whether to make the one step, of the first student where there is one, at full resolution.

    Raises:
        OsktError: as the run itself would, before it trains.
    """
    with _rehearsal_config(config) as small:
        trainer = Trainer(small)
        num_classes = trainer.num_classes
        if (config.engine or config.loss.name) == "oskt":
            plan = plan or make_plan(small, num_classes)
            stages, networks, student = _oskt_stages(config, small, trainer, plan)
        else:
            model = build_model(small, num_classes)
            stages = (_stage(config, small, trainer, "train", model, "network"),)
            networks, student = ((config.model.name, *_size(model, small)),), model
        terms = _one_step(small, trainer, student) if step else {}
        return Rehearsal(_facts(config), stages, networks, terms, plan)


@contextlib.contextmanager
def _rehearsal_config(config: Any) -> Iterator[Any]:
    """The configuration on stand-in data that are there for the while."""
    small = config.clone()
    small.defrost()
    identities = round(IDENTITIES / config.few_shot.ratio + 0.499999)  # as many as leave two in the subset
    small.model.pretrained, small.model.load_weights = False, ""
    small.oskt.teacher = small.oskt.chain = ""
    small.oskt.students = [name for name in config.oskt.students if method_of(name) != FILE_METHOD]
    small.validation.share = 0.0
    small.data.workers, small.use_gpu = 0, False
    small.sampler.num_instances = min(small.sampler.num_instances, INSTANCES)
    for node in (small.train, small.oskt.refine, small.oskt.finetune):
        node.batch_size = IDENTITIES * small.sampler.num_instances
    small.synthped.num_train, small.synthped.num_test = identities, SYNTHETIC_TEST_IDENTITIES
    with tempfile.TemporaryDirectory(prefix="rehearsal-") as root:
        small.data.root = small.data.save_dir = root
        for name in dict.fromkeys([*config.data.sources, *config.data.targets]):
            if name not in VARIANTS:  # those draw themselves
                make_stand_in(root, name, identities)
        small.freeze()
        yield small


def _oskt_stages(config: Any, small: Any, trainer: Trainer, plan: RunPlan) -> tuple[Any, Any, nn.Module]:
    """Stages and sizes of an OSKT run, and its first student (the chain's width where none is asked for)."""
    chain = stand_in_chain(plan.teacher, plan.graph, plan.chain_widths)
    widths = {"chain (S-student)": plan.chain_widths, **{student.name: student.widths for student in plan.students}}
    counts = Costs(chain).count([plan.graph.sizes, *widths.values()])
    sizes = zip(("teacher", *widths), counts.params.tolist(), counts.flops.tolist(), strict=True)
    first = next((student.widths for student in plan.students if not student.method), plan.chain_widths)
    student = expand_to_plan(chain, first)
    stages = []
    if not config.oskt.chain:
        if not config.oskt.teacher:
            stages.append(_stage(config, small, trainer, "train", plan.teacher, "teacher"))
        stages.append(_refine_stage(config, small, trainer, plan.teacher, chain))
    if plan.students:
        names = ", ".join(student.name for student in plan.students)
        stages.append(_stage(config, small, trainer, "oskt.finetune", student, names))
    return tuple(stages), tuple(sizes), student


def _stage(config: Any, small: Any, trainer: Trainer, key: str, model: nn.Module, networks: str) -> StageRehearsal:
    optimizer = build_optimizer(model, small, get(small, key))
    return _rehearsed(config, small, trainer, key, networks, optimizer)


def _refine_stage(config: Any, small: Any, trainer: Trainer, teacher: nn.Module, chain: Any) -> StageRehearsal:
    """The refinement's engine is built too: it adds the S-student's parameters to the optimiser."""
    node = get(small, "oskt.refine")
    optimizer = build_optimizer(teacher, small, node)
    OSKTEngine(
        trainer.datamanager(node.batch_size),
        copy.copy(teacher),
        optimizer,
        chain=chain,
        loss=loss_from_config(small, trainer.num_classes, use_gpu=False),
        lambda_weight=node["lambda"],
        lambda_shape=node["lambda_schedule"],
        vector_copies=node["vector_copies"],
        use_gpu=False,
    )
    return _rehearsed(config, small, trainer, "oskt.refine", "teacher, S-student", optimizer)


def _rehearsed(
    config: Any, small: Any, trainer: Trainer, key: str, networks: str, optimizer: Optimizer
) -> StageRehearsal:
    """Runs the schedule through, without training; the optimiser's rates are at their end afterwards."""
    node = get(small, key)
    groups = [f"{len(group['params'])} tensors at {group['lr']:.3g}" for group in optimizer.param_groups]
    iterations = len(trainer.datamanager(node.batch_size).train_loader)
    scheduler = build_scheduler(optimizer, node, iterations)
    rates = []
    for _ in range(node.max_epoch):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()  # without gradients it does nothing, but schedules want to see it
        for _ in range(iterations if node.per_iteration else 1):
            scheduler.step()
    name = f"{type(optimizer).__name__}: {', '.join(groups)}"
    batch_size = get(config, key).batch_size
    return StageRehearsal(key, networks, node.max_epoch, batch_size, name, tuple(rates), _marks(node))


def _marks(node: Any) -> tuple[int, ...]:
    """Epochs at which a schedule begins, turns or ends."""
    last = node.max_epoch - 1
    marks = {0, last}
    if node.lr_scheduler.startswith("warmup"):
        marks.add(node.warmup_epochs)
    marks |= set(node.stepsize) if node.lr_scheduler.endswith("step") else {last // 2}
    return tuple(sorted(mark for mark in marks if 0 <= mark <= last))


def _one_step(small: Any, trainer: Trainer, model: nn.Module) -> dict[str, float]:
    """One training step of a network on a batch of the stand-in data; the network changes."""
    datamanager = trainer.datamanager(small.train.batch_size)
    loss = loss_from_config(small, trainer.num_classes, use_gpu=False)
    engine = TransferEngine(datamanager, model, build_optimizer(model, small), loss=loss, use_gpu=False)
    engine.set_model_mode("train")
    with torch.enable_grad():
        return engine.forward_backward(next(iter(datamanager.train_loader)))


def _size(model: nn.Module, small: Any) -> tuple[int, int]:
    size = (3, small.data.height, small.data.width)
    heads = frozenset()
    with contextlib.suppress(ConfigError):  # several classifiers: they are counted
        heads = frozenset({f"{find_classifier(model, size)}.weight"})
    return network_size(model, heads, size)


def _facts(config: Any) -> tuple[tuple[str, str], ...]:
    """What is not in the tables."""
    data, few, test = config.data, config.few_shot, config.test
    facts = [
        ("network", f"{config.model.name} at {data.height}x{data.width}"),
        ("trained on", ", ".join(data.sources)),
        ("tested on", f"{', '.join(data.targets)}, {test.dist_metric}{', L2-normalised' * test.normalize_feature}"),
        ("images", f"{', '.join(data.transforms)}; {data.interpolation}; mean {data.norm_mean}, std {data.norm_std}"),
        ("sampler", f"{config.sampler.train_sampler}, {config.sampler.num_instances} images of an identity"),
        ("loss", _loss_text(config)),
    ]
    if few.ratio < 1:
        facts.append(("few-shot", f"{few.ratio:g} of the training identities, seed {few.seed}"))
    files = {
        "chain": config.oskt.chain,
        "teacher": config.oskt.teacher,
        "weights": "" if config.oskt.chain or config.oskt.teacher else config.model.load_weights,
    }
    facts += [(name, f"{path} ({_presence(path)})") for name, path in files.items() if path]
    return tuple(facts)


def _loss_text(config: Any) -> str:
    loss = config.loss
    smooth = " with smoothed labels" if loss.softmax.label_smooth else ""
    is_triplet = loss.name == "triplet"
    terms = [f"{loss.triplet.weight_x if is_triplet else 1:g} x cross-entropy{smooth}"]
    if is_triplet:
        margin = "soft margin" if loss.triplet.soft_margin else f"margin {loss.triplet.margin:g}"
        terms.append(f"{loss.triplet.weight_t:g} x hard triplet ({margin})")
    if loss.center.weight:
        terms.append(f"{loss.center.weight:g} x center (SGD {loss.center.lr:g})")
    return " + ".join(terms)


def _presence(path: str) -> str:
    return "there" if Path(path).is_file() else "not there yet: an earlier run makes it, or you give it"
