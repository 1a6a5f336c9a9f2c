"""torchreid's engine made safe: one device, frozen modules that stay frozen, finite losses, progress with ETA.

torchreid's loop is kept, and `resumable` lets a run resume after an interruption. An engine of this package overrides
`compute_losses`, or `forward_backward` where one backward pass is not enough.
"""

import math
from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _NormBase
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils._pytree import tree_map

from ..batches import check_items
from ..errors import TrainingError
from ..networks import parse_outputs
from .compat import torchreid
from .distributed import agree, average, whole_batch, world_size
from .evaluating import EvaluatingEngine
from .interfaces import EngineData
from .labels import in_order, unordered_labels
from .losses import ReidLoss
from .models import unwrapped
from .optimization import check_layers
from .run_checks import (
    check_arguments,
    check_batch,
    check_loader,
    check_number,
    check_optimizer,
    check_parts,
    make_folder,
    require_optimizer,
    too_few_images,
)
from .saving import LAST_GOOD

__all__ = ["TransferEngine"]


class TransferEngine(EvaluatingEngine):
    """Trains one model with a re-identification loss.

    Args:
        datamanager: torchreid data manager.
        model: network; it is moved to the device. Parameters that require no gradient now stay frozen.
        optimizer: needed for training only.
        scheduler: None keeps the learning rate.
        loss: None: label-smoothed cross-entropy over the data manager's identities.
        use_gpu: run on the GPU if there is one.
        schedule_per_iteration: step the scheduler after every batch instead of every epoch.
        channels_last: keep images and convolution weights with channels innermost in memory, which is faster where
            convolutions are depthwise or pointwise; results differ in the last digits only.
        half_resolution_epochs: number of first epochs that see images average-pooled to half their height and width.
        mixed_precision: on a GPU, train with bfloat16 where torch's autocast allows it (no loss scaling is needed);
            losses and evaluation stay in 32 bits.
        sync_batch_norm: where several processes share a batch, batch norms see the whole of it in training.
    """

    def __init__(
        self,
        datamanager: EngineData,
        model: nn.Module,
        optimizer: Optimizer | None = None,
        scheduler: LRScheduler | None = None,
        loss: ReidLoss | None = None,
        use_gpu: bool = True,
        schedule_per_iteration: bool = False,
        half_resolution_epochs: int = 0,
        channels_last: bool = False,
        mixed_precision: bool = False,
        sync_batch_norm: bool = False,
    ) -> None:
        check_parts(datamanager, model, optimizer, scheduler, loss)
        check_number("half_resolution_epochs", half_resolution_epochs)
        super().__init__(datamanager, use_gpu)
        model = unwrapped(model)
        self._labels = unordered_labels(self.train_loader, datamanager.num_train_pids)
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.mixed_precision = mixed_precision and self.device.type == "cuda"
        self.sync_batch_norm = sync_batch_norm
        self.schedule_per_iteration = schedule_per_iteration
        self.half_resolution_epochs = half_resolution_epochs
        self.last_summary: dict[str, float] = {}
        self._frozen_parameters: list[nn.Parameter] = []
        self._frozen_modules: list[nn.Module] = []
        self.model = model
        self.optimizer = optimizer
        self.scheduler = scheduler
        self.loss = (loss or ReidLoss(datamanager.num_train_pids, use_gpu=self.use_gpu)).to(self.device)
        self.register_model("model", model, optimizer, scheduler)

    # Models

    def register_model(
        self,
        name: str = "model",
        model: nn.Module | None = None,
        optim: Optimizer | None = None,
        sched: LRScheduler | None = None,
    ) -> None:
        """Adds a model that is trained, switched and saved with the others; it is moved to the device.

        Where several processes train, all take the first one's weights.
        """
        if model is not None:
            model.to(self.device).to(memory_format=self.memory_format)
            agree(model)
            self._frozen_parameters += [p for p in model.parameters() if not p.requires_grad]
        super().register_model(name, model, optim, sched)

    def freeze(self, *modules: nn.Module) -> None:
        """Keeps modules in evaluation mode and without gradients, whatever the loop switches."""
        self._frozen_modules += modules
        self._frozen_parameters += [parameter for module in modules for parameter in module.parameters()]
        self._keep_frozen()

    def _keep_frozen(self) -> None:
        for parameter in self._frozen_parameters:
            parameter.requires_grad_(False)
        for module in self._frozen_modules:
            module.eval()

    def set_model_mode(self, mode: str = "train", names: Any = None) -> None:
        """Switches models to 'train', 'eval' or 'test'; frozen modules stay in evaluation mode."""
        super().set_model_mode(mode, names)
        self._keep_frozen()

    def two_stepped_transfer_learning(
        self, epoch: int, fixbase_epoch: int, open_layers: Any, model: nn.Module | None = None
    ) -> None:
        """Opens layers for this epoch as torchreid does, but keeps frozen parameters frozen: torchreid unfreezes all.

        Parameters outside all layers, such as a transformer's class token, are frozen too; torchreid trains them.
        """
        only_some = epoch + 1 <= fixbase_epoch and open_layers is not None
        if model is None:
            model = self.layered_model if only_some else self.model
        super().two_stepped_transfer_learning(epoch, fixbase_epoch, open_layers, model)
        for parameter in model.parameters(recurse=False) if only_some else ():
            parameter.requires_grad_(False)
        self._keep_frozen()

    @property
    def layered_model(self) -> nn.Module:
        """The network whose layers a user names."""
        return self.model

    def check_run(self, settings: Mapping[str, Any]) -> None:
        """Checks, before a run begins, arguments that would fail later or have no effect; then makes its folder.

        Args:
            settings: arguments of `run` by name.

        Raises:
            ConfigError: an argument out of range, names of layers that the network does not have, or a folder that
                cannot be written.
            TrainingError: no optimiser of the network, no batch, or batches that its norms cannot be trained on.
        """
        check_arguments(settings)
        if not (settings["test_only"] or settings["max_epoch"] == settings["start_epoch"]):
            self._check_training(settings)
        if not settings["test_only"] or settings["visrank"]:
            make_folder("save_dir of a run", settings["save_dir"])

    def _check_training(self, settings: Mapping[str, Any]) -> None:
        if settings["fixbase_epoch"] > 0:
            check_layers(self.layered_model, settings["open_layers"], "open_layers")
        check_optimizer(self.optimizer, self.model)
        check_loader(self.train_loader, type(self).__name__)
        images = (getattr(self.train_loader, "batch_size", None) or 0) * self.images_of_item
        if images == 1 and not self._frozen_modules:
            size = (3, self.datamanager.height, self.datamanager.width)
            check_batch(self.layered_model, size, images, self.device)

    @property
    def images_of_item(self) -> int:
        """Number of images that the network sees per item of a batch."""
        return 1

    # Training

    def forward_backward(self, data: dict[str, Any]) -> dict[str, float]:
        """One training step.

        Returns:
            Terms for the log.

        Raises:
            TrainingError: the loss is not finite; the weights are those from before the step.
        """
        images, pids = self.prepare(data)
        with too_few_images(len(pids)):
            loss, summary = self.compute_losses(images, pids)
        self.step(loss, summary)
        return summary

    def prepare(self, data: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Images [batch, 3, height, width] and labels [batch] on the device, at this epoch's resolution."""
        check_items(data, self.datamanager.num_train_pids if self._labels is None else None)
        images, pids = self.parse_data_for_train(data)
        images = images.to(self.device, non_blocking=True)
        if self.epoch < self.half_resolution_epochs:
            images = functional.avg_pool2d(images, 2)
        images = images.contiguous(memory_format=self.memory_format)
        return images, in_order(pids, self._labels).to(self.device, non_blocking=True)

    def compute_losses(self, images: Tensor, pids: Tensor) -> tuple[Tensor, dict[str, float]]:
        """The loss of a batch and its terms for the log; methods override it.

        If several processes share a batch, images and labels are this process's, and the loss is that of the whole.
        """
        outputs = parse_outputs(self.outputs_of(images), training=True, loss=getattr(self.model, "loss", ""))
        return self.loss(*whole_batch((outputs, pids)))

    def outputs_of(self, images: Tensor, model: nn.Module | None = None) -> Any:
        """The output of the model (or another one) for images in training, in 32 bits whatever precision it used."""
        model = self.model if model is None else model
        if not self.mixed_precision:
            return model(images)
        with torch.autocast(self.device.type, torch.bfloat16):
            outputs = model(images)
        return tree_map(lambda tensor: tensor.float(), outputs)

    def step(self, loss: Tensor, summary: dict[str, float]) -> None:
        """Checks the loss, then one step of the optimiser and of a per-iteration schedule."""
        self.check_finite(loss, summary)
        if not loss.requires_grad:
            raise TrainingError(
                f"the loss ({', '.join(summary)}) depends on nothing that is trained in epoch {self.epoch + 1}: open "
                "more layers (open_layers, train.open_layers), or give their outputs a weight in the loss"
            )
        optimizer = require_optimizer(self.optimizer)
        optimizer.zero_grad()
        loss.backward()
        if world_size() > 1:
            self._terminated = average(self._shared(optimizer), self._terminated, self.device)
        optimizer.step()
        self.loss.step()
        if self.schedule_per_iteration and self.scheduler is not None:
            self.scheduler.step()
        self.last_summary = summary

    def _shared(self, optimizer: Optimizer) -> Iterator[Tensor]:
        """Tensors that processes average after a backward pass: gradients and running statistics of their shares."""
        groups = [group["params"] for group in optimizer.param_groups]
        for parameter in chain(*groups, *(loss.parameters() for loss in self.losses())):
            if parameter.grad is not None:
                yield parameter.grad
        for module in chain(*(model.modules() for model in self._models.values())):
            if isinstance(module, _NormBase) and module.training:
                yield from (kept for kept in (module.running_mean, module.running_var) if kept is not None)

    def check_finite(self, loss: Tensor, summary: dict[str, float]) -> None:
        """Raises TrainingError, with the place and the terms, for a loss that is not finite."""
        if math.isfinite(loss.item()):
            return
        terms = ", ".join(f"{name}={value:.4g}" for name, value in summary.items())
        kept = f"the state after epoch {self._kept_epoch} is in '{self._run_folder}/*/{LAST_GOOD}'"
        raise TrainingError(
            f"loss is {loss.item()} at epoch {self.epoch + 1} of {self.max_epoch}, iteration {self.batch_idx + 1} of "
            f"{len(self.train_loader)} ({terms}); {kept if self._kept_epoch else 'no epoch was completed yet'}; lower "
            f"the learning rate (now {self.get_current_lr():.3g}) or check the images"
        )

    @property
    def progress(self) -> float:
        """Share of the run's iterations that are done, 0 at the first and 1 at the last."""
        done = self.epoch * len(self.train_loader) + self.batch_idx
        return min(1.0, done / max(1, self.max_epoch * len(self.train_loader) - 1))

    def update_lr(self, names: Any = None) -> None:
        """Steps the schedules after an epoch, unless they step after every batch."""
        if not self.schedule_per_iteration:
            super().update_lr(names)

    def get_current_lr(self, names: Any = None) -> float:
        """Learning rate of the first model that has an optimiser."""
        own = (self._optims[name] for name in self.get_model_names(names))
        optimizers = [optimizer for optimizer in own if optimizer is not None]
        return float(optimizers[0].param_groups[-1]["lr"]) if optimizers else 0.0


def publish(name: str, thing: Any) -> None:
    """Makes a class or function an attribute of `torchreid.engine`; publishing it again changes nothing."""
    setattr(torchreid.engine, name, thing)
