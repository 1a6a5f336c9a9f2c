"""Training that may be killed at any moment and goes on as if nothing had happened.

After every epoch, and between two batches when SIGTERM comes, a run writes one file with everything that its next step
depends on: weights, optimiser, schedule, what the losses have learnt, the states of all random number generators, and
the place within the epoch. On a CPU with as many threads as before the result is that of an uninterrupted run, bit for
bit.
"""

from __future__ import annotations

import inspect
import math
import time
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.tensorboard import SummaryWriter

from ..errors import CheckpointError, Terminated
from ..files import load_checkpoint, remove_leftovers, save_checkpoint
from ..files.weights import check_state_dict, state_dict_of
from .checkpoints import Position, check_optimizer_state, check_training, position_of, training_state
from .compat import device, quiet, torchreid
from .data import forget_patches
from .distributed import all_gather, broadcast, is_rank_zero, set_own_state, share_of, spread_random_numbers, world_size
from .interfaces import EngineData
from .losses import ReidLoss
from .progress import NoWriter, ProgressLoader
from .random_state import random_state
from .synchronised_norms import synchronised_norms
from .termination import on_termination

LAST_GOOD = "model.pth.tar-last"
_RUN = inspect.signature(torchreid.engine.Engine.run)
_TEST = inspect.signature(torchreid.engine.Engine.test)


