"""Time that a network takes for images, measured on this machine."""

from __future__ import annotations

import contextlib
import copy
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import ConfigError, ExportError
from .deployment import Deployed
from .onnx_format import to_onnx
from .packages import require
from .runtimes import onnx_provider, run_onnx, run_openvino

logger = logging.getLogger(__name__)

AUTO = "auto"
BACKENDS = ("pytorch", "onnxruntime", "openvino")
DEVICES = ("cpu", "cuda")


@dataclass(frozen=True)
class Latency:
    """One measurement.

    Attributes:
        median_ms: median milliseconds of a batch.
        spread_ms: milliseconds between the quartiles.
        p95_ms: milliseconds that 95 % of the batches take at most.
        batch: images in the batch.
        threads: threads of one operator.
        device: `cpu` or `cuda`.
        backend: `pytorch`, `onnxruntime` or `openvino`.
        repeats: number of runs that were timed.
    """

    median_ms: float
    spread_ms: float
    p95_ms: float
    batch: int
    threads: int
    device: str
    backend: str
    repeats: int

    def __str__(self) -> str:
        return (
            f"{self.median_ms:.3g} ms (quartiles {self.spread_ms:.2g} ms apart) for {self.batch} image(s) by "
            f"{self.backend} on {self.device}, {self.threads} thread(s), median of {self.repeats}"
        )


class Timed:
    """A network prepared for timing in several ways; what backends share is made once.

    Args:
        model: not changed; a copy is timed, in evaluation, where torchreid's models compute no class scores.
        input_size: `(channels, height, width)` of an image.
    """

    def __init__(self, model: nn.Module, input_size: tuple[int, ...]) -> None:
        self.input_size = input_size
        self._network = copy.deepcopy(model).eval()

    @cached_property
    def onnx(self) -> bytes:
        """The network in ONNX's format; raises `ExportError` for one that cannot be exported."""
        images = torch.rand(2, *self.input_size, generator=torch.Generator().manual_seed(0))
        return to_onnx(Deployed(self._network), images).SerializeToString()

    def measure(
        self,
        batch: int = 1,
        threads: int | None = None,
        device: str = "cpu",
        backend: str = AUTO,
        warmup: int = 3,
        repeats: int = 15,
    ) -> Latency:
        """Times it; arguments and errors as of `measure_latency`."""
        _check_numbers(batch, threads, warmup, repeats)
        chosen = chosen_backend(device, backend)
        threads = threads or torch.get_num_threads()
        images = torch.rand(batch, *self.input_size, generator=torch.Generator().manual_seed(0))
        with _threads(threads):
            try:
                run = self._runner(images, threads, device, chosen)
            except ExportError as error:
                if backend != AUTO:
                    raise
                logger.info("measured by PyTorch, for ONNX Runtime cannot run it: %s", error)
                chosen, run = "pytorch", self._runner(images, threads, device, "pytorch")
            milliseconds = _repeated(run, warmup, repeats)
        lower, median, upper, most = np.percentile(milliseconds, (25, 50, 75, 95))
        spread = float(upper - lower)
        return Latency(float(median), spread, float(most), batch, threads, device, chosen, repeats)

    def _runner(self, images: Tensor, threads: int, device: str, backend: str) -> Callable[[], object]:
        if backend == "pytorch":
            return _torch_runner(self._network.to(device), images.to(device))
        run = run_openvino(self.onnx, threads) if backend == "openvino" else run_onnx(self.onnx, threads, device)
        pixels = images.numpy()
        return lambda: run(pixels)


def measure_latency(
    model: nn.Module,
    input_size: tuple[int, ...],
    batch: int = 1,
    threads: int | None = None,
    device: str = "cpu",
    backend: str = AUTO,
    warmup: int = 3,
    repeats: int = 15,
) -> Latency:
    """Times a network as it is deployed: in evaluation, where torchreid's models compute no class scores.

    Args:
        model: not changed; a copy is timed.
        input_size: `(channels, height, width)` of an image.
        batch: images at a time.
        threads: of one operator; by default torch's own number. Set back afterwards.
        device: `cpu` or `cuda`.
        backend: `pytorch`, or `onnxruntime` or `openvino` (an exported copy; they need the extra `export`); `auto`:
            ONNX Runtime where it is installed and can run the network, else PyTorch. Small networks leave PyTorch
            waiting for itself, whatever their width, so that its time says little of a device.
        warmup: runs before those that are timed.
        repeats: timed runs.

    Raises:
        ConfigError: an unknown or missing device or backend, or a number below 1.
        ExportError: a network that the backend cannot run.
    """
    return Timed(model, input_size).measure(batch, threads, device, backend, warmup, repeats)


def _check_numbers(batch: int, threads: int | None, warmup: int, repeats: int) -> None:
    numbers = {"batch": batch, "threads": 1 if threads is None else threads, "warmup": warmup, "repeats": repeats}
    for name, number in numbers.items():
        if number < 1:
            raise ConfigError(f"{name} of a latency measurement is {number}; give 1 or more")


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    """Sets torch's number of threads inside the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _repeated(run: Callable[[], object], warmup: int, repeats: int) -> list[float]:
    for _ in range(warmup):
        run()
    milliseconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        milliseconds.append(1e3 * (time.perf_counter() - start))
    return milliseconds


def chosen_backend(device: str, backend: str) -> str:
    """The backend itself, or what `auto` stands for here; raises `ConfigError` as `check_backend` does."""
    if backend != AUTO:
        check_backend(device, backend)
        return backend
    check_backend(device, "pytorch")
    try:
        check_backend(device, "onnxruntime")
    except ConfigError:
        return "pytorch"
    return "onnxruntime"


def check_backend(device: str, backend: str) -> None:
    """Raises `ConfigError` unless a backend can measure on a device here, its packages included."""
    for name, value, allowed in (("device", device, DEVICES), ("backend", backend, (*BACKENDS, AUTO))):
        if value not in allowed:
            raise ConfigError(f"{name} of a latency measurement is '{value}'; allowed: {', '.join(allowed)}")
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device of a latency measurement is 'cuda', but torch finds no GPU here; measure on 'cpu'")
    if device == "cuda" and backend == "openvino":
        raise ConfigError("backend 'openvino' is measured on 'cpu' alone; choose that device, or another backend")
    require(backend, f"backend '{backend}'")
    if backend == "onnxruntime":
        onnx_provider(device)


def _torch_runner(network: nn.Module, images: Tensor) -> Callable[[], object]:
    def run() -> None:
        with torch.inference_mode():
            network(images)
        if images.is_cuda:
            torch.cuda.synchronize()

    return run
