"""Batch norms whose statistics are those of the whole batch, whatever number of processes share it.

torch's SyncBatchNorm is for GPUs only, and uses the module's own parameters, while the S-student's are passed at every
call. This is the same computation in plain operations, on any device.
"""

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

import torch
import torch.distributed as processes
from torch import Tensor, nn

from .distributed import world_size


class _Mean(torch.autograd.Function):
    """Mean of a tensor over the processes; its gradient is averaged too."""

    @staticmethod
    def forward(ctx: Any, own: Tensor) -> Tensor:
        return _mean(own)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _mean(gradient)


def _mean(own: Tensor) -> Tensor:
    total = own.detach().clone(memory_format=torch.contiguous_format)
    processes.all_reduce(total)
    return total / world_size()


class _Synchronised(nn.modules.batchnorm._BatchNorm):
    """A batch norm in training; the equal shares of all processes have equal weight."""

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        self._check_input_dim(input)
        axes, shape = [0, *range(2, input.dim())], [1, -1] + [1] * (input.dim() - 2)
        images = input.float()
        mean = _Mean.apply(images.mean(axes))
        centred = images - mean.view(shape)
        variance = _Mean.apply(centred.pow(2).mean(axes))
        if self.track_running_stats:
            self._follow(mean.detach(), variance.detach(), input.numel() // input.shape[1] * world_size())
        outputs = centred * (variance + self.eps).rsqrt().view(shape)
        if self.affine:
            outputs = outputs * self.weight.view(shape) + self.bias.view(shape)
        return outputs.to(input.dtype)

    @torch.no_grad()
    def _follow(self, mean: Tensor, variance: Tensor, count: int) -> None:
        """Updates the running statistics, if there are any, as torch does, with the unbiased variance."""
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked += 1
        share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
        self.running_var.lerp_((variance * count / max(1, count - 1)).to(self.running_var.dtype), share)


class _Synchronised1d(_Synchronised, nn.BatchNorm1d):
    pass


class _Synchronised2d(_Synchronised, nn.BatchNorm2d):
    pass


class _Synchronised3d(_Synchronised, nn.BatchNorm3d):
    pass


_TWINS: dict[type[nn.Module], type[_Synchronised]] = {
    nn.BatchNorm1d: _Synchronised1d,
    nn.BatchNorm2d: _Synchronised2d,
    nn.BatchNorm3d: _Synchronised3d,
}


@contextlib.contextmanager
def synchronised_norms(models: Iterable[nn.Module]) -> Iterator[None]:
    """Inside the block, batch norms of the models in training use the statistics of all processes together.

    The modules stay the same objects and get their classes back; with one process nothing changes.
    """
    changed = []
    if world_size() > 1:
        changed = [module for model in models for module in model.modules() if type(module) in _TWINS]
    classes = [type(module) for module in changed]
    for module in changed:
        module.__class__ = _TWINS[type(module)]
    try:
        yield
    finally:
        for module, own in zip(changed, classes, strict=True):
            module.__class__ = own