class ResumableEngine(torchreid.engine.Engine):
    """torchreid's engine with whole checkpoints, and with runs that go on from them.

    Attributes:
        run_key: digest of the settings that decide a run's result. A checkpoint keeps it and goes on under no other;
            empty: not known, not compared.
        curve: evaluations of the run: epoch, and the first target's mAP and rank1.
        train_seconds: of all epochs so far, evaluation left out.
    """

    loss: ReidLoss
    # What torchreid's engine has, without types
    epoch: int
    model: nn.Module
    train_loader: ProgressLoader
    test_loader: Mapping[str, Mapping[str, Any]]
    writer: SummaryWriter | NoWriter | None
    _models: dict[str, nn.Module]
    _optims: dict[str, Optimizer | None]
    _scheds: dict[str, LRScheduler | None]

    def __init__(self, datamanager: EngineData, use_gpu: bool = True) -> None:
        super().__init__(datamanager, use_gpu)
        self.device = device(use_gpu)
        self.max_epoch = 0
        self.start_epoch = 0
        self.run_key = ""
        self.curve: list[dict[str, float]] = []
        self.train_seconds = 0.0
        self.train_loader = ProgressLoader(share_of(self.train_loader), self)
        self.sync_batch_norm = False
        self._run_folder: Path | None = None  # while a run trains
        self._kept_epoch = 0  # epochs behind the state that the run keeps; 0: none yet
        self._resumed: Position | None = None  # from `resume` to the run after it
        self._within: Position | None = None  # while the epoch lasts that a run goes on within
        self._evaluated = 0  # epochs behind the last evaluation of the run
        self._terminated = False
        self._batch_idx = 0

    # What a method adds

    def losses(self) -> list[ReidLoss]:
        """Losses that may learn something themselves."""
        return [self.loss]

    def method_state(self) -> dict[str, Any]:
        """What a method's next step depends on beside the registered models and the losses: tensors, plain values."""
        return {}

    def load_method_state(self, state: dict[str, Any], source: str) -> None:
        """Continues from what `method_state` gave; called before anything else is loaded.

        Raises:
            CheckpointError: the state is of another run; nothing is changed.
        """

    def check_run(self, settings: Mapping[str, Any]) -> None:
        """Raises a typed error, before a run begins, where its arguments cannot be used."""

    def networks(self) -> list[nn.Module]:
        """Everything that a batch passes through in training."""
        return list(self._models.values())

    # A run

    def run(self, save_dir: str = "log", *args: Any, **kwargs: Any) -> None:
        """Trains and evaluates; arguments as in torchreid.

        While it trains, the state after the last whole epoch is kept in `<save_dir>/<name>/model.pth.tar-last`, one
        file per registered model; the final checkpoint takes its place. SIGTERM is answered between two batches.

        Raises:
            Terminated: SIGTERM came; the state is kept.
        """
        settings = _RUN.bind(self, save_dir, *args, **kwargs)
        settings.apply_defaults()
        self.check_run(settings.arguments)
        position, self._resumed = self._resumed, None
        folder = self._run_folder = Path(save_dir)
        self._kept_epoch = position.epoch if position and _last_good(folder).is_file() else 0
        self.curve, self._evaluated = (list(position.curve), position.evaluated) if position else ([], 0)
        try:
            synchronised = synchronised_norms(self.networks() if self.sync_batch_norm else ())
            with quiet(), on_termination(self._note_termination), synchronised:
                if not settings.arguments["test_only"]:
                    self._begin(folder)
                if position is not None and position.epoch == settings.arguments["start_epoch"]:
                    self._go_on(position, settings.arguments)
                super().run(save_dir, *args, **kwargs)
            if self._kept_epoch and is_rank_zero():
                for name in self.get_model_names():
                    _last_good(folder, name).unlink(missing_ok=True)
            self.check_termination("at the end of training")
        finally:
            self._run_folder = self._within = None
            self._terminated = False
            self.train_loader.close()
            if self.writer is not None:
                self.writer.close()
                self.writer = None  # a later run writes where it is told to

    def _begin(self, folder: Path) -> None:
        """Makes ready the folder, which the first process alone writes to, and what all processes must agree on."""
        if is_rank_zero():
            for name in self.get_model_names():
                remove_leftovers(folder / name)
            self.writer = self.writer or SummaryWriter(log_dir=str(folder))
        else:
            self.writer = NoWriter()
        if world_size() > 1:
            self.load_method_state(broadcast(self.method_state), "what process 0 trains")
            spread_random_numbers()

    def _go_on(self, position: Position, settings: Mapping[str, Any]) -> None:
        """Puts the generators where they were, and makes up for an evaluation that was due when the run stopped."""
        self.max_epoch, epoch = settings["max_epoch"], position.epoch
        if position.batches:
            self._within = position
            return
        set_own_state(position.random, self.device)
        every = settings["eval_freq"]
        due = every > 0 and epoch % every == 0 and settings["start_eval"] <= epoch != self.max_epoch
        if due and position.evaluated != epoch:
            rank1 = self.test(**{name: settings[name] for name in _TEST.parameters if name != "self"})
            self.save_model(self.epoch, rank1, settings["save_dir"])

    def train(self, *args: Any, **kwargs: Any) -> None:
        """Trains one epoch, or what is left of it, and keeps the state after it, if this is part of a run."""
        forget_patches(self.train_loader)
        if self._within is not None:
            set_own_state(self._within.epoch_random, self.device)
        self._epoch_random = random_state(self.device)
        self._epoch_start = time.perf_counter()
        super().train(*args, **kwargs)
        self._within = None
        self._stop_clock()
        if self._keep(self.epoch + 1):
            self._kept_epoch = self.epoch + 1

    def _stop_clock(self) -> None:
        self.train_seconds += time.perf_counter() - self._epoch_start

    def _keep(self, epochs: int, batches: int = 0) -> bool:
        """Writes the state of a run after so many epochs and batches, unless it is not finite; says if it was."""
        folder = self._run_folder
        if folder is None or not self._is_finite():
            return False
        for name in self.get_model_names():
            save_checkpoint(_last_good(folder, name), self._state(name, epochs - 1, math.nan, batches))
        return True

    def _is_finite(self) -> bool:
        models = self._models.values()
        return all(torch.isfinite(parameter).all() for model in models for parameter in model.parameters())

    # Batches of an epoch

    @property
    def batch_idx(self) -> int:
        """Number of the batch within its epoch, also of an epoch that was interrupted: torchreid counts from 0."""
        return self._batch_idx

    @batch_idx.setter
    def batch_idx(self, number: int) -> None:
        self._batch_idx = number + (self._within.batches if self._within else 0)

    def skip_done(self, batches: Iterator[Any]) -> int:
        """Draws the batches once more that an interrupted epoch has seen, and leaves the generators as they were then.

        Only so are workers, too, where they were.

        Returns:
            How many they are.

        Raises:
            CheckpointError: there are fewer.
        """
        if self._within is None:
            return 0
        expected = self._within.batches
        drawn = sum(1 for _ in islice(batches, expected))
        if drawn < expected:
            raise CheckpointError(
                f"the checkpoint was written after {expected} batches of an epoch, and the data give {drawn}: it is of "
                "another run; train on the data that it was written with"
            )
        set_own_state(self._within.random, self.device)
        return expected

    def batch_done(self) -> None:
        """Between two batches: where the run was told to stop, it keeps its state and stops."""
        if self._terminated:
            self._stop_clock()
            kept = self._keep(self.epoch, self.batch_idx + 1)
            where = f"epoch {self.epoch + 1}, batch {self.batch_idx + 1}"
            raise Terminated(f"terminated at {where}" + (f"; the state is in '{self._run_folder}'" if kept else ""))

    def check_termination(self, when: str = "while evaluating") -> None:
        """Where the state is kept already: raises Terminated if the run was told to stop."""
        if self._terminated:
            raise Terminated(f"terminated {when}")

    def _note_termination(self) -> None:
        self._terminated = True

    # Files

    def save_model(self, epoch: int, rank1: float, save_dir: str, is_best: bool = False) -> None:
        """Writes `<save_dir>/<name>/model.pth.tar-<epoch + 1>` for every model, whole files of plain values only."""
        self._evaluated = epoch + 1
        for name in self.get_model_names():
            state = self._state(name, epoch, rank1)
            folder = Path(save_dir) / name
            save_checkpoint(folder / f"model.pth.tar-{epoch + 1}", state)
            if is_best:
                save_checkpoint(folder / "model-best.pth.tar", state)
        if self._run_folder is not None and epoch + 1 < self.max_epoch:
            self._keep(epoch + 1)  # with this evaluation behind it

    def _state(self, name: str, epoch: int, rank1: float, batches: int = 0) -> dict[str, Any]:
        optimizer, scheduler = self._optims[name], self._scheds[name]
        state = {"state_dict": self._models[name].state_dict(), "epoch": epoch + 1, "rank1": float(rank1)}
        state["train_seconds"] = self.train_seconds
        if optimizer is not None:
            state["optimizer"] = optimizer.state_dict()
        if scheduler is not None:
            state["scheduler"] = scheduler.state_dict()
        random = all_gather(random_state(self.device))
        of_epoch = all_gather(self._epoch_random) if batches else random
        position = Position(epoch + 1, batches, random, of_epoch, self._evaluated, tuple(self.curve))
        state["training"] = training_state(position, self.run_key, self.losses(), self.method_state())
        return state

    def resume_latest(self, folder: str | Path, max_epoch: int) -> int | None:
        """`resume` from where the run in a folder stopped.

        Returns:
            Epoch to start from; None if the run left nothing to go on from.
        """
        return next((self.resume(path) for path in _left_by(folder, max_epoch) if path.is_file()), None)

    def discard(self, folder: str | Path, max_epoch: int) -> None:
        """Removes what `resume_latest` would go on from, where a run with other settings begins."""
        for path in _left_by(folder, max_epoch) if is_rank_zero() else ():
            path.unlink(missing_ok=True)

    @property
    def place_within_epoch(self) -> str:
        """What `resume` found beyond whole epochs, in words that follow those of the epochs."""
        batches = self._resumed.batches if self._resumed else 0
        return f" and {batches} batches of the next" if batches else ""

    def resume(self, path: str | Path, name: str = "model") -> int:
        """Continues from a checkpoint of this engine or of torchreid's, the time that training took so far included.

        A run that follows with the returned `start_epoch` goes on bit for bit; from torchreid's own checkpoints it
        begins the epoch with the random numbers of now.

        Args:
            path: checkpoint with weights and, where they were saved, optimiser and scheduler.
            name: which registered model it belongs to.

        Returns:
            Epoch to start from.

        Raises:
            CheckpointError: unreadable, or of another model or run; nothing is loaded then.
        """
        content = load_checkpoint(path)
        model, optimizer, scheduler = self._models[name], self._optims[name], self._scheds[name]
        state = state_dict_of(content, path)
        check_state_dict(state, model.state_dict(), source=f"'{path}'", target=type(model).__name__)
        if optimizer is not None and "optimizer" in content:
            check_optimizer_state(content["optimizer"], optimizer, f"'{path}'")
        position = position_of(content, f"'{path}'")
        training = content.get("training", {})
        if position is not None:
            check_training(training, self.run_key, self.losses(), f"'{path}'")
        self.load_method_state(training.get("method", {}), f"'{path}'")
        model.load_state_dict(state)
        for key, part in (("optimizer", optimizer), ("scheduler", scheduler)):
            if part is not None and key in content:
                part.load_state_dict(content[key])
        for loss, learned in zip(self.losses(), training.get("losses", ()), strict=False):
            loss.load_learned(learned, self.device)
        self.train_seconds = float(content.get("train_seconds", 0))
        epoch = int(content.get("epoch", 0))
        self.epoch = max(0, epoch - 1)  # what a run that has no epoch left takes for its last one
        self._resumed = position
        return epoch


def _left_by(folder: str | Path, max_epoch: int) -> tuple[Path, Path]:
    """What a run leaves while it trains, and when it has."""
    folder = Path(folder)
    return _last_good(folder), folder / "model" / f"model.pth.tar-{max_epoch}"


def _last_good(folder: Path, name: str = "model") -> Path:
    """The file of the last state of a model that a run has kept."""
    return folder / name / LAST_GOOD
