"""The engine that refines a weight chain: teacher and S-student are trained together (paper: refinement)."""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from ..chain.chain import WeightChain
from ..chain.losses import lambda_schedule, row_dispersion
from ..chain.sstudent import Criterion, Refinement
from ..errors import CheckpointError, ConfigError
from ..graph.keeping import Keep
from ..graph.plans import Width
from ..graph.tracer import tracing_mode
from ..networks import Outputs, parse_outputs
from ..registry import register_engine
from .distributed import whole_batch
from .engine import TransferEngine
from .interfaces import EngineData
from .losses import ReidLoss, kd_loss
from .models import unwrapped
from .optimization import add_to_optimizer, layer_names
from .run_checks import check_number, check_optimizer, check_parts

logger = logging.getLogger(__name__)

LEARNING_RATE, WEIGHT_DECAY = 3.5e-4, 5e-4  # the paper's recipe for CNNs


class OSKTEngine(TransferEngine):
    """Refines a chain: `L = L_reid(teacher) + L_reid(S-student) + lambda * L_refine`.

    Evaluation and checkpoints during the run concern the teacher with its chain; its `chain` is the chain as
    refined so far, to be expanded or saved.

    Args:
        datamanager: torchreid data manager.
        model: the teacher; it is trained on.
        optimizer: over the teacher's parameters, as for any torchreid engine; the chain's are added to its first
            group. `None`: Adam with the paper's rate.
        scheduler: `None` keeps the learning rate.
        chain: a chain of this teacher; `None`: clusters one of `width`.
        width: width ratio of the chain, if none is given.
        keep: modules of the teacher that stay whole, if no chain is given, see `WeightChain.from_teacher`.
        unknown: `keep` or `refuse`, see there.
        loss: re-id loss of teacher and S-student; `None`: label-smoothed cross-entropy.
        lambda_weight: final weight of the refining loss.
        lambda_shape: `constant` or `linear`, see `chain.losses.lambda_schedule`.
        within: weight of the term that makes a cluster's rows alike, as a share of `lambda_weight`; 1 in the paper, see
            `chain.losses.row_distance`.
        distil_weight: weight of the loss against a teacher's class scores; 0 in the paper.
        distil_temperature: temperature of these scores.
        distil_from: `first`: all learn from the teacher as it is now, before it is trained on; a copy is kept and run
            in evaluation. `now`: narrow students learn from the teacher as it is in each step.
        levels: further widths of a nested chain, or how many, evenly spaced; each step trains one, in turn.
        level_start: share of the run's iterations after which it does.
        sstudent_weight: weight of what narrow students lose, the S-student and levels; at 0 the chain is refined by
            `L_refine` alone, and the S-student still has its own running statistics.
        vector_copies: the S-student has its own norm parameters and biases, which are refined like rows.
        **options: of `TransferEngine`.
    """

    model: Refinement

    def __init__(
        self,
        datamanager: EngineData,
        model: nn.Module,
        optimizer: Optimizer | None = None,
        scheduler: LRScheduler | None = None,
        chain: WeightChain | None = None,
        width: float = 0.25,
        loss: ReidLoss | None = None,
        lambda_weight: float = 1.0,
        lambda_shape: str = "linear",
        vector_copies: bool = False,
        sstudent_weight: float = 1.0,
        within: float = 1.0,
        distil_weight: float = 0.0,
        distil_temperature: float = 4.0,
        distil_from: str = "first",
        levels: int | Sequence[Width] = (),
        level_start: float = 0.3,
        keep: Keep = (),
        unknown: str = "keep",
        **options: Any,
    ) -> None:
        check_parts(datamanager, model, optimizer, scheduler, loss)
        weights = {"lambda_weight": lambda_weight, "sstudent_weight": sstudent_weight, "within": within}
        _check_numbers(distil_from, level_start, distil_temperature, distil_weight=distil_weight, **weights)
        if chain is not None and not isinstance(chain, WeightChain):
            raise ConfigError(f"chain is {chain!r:.100}; give a WeightChain, such as WeightChain.load(path) reads")
        model = unwrapped(model)
        self._lambda = lambda_schedule(lambda_shape, lambda_weight)
        self.sstudent_weight = sstudent_weight
        if chain is None:
            size = (3, datamanager.height, datamanager.width)
            chain = WeightChain.from_teacher(model, width, input_size=size, keep=keep, unknown=unknown)
        elif keep:
            raise ConfigError(
                "keep is given with a chain, which says already what stays whole; make the chain with keep="
            )
        refinement = Refinement(model, chain, vector_copies, within, levels)
        self.distil_weight, self.distil_temperature = distil_weight, distil_temperature
        self.level_start = level_start
        if optimizer is not None:
            check_optimizer(optimizer, model)  # before the S-student's parameters are added
        else:
            optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
        add_to_optimizer(optimizer, refinement.sstudent, refinement.sstudent.layer_of)
        super().__init__(datamanager, refinement, optimizer, scheduler, loss=loss, **options)
        # Each network has its own copy of what a loss learns, such as centers.
        self.sstudent_loss = copy.deepcopy(self.loss)
        self.level_losses = [copy.deepcopy(self.loss) for _ in refinement.levels]
        self.dispersion = row_dispersion(refinement.sstudent.row_pairs(model))
        keeps_first = distil_weight > 0 and distil_from == "first"
        self._first = copy.deepcopy(self.model.teacher) if keeps_first else None

    @property
    def chain(self) -> WeightChain:
        """The chain as refined so far (a copy on the CPU)."""
        return self.model.to_chain()

    def compute_losses(self, images: Tensor, pids: Tensor) -> tuple[Tensor, dict[str, float]]:
        """The terms of a batch; those of the S-student are logged with the prefix `s_`, of a level with `l_`."""
        if self.model.levels and self.progress >= self.level_start:
            done = self.epoch * len(self.train_loader) + self.batch_idx
            self.model.active = (done % len(self.model.levels),)
        outputs = [parse_outputs(output, True, self.model.loss) for output in self.outputs_of(images)]
        targets = None if self._first is None else whole_batch(self._outputs_of_first(self._first, images))
        outputs, pids = whole_batch((outputs, pids))
        summary: dict[str, float] = {}

        def noting(loss: ReidLoss, prefix: str) -> Criterion:
            def criterion(output: Outputs) -> Tensor:
                value, terms = loss(output, pids)
                summary.update({f"{prefix}{name}": term for name, term in terms.items()})
                return value

            return criterion

        narrow = [self.sstudent_loss, *(self.level_losses[number] for number in self.model.active)]
        criteria = [noting(loss, "l_" if number else "s_") for number, loss in enumerate(narrow)]
        distil = self._distilled if self.distil_weight else None
        losses = self.model.losses_of(outputs, noting(self.loss, ""), criteria, distil, targets)
        weight = self._lambda(self.progress)
        summary |= {"refine": losses.refine.item(), "lambda": weight}
        return losses.total(weight, self.sstudent_weight), summary

    @torch.no_grad()
    def _outputs_of_first(self, first: nn.Module, images: Tensor) -> Outputs:
        """Of the teacher as it was first: its classifiers run, its norms use running statistics."""
        with tracing_mode(first):
            return parse_outputs(self.outputs_of(images, first), True, self.model.loss)

    def _distilled(self, teacher: Outputs, student: Outputs) -> Tensor:
        """What a network loses against a teacher's class scores, which are given no gradient."""
        pairs = zip(student.logits, teacher.logits, strict=True)
        terms = [kd_loss(own, theirs.detach(), self.distil_temperature) for own, theirs in pairs]
        return self.distil_weight * torch.stack(terms).sum()

    @property
    def layered_model(self) -> nn.Module:
        """The teacher, whose layers a user names."""
        return self.model.teacher

    def two_stepped_transfer_learning(
        self, epoch: int, fixbase_epoch: int, open_layers: Any, model: nn.Module | None = None
    ) -> None:
        """Opens layers of the teacher for this epoch, and the S-student's parameters of the same layers."""
        super().two_stepped_transfer_learning(epoch, fixbase_epoch, open_layers, model)
        if epoch + 1 <= fixbase_epoch and open_layers is not None:
            self.model.sstudent.open_layers(layer_names(open_layers))
            self._keep_frozen()

    def step(self, loss: Tensor, summary: dict[str, float]) -> None:
        """One step of the optimiser, and of the own parameters of the narrow students' losses."""
        super().step(loss, summary)
        for number in self.model.active:
            self.level_losses[number].step()
        self.sstudent_loss.step()

    def losses(self) -> list[ReidLoss]:
        """The losses of teacher, S-student and levels; each may have its own centers."""
        return [self.loss, self.sstudent_loss, *self.level_losses]

    def method_state(self) -> dict[str, Any]:
        """The chain's clusters, which its rows refer to."""
        return {"teacher_to_chain": self.model.sstudent.clusters()}

    def load_method_state(self, state: dict[str, Any], source: str) -> None:
        """Checks that a checkpoint's rows are of these clusters."""
        own, given = self.model.sstudent.clusters(), state.get("teacher_to_chain", {})
        same = isinstance(given, dict) and given.keys() == own.keys()
        if state and not (same and all(torch.equal(given[name], own[name]) for name in own)):
            raise CheckpointError(
                f"{source} is a checkpoint of another run: its chain has other clusters. Nothing was loaded; resume "
                "with the chain that it was written with"
            )

    def resume(self, path: str | Path, name: str = "model") -> int:
        """As in every engine; the row dispersion is that of the loaded weights."""
        epoch = super().resume(path, name)
        self.dispersion = row_dispersion(self.model.sstudent.row_pairs(self.model.teacher))
        return epoch

    def train(self, *args: Any, **kwargs: Any) -> None:
        """Trains one epoch, then measures how far the teacher's rows are from their chain rows."""
        super().train(*args, **kwargs)
        self.dispersion = row_dispersion(self.model.sstudent.row_pairs(self.model.teacher))
        logger.info("epoch %d: row dispersion %.4f", self.epoch + 1, self.dispersion)
        if self.writer is not None:
            self.writer.add_scalar("Train/row_dispersion", self.dispersion, self.epoch)


def _check_numbers(distil_from: str, level_start: float, distil_temperature: float, **weights: float) -> None:
    """Raises `ConfigError` for what an engine's numbers, and what is learned from, cannot be."""
    for name, value in {**weights, "distil_temperature": distil_temperature, "level_start": level_start}.items():
        check_number(name, value)
    if distil_temperature == 0 or level_start > 1:
        raise ConfigError(
            f"distil_temperature is {distil_temperature}, level_start {level_start}; allowed: above 0, and 0 to 1"
        )
    if distil_from not in ("first", "now"):
        raise ConfigError(f"distil_from is {distil_from!r}; allowed: first, now")


register_engine("oskt", OSKTEngine)
