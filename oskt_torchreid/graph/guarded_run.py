"""Forward passes of copies of a network: without randomness, and without the original's memory."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ..errors import first_line
from ..networks import watched
from .randomness import Undisturbed, own_random_state
from .tracer import nested_tensors

Leave = Callable[[str, list[Tensor]], None]
"""Called after every module, with its name and its output tensors."""


class RunError(Exception):
    """A forward pass that failed.

    Attributes:
        module: name of the module whose code failed; empty for the network itself.
    """

    def __init__(self, module: str, reason: str) -> None:
        super().__init__(reason)
        self.module = module


class SharedMemoryError(RunError):
    """A forward pass that used tensors of another network."""


def memory_of(model: nn.Module) -> set[int]:
    """Where the numbers of a network's parameters and buffers are."""
    tensors = [*model.parameters(), *model.buffers()]
    return {tensor.untyped_storage().data_ptr() for tensor in tensors if tensor.numel()}


class _Guard(TorchDispatchMode):
    """Raises `SharedMemoryError` where an operator reads memory of others; knows which module is running."""

    def __init__(self, others: set[int]) -> None:
        super().__init__()
        self._others = others
        self.running: list[str] = []

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # avoids the import of torch's compiler

    @property
    def module(self) -> str:
        """Name of the module whose code is running."""
        return self.running[-1] if self.running else ""

    def __torch_dispatch__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        for tensor in nested_tensors([args, kwargs]):
            if tensor.numel() and tensor.untyped_storage().data_ptr() in self._others:
                raise SharedMemoryError(self.module, f"a weight of shape {tuple(tensor.shape)}")
        return function(*args, **kwargs)


def guarded_run(
    model: nn.Module, images: Tensor, training: bool, others: set[int], leave: Leave | None = None
) -> list[Tensor]:
    """The outputs of a network whose every module is in one mode; its modes and its norms' statistics change.

    Args:
        model: a copy of a network.
        images: `[batch, channels, height, width]`.
        training: the mode.
        others: memory that it may not read, see `memory_of`.
        leave: watches modules, the network itself included.

    Raises:
        RunError: its code failed, or (`SharedMemoryError`) read memory of others.
    """
    for module in model.modules():
        # Norms that are synchronised between processes need a GPU in training.
        module.training = training and not isinstance(module, nn.SyncBatchNorm)
    guard, default = _Guard(others), torch.get_default_dtype()
    torch.set_default_dtype(images.dtype)  # of tensors that the network's code makes
    try:
        with torch.inference_mode(), own_random_state(model), Undisturbed(), guard, _followed(model, guard, leave):
            return list(nested_tensors(model(images)))
    except RunError:
        raise
    except Exception as error:  # a network's own code may raise anything
        raise RunError(guard.module, f"{type(error).__name__}: {first_line(error)}") from error
    finally:
        torch.set_default_dtype(default)


@contextlib.contextmanager
def _followed(model: nn.Module, guard: _Guard, leave: Leave | None) -> Iterator[None]:
    def entered(name: str, *_: object) -> None:
        guard.running.append(name)

    def left(name: str, module: nn.Module, args: tuple, output: Any) -> None:
        guard.running.pop()
        if leave is not None:
            leave(name, list(nested_tensors(output)))

    with watched(model.named_modules(), entered, left):
        yield
