"""One run in several processes, started by `torchrun`: each has its share of every batch, all have the same result.

The processes gather the outputs of their shares (`whole_batch`), so that every loss, including hard triplets and
distances between all pairs, is that of the whole batch, and its terms need no reduction. After the backward pass one
collective averages all gradients (`average`). torch's DistributedDataParallel wraps a module and what its forward pass
uses; here a step also trains tensors outside the module (chain rows in the refining loss, centers of a loss), and the
S-student is a function of another network's parameters. One explicit average works for every engine, keeps the names in
checkpoints, and costs little for networks of this size.
"""

import contextlib
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from typing import Any, Protocol, TypeVar

import torch
import torch.distributed as processes
from torch import Tensor, nn
from torch.utils._pytree import tree_map
from torch.utils.data import DataLoader, Sampler

from ..errors import ConfigError
from .compat import seed_everything
from .random_state import State, random_state, set_random_state

logger = logging.getLogger(__name__)

T = TypeVar("T")
_CPU = torch.device("cpu")


def world_size() -> int:
    """Number of processes that share the run; 1 for a single one."""
    return processes.get_world_size() if processes.is_available() and processes.is_initialized() else 1


def process_rank() -> int:
    """Number of this process, from 0."""
    return processes.get_rank() if world_size() > 1 else 0


def is_rank_zero() -> bool:
    """Whether this is the process that writes files and shows progress."""
    return process_rank() == 0


@contextlib.contextmanager
def joined_processes(use_gpu: bool) -> Iterator[None]:
    """Inside the block, the processes that `torchrun` started work together; a single process stays single.

    Args:
        use_gpu: each takes the GPU of its local number, if there is one; else they communicate on the CPU (gloo).

    Raises:
        ConfigError: more processes on this machine than GPUs.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) < 2 or world_size() > 1:
        yield
        return
    gpu = use_gpu and torch.cuda.is_available()
    if gpu:
        local = int(os.environ.get("LOCAL_RANK", 0))
        if local >= torch.cuda.device_count():
            raise ConfigError(
                f"process {local} of this machine has no own GPU, there are {torch.cuda.device_count()}; start "
                "torchrun with --nproc_per_node of at most that, or train on the CPU (use_gpu=False)"
            )
        torch.cuda.set_device(local)
    processes.init_process_group("nccl" if gpu else "gloo")
    try:
        yield
    finally:
        processes.destroy_process_group()


def broadcast(make: Callable[[], T]) -> T:
    """The result of `make` in the first process, returned in all; the others wait for it and do not call it."""
    if world_size() == 1:
        return make()
    content: list[Any] = [make() if is_rank_zero() else None]
    processes.broadcast_object_list(content, src=0)
    return content[0]


@contextlib.contextmanager
def rank_zero_first() -> Iterator[None]:
    """The first process runs the block before the others, for files that are made once and then read."""
    if world_size() > 1 and not is_rank_zero():
        processes.barrier()
    yield
    if world_size() > 1 and is_rank_zero():
        processes.barrier()


def all_gather(value: T) -> list[T]:
    """The values of all processes, in their order."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    processes.all_gather_object(values, value)
    return values


def spread_random_numbers() -> None:
    """Gives every process its own random numbers, derived from the first one's."""
    if world_size() > 1:
        seed = broadcast(lambda: int(torch.randint(2**31, ())))
        seed_everything(seed + process_rank())


def set_own_state(states: Sequence[State], device: torch.device) -> None:
    """Restores this process's generators from the states of all processes.

    A process that did not exist when they were saved draws its own numbers, derived from the first one's.
    """
    number = process_rank()
    if number < len(states):
        set_random_state(states[number], device)
        return
    logger.warning("process %d of %d did not exist when the checkpoint was written", number, world_size())
    set_random_state(states[0], device)
    seed_everything(int(torch.randint(2**31, ())) + number)


def agree(model: nn.Module) -> None:
    """Gives a model of every process, in place, the first one's parameters and buffers."""
    if world_size() > 1:
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.numel():
                content = tensor.detach().contiguous()
                processes.broadcast(content, src=0)
                tensor.data.copy_(content)


# ---- shares of batches -----------------------------------------------------------------------------------------------


