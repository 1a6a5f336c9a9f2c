"""Time that a network takes for images, measured on this machine."""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import ConfigError

BACKENDS = ("pytorch", "onnxruntime")
DEVICES = ("cpu", "cuda")


@dataclass(frozen=True)
class Latency:
    """One measurement.

    Attributes:
        median_ms: median milliseconds of a batch.
        spread_ms: milliseconds between the quartiles.
        batch: images in the batch.
        threads: threads of one operator.
        device: ``cpu`` or ``cuda``.
        backend: ``pytorch`` or ``onnxruntime``.
        repeats: number of runs that were timed.
    """

    median_ms: float
    spread_ms: float
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


def measure_latency(
    model: nn.Module,
    input_size: tuple[int, int, int],
    batch: int = 1,
    threads: int | None = None,
    device: str = "cpu",
    backend: str = "pytorch",
    warmup: int = 3,
    repeats: int = 15,
) -> Latency:
    """Times a network as it is deployed: in evaluation, where torchreid's models compute no class scores.

    Args:
        model: left as it is; a copy is timed.
        input_size: ``(channels, height, width)`` of an image.
        batch: images at a time.
        threads: of one operator; by default torch's own number. Set back afterwards.
        device: ``cpu`` or ``cuda``.
        backend: ``pytorch``, or ``onnxruntime`` (an exported copy; needs the extra ``export``).
        warmup: runs before those that are timed.
        repeats: timed runs.

    Raises:
        ConfigError: an unknown or missing device or backend, or a number below 1.
    """
    _check(batch, threads, device, backend, warmup, repeats)
    threads = threads or torch.get_num_threads()
    images = torch.rand(batch, *input_size, generator=torch.Generator().manual_seed(0))
    network = copy.deepcopy(model).eval()
    with _threads(threads):
        if backend == "onnxruntime":
            run = _onnx_runner(network.cpu(), images, threads, device)
        else:
            run = _torch_runner(network.to(device), images.to(device))
        milliseconds = _timed(run, warmup, repeats)
    lower, median, upper = np.percentile(milliseconds, (25, 50, 75))
    return Latency(float(median), float(upper - lower), batch, threads, device, backend, repeats)


def _check(batch: int, threads: int | None, device: str, backend: str, warmup: int, repeats: int) -> None:
    numbers = {"batch": batch, "threads": 1 if threads is None else threads, "warmup": warmup, "repeats": repeats}
    for name, number in numbers.items():
        if number < 1:
            raise ConfigError(f"{name} of a latency measurement is {number}; give 1 or more")
    for name, value, allowed in (("device", device, DEVICES), ("backend", backend, BACKENDS)):
        if value not in allowed:
            raise ConfigError(f"{name} of a latency measurement is '{value}'; allowed: {', '.join(allowed)}")
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device of a latency measurement is 'cuda', but torch finds no GPU here; measure on 'cpu'")


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    """Torch's threads for the while."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _timed(run: Callable[[], object], warmup: int, repeats: int) -> list[float]:
    for _ in range(warmup):
        run()
    milliseconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        milliseconds.append(1e3 * (time.perf_counter() - start))
    return milliseconds


def _torch_runner(network: nn.Module, images: Tensor) -> Callable[[], object]:
    def run() -> None:
        with torch.inference_mode():
            network(images)
        if images.is_cuda:
            torch.cuda.synchronize()

    return run


def _onnx_runner(network: nn.Module, images: Tensor, threads: int, device: str) -> Callable[[], object]:
    session = _session(network, images, threads, device)
    feed = {session.get_inputs()[0].name: images.numpy()}
    return lambda: session.run(None, feed)


def _session(network: nn.Module, images: Tensor, threads: int, device: str) -> Any:
    """The network inside of onnxruntime."""
    try:
        import onnx  # noqa: F401 - torch's exporter needs it and says so less clearly
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"backend 'onnxruntime' needs the package '{error.name}'; install the extra: "
            "pip install 'oskt_torchreid[export]'"
        ) from error
    provider = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}[device]
    if provider not in onnxruntime.get_available_providers():
        raise ConfigError(f"this onnxruntime has no {provider}; install onnxruntime-gpu, or measure on 'cpu'")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(_exported(network, images), options, providers=[provider])


def _exported(network: nn.Module, images: Tensor) -> bytes:
    """The network in ONNX's format."""
    stream = io.BytesIO()
    exporter = logging.getLogger("torch.onnx")
    level = exporter.level
    exporter.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # the exporter reports its progress there
            torch.onnx.export(network, (images,), stream, dynamo=True, external_data=False)
    finally:
        exporter.setLevel(level)
    return stream.getvalue()
