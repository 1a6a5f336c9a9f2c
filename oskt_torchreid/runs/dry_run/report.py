"""What a dry run reports: stages with their schedules, networks with their sizes, and further details."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tabulate import tabulate
from torch import nn
from torch.optim.lr_scheduler import LRScheduler

from ...chain.chain import WeightChain
from ...config import Config, get
from ...errors import ConfigError
from ...host.optimization import build_optimizer, build_scheduler
from ...models import find_classifier
from ..trainer import Trainer, network_size

Details = tuple[tuple[str, str], ...]
Network = tuple[str, int, int]
"""Name, parameters and multiply-adds."""


@dataclass(frozen=True)
class DryStage:
    """One training stage as it would run.

    Attributes:
        name: key of its node.
        networks: what is trained.
        epochs: of the schedule.
        batch_size: images, as the configuration says.
        optimizer: class name and, per parameter group, tensors and learning rate.
        rates: learning rate of the first group in each epoch.
        marks: epochs at which the schedule begins, changes or ends.
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
class BuiltNetworks:
    """Networks of a run, which do not depend on the data.

    Attributes:
        teacher: of the run.
        sizes: (name, parameters, multiply-adds) of each network, without classifiers.
        student: the first student; in a run of OSKT without any, one of the chain's width.
        students: names of all students of a run of OSKT.
        chain: the chain of a run of OSKT, with arbitrary clusters.
    """

    teacher: nn.Module
    sizes: tuple[Network, ...]
    student: nn.Module
    students: tuple[str, ...] = ()
    chain: WeightChain | None = None


@dataclass(frozen=True)
class DryRun:
    """What a run would do.

    Attributes:
        details: names and values of network, data, loss, and files of earlier runs.
        stages: training stages in order.
        networks: (name, parameters, multiply-adds) of teacher, chain width and students, without classifiers.
        step: terms of the loss of the one step, if it was made.
        built: the networks, reusable for a dry run on other data; None for a single network.
    """

    details: Details
    stages: tuple[DryStage, ...]
    networks: tuple[Network, ...]
    step: dict[str, float]
    built: BuiltNetworks | None = None

    def summary(self) -> str:
        """The plan as text."""
        stages = [(s.name, s.networks, s.epochs, s.batch_size, s.optimizer, s.curve()) for s in self.stages]
        networks = [(name, f"{params / 1e6:.2f} M", f"{flops / 1e9:.2f} G") for name, params, flops in self.networks]
        parts = [
            tabulate(self.details, tablefmt="plain"),
            tabulate(stages, ("stage", "trains", "epochs", "batch", "optimiser", "learning rate at epoch")),
            tabulate(networks, ("network", "params", "FLOPs"), disable_numparse=True),
        ]
        if self.step:
            terms = ", ".join(f"{name} {value:.3g}" for name, value in self.step.items())
            parts.append(f"one step on stand-in data: {terms}")
        return "\n\n".join(parts)


def dry_stage(
    config: Config, small: Config, trainer: Trainer, key: str, networks: str, scheduler: LRScheduler
) -> DryStage:
    """Runs the whole schedule without training; its optimiser is left with the final rates."""
    node, optimizer = get(small, key), scheduler.optimizer
    groups = [f"{len(group['params'])} tensors at {group['lr']:.3g}" for group in optimizer.param_groups]
    iterations = len(trainer.stage_datamanager(node).train_loader)
    rates = []
    for _ in range(node.max_epoch):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()  # does nothing without gradients, but torch's schedulers expect the call
        for _ in range(iterations if node.per_iteration else 1):
            scheduler.step()
    name = f"{type(optimizer).__name__}: {', '.join(groups)}"
    batch_size = get(config, key).batch_size
    return DryStage(key, networks, node.max_epoch, batch_size, name, tuple(rates), _marks(node))


def unbuilt_stage(
    config: Config, small: Config, trainer: Trainer, key: str, model: nn.Module, networks: str
) -> DryStage:
    """The stage of a network that may have no memory, so that no engine can be built; arguments as of `dry_stage`."""
    node = get(small, key)
    optimizer = build_optimizer(model, small, node)
    scheduler = build_scheduler(optimizer, node, len(trainer.stage_datamanager(node).train_loader))
    return dry_stage(config, small, trainer, key, networks, scheduler)


def _marks(node: Config) -> tuple[int, ...]:
    """Epochs at which a schedule begins, changes or ends."""
    last = node.max_epoch - 1
    marks = {0, last}
    if node.lr_scheduler.startswith("warmup"):
        marks.add(node.warmup_epochs)
    marks |= set(node.stepsize) if node.lr_scheduler.endswith("step") else {last // 2}
    return tuple(sorted(mark for mark in marks if 0 <= mark <= last))


def network_cost(model: nn.Module, small: Config) -> tuple[int, int]:
    """Parameters and multiply-adds of a network for one image, without its classifier, if it has one."""
    size = (3, small.data.height, small.data.width)
    heads: frozenset[str] = frozenset()
    with contextlib.suppress(ConfigError):  # several classifiers: they are counted
        heads = frozenset({f"{find_classifier(model, size)}.weight"})
    return network_size(model, heads, size)


def details_of(config: Config) -> Details:
    """Details that are not in the tables, for a run on images."""
    test = config.test
    tested = f"{', '.join(config.data.targets)}, {test.dist_metric}{', L2-normalised' * test.normalize_feature}"
    files = {
        "chain": config.oskt.chain,
        "teacher": config.oskt.teacher,
        "weights": "" if config.oskt.chain or config.oskt.teacher else config.model.load_weights,
    }
    return (
        ("network", f"{config.model.name} at {config.data.height}x{config.data.width}"),
        *data_details(config, tested),
        ("sampler", sampler_text(config.sampler)),
        ("loss", loss_text(config)),
        *few_shot_details(config),
        *file_details(files),
    )


def sampler_text(node: Config) -> str:
    """How batches are composed."""
    kinds = {"Identity": ("num_instances", "images of an identity"), "Domain": ("num_cams", "cameras")}
    kinds["Dataset"] = "num_datasets", "data sets"
    said = [f", {node[key]} {what}" for kind, (key, what) in kinds.items() if kind in node.train_sampler]
    return node.train_sampler + "".join(said)


def data_details(config: Config, tested: str) -> Details:
    """Data sets, how networks are tested on them, and the transforms of images."""
    data = config.data
    return (
        ("trained on", ", ".join(data.sources)),
        ("tested on", tested),
        ("images", f"{', '.join(data.transforms)}; {data.interpolation}; mean {data.norm_mean}, std {data.norm_std}"),
    )


def few_shot_details(config: Config) -> Details:
    """The subset of the identities, if there is one."""
    few = config.few_shot
    if few.ratio == 1:
        return ()
    return (("few-shot", f"{few.ratio:g} of the training identities, seed {few.seed}"),)


def file_details(files: Mapping[str, str]) -> Details:
    """Files that the run reads, and whether they exist."""
    return tuple((name, f"{path} ({_presence(path)})") for name, path in files.items() if path)


def loss_text(config: Config) -> str:
    """The terms of the re-identification loss."""
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
