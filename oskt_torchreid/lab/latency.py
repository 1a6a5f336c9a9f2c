"""Latency of a run's networks and of stock models of the same family, with their accuracy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn
from tqdm.auto import tqdm

from ..chain.network import traced_alone
from ..chain.student_reading import load_student
from ..config import Config, load_resolved
from ..deploy import Latency
from ..deploy.latency import Timed, check_backend
from ..errors import ConfigError
from ..host import models
from ..models import backbone_names
from ..report import Row, read_results
from ..runs.exporting import load_network
from ..runs.oskt.baselines import STUDENT_NAME
from ..runs.oskt.teachers import TEACHER_NAME
from ..runs.trainer import network_size
from .latency_report import STOCK, LatencyRow


@dataclass(frozen=True)
class Setting:
    """One way of measuring."""

    backend: str
    batch: int
    threads: int


def measure_run(
    folder: str | Path,
    settings: Sequence[Setting],
    stock: Sequence[str] | None = None,
    device: str = "cpu",
    repeats: int = 15,
) -> list[LatencyRow]:
    """Measures teacher and students of a run, and stock models for comparison.

    Args:
        folder: of a run; its results hold the networks' accuracy.
        settings: ways of measuring, each with every network.
        stock: registered names; by default those that are built in the same module as the run's backbone.
        device: `cpu` or `cuda`.
        repeats: timed batches of each setting.

    Raises:
        ConfigError: no results, an unknown stock model, or a backend that cannot measure here; before anything is
            measured.
        CheckpointError: a network of the run that is missing or damaged.
    """
    for backend in dict.fromkeys(setting.backend for setting in settings):
        check_backend(device, backend)
    folder = Path(folder)
    results = read_results(folder / "results.json")
    config = load_resolved(folder)
    size = (3, config.data.height, config.data.width)
    names = family(config.model.name) if stock is None else list(stock)
    for name in names:
        models.builder_of(name)  # raises for an unknown one
    candidates = [*_of_run(folder, config, results.rows), *_of_stock(names, size)]
    rows = []
    for row, network in tqdm(candidates, disable=None, unit="network", leave=False):
        timed = Timed(network, size)
        seen = tuple(_measured(timed, setting, device, repeats) for setting in settings)
        exported = len(timed.onnx) if any(setting.backend != "pytorch" for setting in settings) else None
        kind = STOCK if row.kind == "control" else row.kind
        rows.append(LatencyRow(row.name, kind, row.params, row.flops, exported, row.best_map, seen))
    return rows


def family(name: str) -> list[str]:
    """Stock backbones that are built in the same Python module as a backbone, itself included."""
    module = models.builder_of(name).__module__
    return [each for each in backbone_names() if models.builder_of(each).__module__ == module]


def _measured(timed: Timed, setting: Setting, device: str, repeats: int) -> Latency:
    return timed.measure(setting.batch, setting.threads, device, setting.backend, repeats=repeats)


def _of_run(folder: Path, config: Config, rows: Sequence[Row]) -> Iterator[tuple[Row, nn.Module]]:
    """Teacher and students; controls have the shapes of students, and so their latency."""
    found = 0
    for row in rows:
        path = folder / "students" / row.name / STUDENT_NAME
        if row.kind == "teacher":
            path = folder / "teacher" / TEACHER_NAME
        if row.kind in ("teacher", "student") and path.is_file():
            found += 1
            yield row, load_network(str(path), config=config) if row.kind == "teacher" else load_student(path)
    if not found:
        raise ConfigError(f"'{folder}' has no networks of a run next to its results; give the folder of a whole run")


def _of_stock(names: Sequence[str], size: tuple[int, int, int]) -> Iterator[tuple[Row, nn.Module]]:
    for name in names:
        network = models.build(name, 1)
        params, flops = network_size(network, traced_alone(network, size).heads, size)
        yield Row(name, "control", params, flops), network
