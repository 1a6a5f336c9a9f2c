"""Complete checkpoints of an engine: everything that the next step of a run depends on, written and read.

One file has weights, optimiser, schedule, parameters of the losses, the states of all random number generators, and the
position within the epoch.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.tensorboard import SummaryWriter

from ..files import load_checkpoint, save_checkpoint
from ..files.weights import check_state_dict, state_dict_of
from .checkpoints import Position, check_optimizer_state, check_training, position_of, training_state
from .compat import device, torchreid
from .distributed import all_gather, is_rank_zero
from .interfaces import EngineData
from .losses import ReidLoss
from .progress import NoWriter, ProgressLoader
from .random_state import random_state

LAST_GOOD = "model.pth.tar-last"


class SavingEngine(torchreid.engine.Engine):
    """torchreid's engine with complete checkpoints.

    Attributes:
        run_key: digest of the settings that decide a run's result. A checkpoint keeps it, and no other run resumes from
            it; empty: unknown, not compared.
        curve: evaluations of the run: epoch, and the first target's mAP and rank1.
        train_seconds: of all epochs so far, evaluation left out.
    """

    loss: ReidLoss
    # Attributes of torchreid's engine, which has no types
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
        self.run_key = ""
        self.curve: list[dict[str, float]] = []
        self.train_seconds = 0.0
        self._resumed: Position | None = None  # from `resume` to the run after it
        self._evaluated = 0  # completed epochs at the last evaluation of the run

    # ---- what a method adds ------------------------------------------------------------------------------------------

    def losses(self) -> list[ReidLoss]:
        """Losses that may have trained parameters (centers)."""
        return [self.loss]

    def method_state(self) -> dict[str, Any]:
        """State of a method besides the registered models and the losses: tensors, plain values."""
        return {}

    def load_method_state(self, state: dict[str, Any], source: str) -> None:
        """Continues from a result of `method_state`; called before anything else is loaded.

        Raises:
            CheckpointError: the state is of another run; nothing is changed.
        """

    # ---- files -------------------------------------------------------------------------------------------------------

    def save_model(self, epoch: int, rank1: float, save_dir: str, is_best: bool = False) -> None:
        """Writes `<save_dir>/<name>/model.pth.tar-<epoch + 1>` for every model, whole files of plain values only."""
        self._evaluated = epoch + 1
        for name in self.get_model_names():
            state = self._state(name, epoch, rank1)
            folder = Path(save_dir) / name
            save_checkpoint(folder / f"model.pth.tar-{epoch + 1}", state)
            if is_best:
                save_checkpoint(folder / "model-best.pth.tar", state)

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
            Epoch to start from; None if there is nothing to resume from.
        """
        return next((self.resume(path) for path in _left_by(folder, max_epoch) if path.is_file()), None)

    def discard(self, folder: str | Path, max_epoch: int) -> None:
        """Removes what `resume_latest` would resume from, when a run with other settings begins."""
        for path in _left_by(folder, max_epoch) if is_rank_zero() else ():
            path.unlink(missing_ok=True)

    @property
    def place_within_epoch(self) -> str:
        """The position that `resume` found within an epoch, as text that follows the number of epochs."""
        batches = self._resumed.batches if self._resumed else 0
        return f" and {batches} batches of the next" if batches else ""

    def resume(self, path: str | Path, name: str = "model") -> int:
        """Continues from a checkpoint of this engine or of torchreid's, including the training time so far.

        A run with the returned `start_epoch` continues bit for bit; from torchreid's own checkpoints it starts the
        epoch with the current random state.

        Args:
            path: checkpoint with weights and, if they were saved, optimiser and scheduler.
            name: which registered model it belongs to.

        Returns:
            Epoch to start from.

        Raises:
            CheckpointError: unreadable, or of another model or run; nothing is loaded.
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
        self.epoch = max(0, epoch - 1)  # the last epoch of a run that has none left
        self._resumed = position
        return epoch


def _left_by(folder: str | Path, max_epoch: int) -> tuple[Path, Path]:
    """The names of the files of a running and of a finished run."""
    folder = Path(folder)
    return last_good(folder), folder / "model" / f"model.pth.tar-{max_epoch}"


def last_good(folder: Path, name: str = "model") -> Path:
    """The file of the last stored state of a model of a run."""
    return folder / name / LAST_GOOD
