"""The cost of refining and expanding: one refinement step against one teacher-only step, and one expansion.

Clusters are random: costs depend on widths, not on which channels share a cluster, and drawing them costs nothing.
"""

from __future__ import annotations

import copy
import itertools
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from ..chain.chain import WeightChain
from ..chain.expansion import expand
from ..chain.nesting import tree_over
from ..chain.network import trace
from ..chain.sstudent import Refinement
from ..errors import ConfigError
from ..graph.plans import Width, full_plan, ratio_plan
from ..graph.tracer import tracing_mode
from ..host import models
from ..host.losses import ReidLoss, kd_loss
from ..models.presets import PRESETS, TEACHER_PLANES, ResNetPreset
from ..networks import parse_outputs

BACKBONE, NUM_CLASSES = "resnet50", 751
SERIES = {name: preset for name, preset in PRESETS.items() if isinstance(preset, ResNetPreset)}
"""The paper's students of ResNet-50."""

METHODS = ("teacher", "paper", "nested", "level", "first")
"""What a step trains: the teacher alone; with the paper's S-student; with a nested chain's, which learns from the
teacher's scores; with one of 12 levels besides; and all of these learning from a copy of the first teacher instead."""
_LEVELS = 12
Result = TypeVar("Result")
MEMORY_STEPS = 3  # the optimiser's state exists from the second step on
WARM_UP = 2


@dataclass(frozen=True)
class RefineCost:
    """Costs of one training step, of the teacher alone and of refining a chain.

    Attributes:
        method: one of `METHODS`.
        planes: base planes of the chain; the teacher has 64.
        batch: images in a batch.
        teacher_ms: median milliseconds of a teacher-only step.
        refine_ms: median milliseconds of a refinement step.
        teacher_bytes: peak memory of teacher-only training over that of the imported package; 0: not measured.
        refine_bytes: the same of refinement.
        weight_bytes: one copy of the teacher's weights.
    """

    method: str
    planes: int
    batch: int
    teacher_ms: float
    refine_ms: float
    teacher_bytes: int
    refine_bytes: int
    weight_bytes: int

    @property
    def time_ratio(self) -> float:
        """Refinement step over teacher-only step."""
        return self.refine_ms / self.teacher_ms

    @property
    def memory_bound(self) -> int:
        """`teacher * (1 + width ratio) + one copy of the weights`, and 5 % on top."""
        return int(1.05 * (self.teacher_bytes * (1 + self.planes / TEACHER_PLANES) + self.weight_bytes))


@dataclass(frozen=True)
class ExpandCost:
    """Costs of making one student.

    Attributes:
        name: of the preset, or of the backbone.
        chain_width: width ratio of the chain.
        params: parameters of the student.
        expand_ms: median milliseconds of `expand`.
        copy_ms: median milliseconds of one plain copy of the bytes that it reads and writes.
        touched_bytes: these bytes.
    """

    name: str
    chain_width: float
    params: int
    expand_ms: float
    copy_ms: float
    touched_bytes: int


# ---- refining ----------------------------------------------------------------------------------------------------


def measure_refine(
    method: str, planes: int, batch: int, size: tuple[int, int], rounds: int, memory: bool = True
) -> RefineCost:
    """Times both kinds of step in one process, in turn, so that a busy machine slows both alike.

    Args:
        method: one of `METHODS`.
        planes: base planes of the chain.
        batch: images in a batch.
        size: `(height, width)` of the images.
        rounds: steps of each kind that are timed, after a warm-up.
        memory: also measure peak memory, each kind in a fresh process.
    """
    kinds = (METHODS[0], method)
    steps = [_make_step(kind, planes, batch, size) for kind in kinds]
    seconds: list[list[float]] = [[], []]
    for round_ in range(WARM_UP + rounds):
        for step, times in zip(steps, seconds, strict=True):
            start = time.perf_counter()
            step()
            if round_ >= WARM_UP:
                times.append(time.perf_counter() - start)
    teacher_ms, refine_ms = (1e3 * statistics.median(times) for times in seconds)
    teacher_peak, refine_peak = (_fresh_peak(kind, planes, batch, size) if memory else 0 for kind in kinds)
    weights = sum(p.numel() * p.element_size() for p in models.skeleton(BACKBONE, NUM_CLASSES).parameters())
    return RefineCost(method, planes, batch, teacher_ms, refine_ms, teacher_peak, refine_peak, weights)


def _make_step(method: str, planes: int, batch: int, size: tuple[int, int]) -> Callable[[], None]:
    """Forward, backward and Adam's step of one of `METHODS`; levels are trained in turn, widest last."""
    teacher = models.build(BACKBONE, NUM_CLASSES)
    criterion, parts = ReidLoss(NUM_CLASSES), itertools.count()
    images, pids = torch.randn(batch, 3, *size), torch.arange(batch) % NUM_CLASSES

    def task(output: Any) -> Tensor:
        return criterion(parse_outputs(output, True, "softmax"), pids)[0]

    if method == METHODS[0]:
        network: nn.Module = teacher
    else:
        chain = random_chain(teacher, planes / TEACHER_PLANES, nested=method != "paper")
        network = Refinement(teacher, chain, levels=_LEVELS if method in ("level", "first") else ())
    first = copy.deepcopy(teacher).eval() if method == "first" else None
    network.train()
    optimizer = torch.optim.Adam(network.parameters(), lr=3.5e-4, weight_decay=5e-4)

    def loss() -> Tensor:
        if not isinstance(network, Refinement):
            return task(network(images))
        if network.levels:
            network.active = (next(parts) % _LEVELS,)
        targets = None
        if first is not None:
            with torch.no_grad(), tracing_mode(first):
                targets = first(images)
        distil = None if method == "paper" else lambda wide, narrow: kd_loss(narrow, wide.detach(), 4.0)
        return network.losses(images, task, distil=distil, targets=targets).total()

    def step() -> None:
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()

    return step


