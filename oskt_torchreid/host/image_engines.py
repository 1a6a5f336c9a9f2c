"""torchreid's own image engines under their configuration names, softmax and triplet."""

from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from ..registry import register_engine
from .compat import device
from .engine import TransferEngine
from .interfaces import EngineData
from .losses import ReidLoss


class SoftmaxEngine(TransferEngine):
    """torchreid's ImageSoftmaxEngine, arguments and loss, with the guarantees of TransferEngine."""

    def __init__(
        self,
        datamanager: EngineData,
        model: nn.Module,
        optimizer: Optimizer | None = None,
        scheduler: LRScheduler | None = None,
        use_gpu: bool = True,
        label_smooth: bool = True,
        **options: Any,
    ) -> None:
        loss = ReidLoss(datamanager.num_train_pids, label_smooth=label_smooth, use_gpu=device(use_gpu).type == "cuda")
        super().__init__(datamanager, model, optimizer, scheduler, loss, use_gpu, **options)


class TripletEngine(TransferEngine):
    """torchreid's ImageTripletEngine, arguments and loss, with the guarantees of TransferEngine."""

    def __init__(
        self,
        datamanager: EngineData,
        model: nn.Module,
        optimizer: Optimizer | None = None,
        margin: float | None = 0.3,
        weight_t: float = 1.0,
        weight_x: float = 1.0,
        scheduler: LRScheduler | None = None,
        use_gpu: bool = True,
        label_smooth: bool = True,
        soft_margin: bool = False,
        normalize_triplet: bool = False,
        **options: Any,
    ) -> None:
        loss = ReidLoss(
            datamanager.num_train_pids,
            weight_x=weight_x,
            weight_t=weight_t,
            margin=margin,
            label_smooth=label_smooth,
            soft_margin=soft_margin,
            normalize_triplet=normalize_triplet,
            use_gpu=device(use_gpu).type == "cuda",
        )
        super().__init__(datamanager, model, optimizer, scheduler, loss, use_gpu, **options)


register_engine("softmax", SoftmaxEngine)
register_engine("triplet", TripletEngine)