def check_share(batch_size: int, num_instances: int = 0, stage: str = "") -> None:
    """Raises ConfigError unless a batch can be shared: equally, and by whole identities if it is made of them.

    Args:
        batch_size: images, or sets, of a batch of all processes.
        num_instances: of each identity in a batch; 0: batches are not made of identities.
        stage: whose batches they are, for the message.
    """
    count = world_size()
    units, name = (batch_size // num_instances, "identities") if num_instances else (batch_size, "images")
    if units % count == 0 and units:
        return
    problem = f"more processes than {name}" if units < count else f"{count} does not divide {units}"
    each = f" of {num_instances} images each" if num_instances else ""
    where = f"{stage}: " if stage else ""
    raise ConfigError(
        f"{where}a batch of {batch_size} has {units} {name}{each}, and {count} processes share it: {problem}; start a "
        f"number of processes that divides {units}, or change the batch size, which is that of all processes together"
    )


class _SizedSampler(Protocol):
    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[int]: ...


class SharedSampler(Sampler[int]):
    """This process's share of the batches of a sampler; all processes draw the same order.

    Shares are contiguous: each process has whole identities of a batch, and none has another's.

    Args:
        sampler: of the whole batches.
        batch_size: images of a whole batch.
    """

    def __init__(self, sampler: _SizedSampler, batch_size: int) -> None:
        self.sampler = sampler
        self.batch_size = batch_size
        self.share = batch_size // world_size()

    def __len__(self) -> int:
        return len(self.sampler) // self.batch_size * self.share

    def __iter__(self) -> Iterator[int]:
        seed = broadcast(lambda: int(torch.randint(2**31, ())))
        own = random_state(_CPU)
        seed_everything(seed)
        order = list(self.sampler)
        set_random_state(own, _CPU)
        for start in range(0, len(order) - self.batch_size + 1, self.batch_size):
            first = start + process_rank() * self.share
            yield from order[first : first + self.share]


def share_of(loader: Any) -> Any:
    """A training loader of this process's share of every batch; the loader itself if there is one process.

    Raises:
        ConfigError: batches that cannot be shared, or a loader that is not torch's.
    """
    if world_size() == 1 or loader is None:
        return loader
    if not isinstance(loader, DataLoader) or not loader.batch_size or not isinstance(loader.sampler, Sized):
        raise ConfigError(
            f"several processes share the batches of a torch DataLoader with a batch_size, and this is a "
            f"{type(loader).__name__}; train in one process, or give the data manager such a loader"
        )
    check_share(loader.batch_size, getattr(loader.sampler, "num_instances", 0))
    sampler = SharedSampler(loader.sampler, loader.batch_size)
    return DataLoader(
        loader.dataset,
        sampler.share,
        sampler=sampler,
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        pin_memory=loader.pin_memory,
        worker_init_fn=loader.worker_init_fn,
        drop_last=True,
    )


class _Whole(torch.autograd.Function):
    """Rows of all processes, in their order.

    Every process computes the same loss from them, so the gradient of its own rows needs no communication. It is
    multiplied by the number of processes, because gradients are averaged over them afterwards.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        return torch.cat(_all(rows))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient.chunk(world_size())[process_rank()] * world_size()


def whole_batch(tensors: T) -> T:
    """Outputs and labels of the whole batch from those of this process's share, in nested tuples of any depth.

    What is computed from them must be the same in every process.
    """
    return tensors if world_size() == 1 else tree_map(_Whole.apply, tensors)


def features_by_shares(embed: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """Features [batch, channels] of images that every process has, each computing a share.

    Args:
        embed: gives features of images.
        images: [batch, ...], the same in every process.
    """
    count = world_size()
    if count == 1:
        return embed(images)
    share = -(-len(images) // count)
    # The last image is repeated if the shares are not equal.
    places = torch.arange(share) + process_rank() * share
    features = embed(images[places.clamp(max=len(images) - 1).to(images.device)])
    return torch.cat(_all(features))[: len(images)]


def _all(rows: Tensor) -> list[Tensor]:
    rows = rows.detach().contiguous()
    found = [torch.empty_like(rows) for _ in range(world_size())]
    processes.all_gather(found, rows)
    return found


# ---- a step ----------------------------------------------------------------------------------------------------------


def average(tensors: Iterable[Tensor], stop: bool, device: torch.device) -> bool:
    """Averages tensors over the processes, in place and in one collective.

    Args:
        tensors: gradients and running statistics, of the same shapes in every process.
        stop: whether this process was told to stop.
        device: where the tensors are.

    Returns:
        Whether any process was told to.
    """
    if world_size() == 1:
        return stop
    tensors = list(tensors)
    parts = [tensor.reshape(-1) for tensor in tensors]
    flat = torch.cat([*parts, torch.full((1,), float(stop), device=device)])
    processes.all_reduce(flat)
    flat /= world_size()
    for tensor, part in zip(tensors, flat[:-1].split([len(part) for part in parts]), strict=True):
        tensor.copy_(part.view(tensor.shape))
    return bool(flat[-1] > 0)