def _fresh_peak(method: str, planes: int, batch: int, size: tuple[int, int]) -> int:
    """Peak memory of a few steps in a separate process.

    The operating system's number decides whether a job fits; a profiler of torch would miss the buffers of its kernels,
    and a shared process would include the peaks of earlier work.
    """
    return in_fresh_process(_peak, method, planes, batch, size, torch.get_num_threads())


def in_fresh_process(work: Callable[..., Result], *arguments: object) -> Result:
    """The result of a module-level function in a new process that has only imported this package."""
    method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    multiprocessing.set_forkserver_preload([__name__])  # imported once, for all processes
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context(method)) as pool:
        return pool.submit(work, *arguments).result()


def _peak(method: str, planes: int, batch: int, size: tuple[int, int], threads: int) -> int:
    torch.set_num_threads(threads)
    before = process_memory("VmRSS")
    step = _make_step(method, planes, batch, size)
    for _ in range(MEMORY_STEPS):
        step()
    return process_memory("VmHWM") - before


def process_memory(field: str) -> int:
    """Bytes that Linux counts for this process; 0 elsewhere.

    Not `getrusage`, whose maximum a new process inherits from the one that started it.
    """
    status = Path("/proc/self/status")
    lines = status.read_text(encoding="ascii").splitlines() if status.is_file() else []
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(f"{field}:")), 0)


# ---- expanding ---------------------------------------------------------------------------------------------------


def measure_expand(rounds: int, names: Sequence[str] = tuple(SERIES)) -> list[ExpandCost]:
    """Times the expansion of the paper's students from chains that were saved and loaded.

    Args:
        rounds: expansions of each student that are timed, after a warm-up.
        names: which presets of `SERIES`.

    Raises:
        ConfigError: no student has such a name.
    """
    for name in names:
        if name not in SERIES:
            raise ConfigError(f"no student is called {name!r}; allowed: {', '.join(SERIES)}")
    teacher = models.build(BACKBONE, NUM_CLASSES)
    chains: dict[int, WeightChain] = {}
    costs = []
    for name in names:
        planes = SERIES[name].chain_planes
        if planes not in chains:
            chains[planes] = _saved_and_loaded(random_chain(teacher, planes / TEACHER_PLANES))
        costs.append(_expand_cost(name, chains[planes], planes / TEACHER_PLANES, name, rounds))
    return costs


def measure_expand_all(rounds: int, names: Sequence[str], ratio: float = 0.5) -> Iterator[ExpandCost]:
    """Times the expansion of every backbone at one ratio, from a chain of that width that was saved and loaded.

    Args:
        rounds: expansions of each that are timed, after a warm-up.
        names: registered backbones.
        ratio: width ratio of chain and student.
    """
    for name in names:
        torch.manual_seed(0)
        chain = _saved_and_loaded(random_chain(models.build(name, NUM_CLASSES), ratio, models.input_size(name)))
        yield _expand_cost(name, chain, ratio, ratio, rounds)


def _expand_cost(name: str, chain: WeightChain, chain_width: float, width: Width, rounds: int) -> ExpandCost:
    plan = full_plan(chain.graph, width)
    student = expand(chain, plan)
    touched = _tensors(chain, student)
    expand_ms = _median_ms(lambda: expand(chain, plan), rounds)
    copy_ms = _median_ms(lambda: [tensor.clone() for tensor in touched], rounds)
    params = sum(parameter.numel() for parameter in student.parameters())
    touched_bytes = sum(tensor.numel() * tensor.element_size() for tensor in touched)
    return ExpandCost(name, chain_width, params, expand_ms, copy_ms, touched_bytes)


def random_chain(
    teacher: nn.Module, ratio: float, size: tuple[int, int, int] = (3, 64, 32), nested: bool = False
) -> WeightChain:
    """A chain of a teacher, of a width ratio and with random clusters; a nested one has random leaders."""
    graph = trace(teacher, size)
    generator = np.random.default_rng(0)
    widths = ratio_plan(graph, ratio)
    labels = {name: np.arange(size) % widths[name] for name, size in graph.sizes.items()}
    if not nested:
        labels = {name: generator.permutation(found) for name, found in labels.items()}
        return WeightChain.from_labels(teacher, graph, labels)
    trees = {name: tree_over(found) for name, found in labels.items()}
    importance = {name: generator.random(size) for name, size in graph.sizes.items()}
    return WeightChain.from_labels(teacher, graph, labels, trees=trees, importance=importance)


def _saved_and_loaded(chain: WeightChain) -> WeightChain:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "chain.safetensors"
        chain.save(path)
        return WeightChain.load(path)


def _tensors(chain: WeightChain, student: nn.Module) -> list[Tensor]:
    """The tensors that an expansion reads and writes."""
    read = [tensor for part in (chain.rows, chain.vectors, chain.fixed) for tensor in part.values()]
    return read + list(student.state_dict().values())


def _median_ms(action: Callable[[], object], rounds: int) -> float:
    seconds = []
    for round_ in range(WARM_UP + rounds):
        start = time.perf_counter()
        action()
        if round_ >= WARM_UP:
            seconds.append(time.perf_counter() - start)
    return 1e3 * statistics.median(seconds)
