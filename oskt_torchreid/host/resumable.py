"""Training that may be killed at any moment and resumes with the same result.

After every epoch, and between two batches after a SIGTERM, a run writes its whole state (`saving.py`). On a CPU with as
many threads as before the result is that of an uninterrupted run, bit for bit.
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
from torch.utils.tensorboard import SummaryWriter

from ..errors import CheckpointError, Terminated
from ..files import remove_leftovers, save_checkpoint
from .checkpoints import Position
from .compat import quiet, torchreid
from .data import forget_patches
from .distributed import broadcast, is_rank_zero, set_own_state, share_of, spread_random_numbers, world_size
from .interfaces import EngineData
from .progress import NoWriter, ProgressLoader
from .random_state import random_state
from .saving import SavingEngine, last_good
from .showing import shown
from .synchronised_norms import synchronised_norms
from .termination import on_termination

_RUN = inspect.signature(torchreid.engine.Engine.run)
_TEST = inspect.signature(torchreid.engine.Engine.test)


class ResumableEngine(SavingEngine):
    """torchreid's engine with runs that resume where they were interrupted.

    Attributes:
        quiet: a run shows no messages where nobody has set up logging; bars of progress stay.
    """

    quiet = False

    def __init__(self, datamanager: EngineData, use_gpu: bool = True) -> None:
        super().__init__(datamanager, use_gpu)
        self.max_epoch = 0
        self.start_epoch = 0
        self.train_loader = ProgressLoader(share_of(self.train_loader), self)
        self.sync_batch_norm = False
        self._run_folder: Path | None = None  # set while a run trains
        self._kept_epoch = 0  # completed epochs in the stored state; 0: none yet
        self._within: Position | None = None  # set during the epoch in which a run resumes
        self._terminated = False
        self._batch_idx = 0

    def check_run(self, settings: Mapping[str, Any]) -> None:
        """Raises a typed error, before a run begins, if its arguments cannot be used."""

    def sum_up(self) -> None:
        """Says at the end of a run what came of it."""

    def networks(self) -> list[nn.Module]:
        """Every module that a batch passes through in training."""
        return list(self._models.values())

    # A run

    def run(self, save_dir: str = "log", *args: Any, **kwargs: Any) -> None:
        """Trains and evaluates; arguments as in torchreid.

        While it trains, the state after the last whole epoch is kept in `<save_dir>/<name>/model.pth.tar-last`, one
        file per registered model; the final checkpoint replaces it. SIGTERM is handled between two batches.

        Raises:
            Terminated: SIGTERM was received; the state is stored.
        """
        settings = _RUN.bind(self, save_dir, *args, **kwargs)
        settings.apply_defaults()
        self.check_run(settings.arguments)
        position, self._resumed = self._resumed, None
        folder = self._run_folder = Path(save_dir)
        self._kept_epoch = position.epoch if position and last_good(folder).is_file() else 0
        self.curve, self._evaluated = (list(position.curve), position.evaluated) if position else ([], 0)
        try:
            synchronised = synchronised_norms(self.networks() if self.sync_batch_norm else ())
            with shown(not self.quiet), quiet(), on_termination(self._note_termination), synchronised:
                if not settings.arguments["test_only"]:
                    self._begin(folder)
                if position is not None and position.epoch == settings.arguments["start_epoch"]:
                    self._go_on(position, settings.arguments)
                super().run(save_dir, *args, **kwargs)
                self.sum_up()
            if self._kept_epoch and is_rank_zero():
                for name in self.get_model_names():
                    last_good(folder, name).unlink(missing_ok=True)
            self.check_termination("at the end of training")
        finally:
            self._run_folder = self._within = None
            self._terminated = False
            self.train_loader.close()
            if self.writer is not None:
                self.writer.close()
                self.writer = None  # a later run writes to its own folder

    def _begin(self, folder: Path) -> None:
        """Prepares the folder, which only the first process writes to, and what all processes must agree on."""
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
        """Restores the generators, and runs an evaluation that was due when the run stopped."""
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
        """Trains one epoch, or the rest of it, and stores the state after it, if this is part of a run."""
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
        """Writes the state of a run after so many epochs and batches, unless it is not finite; whether it did."""
        folder = self._run_folder
        if folder is None or not self._is_finite():
            return False
        for name in self.get_model_names():
            save_checkpoint(last_good(folder, name), self._state(name, epochs - 1, math.nan, batches))
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
        """Draws the batches again that an interrupted epoch has seen, and restores the generators' states.

        This is the only way to restore the workers as well.

        Returns:
            Their number.

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
        """Between two batches: if the run was told to stop, it stores its state and stops."""
        if self._terminated:
            self._stop_clock()
            kept = self._keep(self.epoch, self.batch_idx + 1)
            where = f"epoch {self.epoch + 1}, batch {self.batch_idx + 1}"
            raise Terminated(f"terminated at {where}" + (f"; the state is in '{self._run_folder}'" if kept else ""))

    def check_termination(self, when: str = "while evaluating") -> None:
        """Called when the state is stored: raises Terminated if the run was told to stop."""
        if self._terminated:
            raise Terminated(f"terminated {when}")

    def _note_termination(self) -> None:
        self._terminated = True

    def save_model(self, epoch: int, rank1: float, save_dir: str, is_best: bool = False) -> None:
        """Writes the files of `SavingEngine.save_model`; an unfinished run keeps them as its state too."""
        super().save_model(epoch, rank1, save_dir, is_best)
        if self._run_folder is not None and epoch + 1 < self.max_epoch:
            self._keep(epoch + 1)  # after this evaluation
