"""What distillation of views is worth: whole runs with controls over several training seeds, each with its own teacher.

Every seed is an ordinary run in its own folder, so seeds that were finished with the same configuration are not run
again.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

from tabulate import tabulate

from ..config import Config, save_resolved
from ..errors import ConfigError
from ..files import atomic, write_json
from ..report.protocols import SetRow, gains, read_set_rows
from ..report.set_plots import Bar, protocol_bars
from .comparison import Job
from .comparison.comparison import run_all
from .measurements import Spread, points

FORMAT_VERSION = 1
JSON_NAME, MARKDOWN_NAME, PICTURE_NAME = "controls.json", "controls.md", "controls.png"
Seeds = dict[int, list[SetRow]]
"""Rows of every training seed; those of all seeds have the same names, in the same order."""


def measure_controls(config: Config, seeds: Sequence[int] = (), processes: int = 1) -> Path:
    """Runs a configuration with controls for every seed, and writes tables and a picture.

    Args:
        config: whole tree of a run of VKD.
        seeds: of training; empty: the configuration's own and the next two.
        processes: runs at a time, with one thread each; 1 runs them here, one after the other, with torch's threads.

    Returns:
        The folder `data.save_dir`, with `controls.json`, `controls.md`, `controls.png` and a folder per seed.

    Raises:
        OsktError: everything that can be known beforehand is checked before anything is trained.
    """
    seeds = list(dict.fromkeys(seeds)) or [config.train.seed + number for number in range(3)]
    if config.engine != "vkd":
        raise ConfigError(f"engine is '{config.engine}'; these controls belong to runs of engine 'vkd'")
    if min(seeds) < 0:
        raise ConfigError(f"seeds are {seeds}; give numbers from 0 on")
    folder = Path(config.data.save_dir)
    jobs = [Job("controls", f"seed-{seed}", {"train.seed": seed, "vkd.controls": True}) for seed in seeds]
    save_resolved(config, folder)
    run_all(config, jobs, processes, "runs with controls")
    found = {seed: read_set_rows(folder / job.folder / "results.json") for seed, job in zip(seeds, jobs, strict=True)}
    write_controls(folder, found, config)
    return folder


def gain_spreads(seeds: Seeds) -> dict[str, dict[str, Spread]]:
    """By control, then by protocol: how much higher the student's mAP is, paired by seed, as fractions."""
    per_seed = [{control.name: gained for control, _, gained in gains(rows)} for rows in seeds.values()]
    return {
        control: {name: Spread.of(each[control][name] for each in per_seed) for name in gained}
        for control, gained in per_seed[0].items()
    }


def map_spreads(seeds: Seeds) -> dict[str, dict[str, Spread]]:
    """By network, then by protocol: mAP as fractions."""
    rows = list(seeds.values())
    return {
        row.name: {name: Spread.of(each[place].mean_precisions[name] for each in rows) for name in row.mean_precisions}
        for place, row in enumerate(rows[0])
    }


def controls_table(seeds: Seeds) -> str:
    """Markdown: mAP in % with standard deviations, and how far the student is above each control."""
    maps, gained = map_spreads(seeds), gain_spreads(seeds)
    protocols = list(next(iter(maps.values())))
    rows = []
    for network, of_network in maps.items():
        cells = []
        for name in protocols:
            cells += [of_network[name].percent(), points(gained[network][name]) if network in gained else ""]
        rows.append((network, *cells))
    headers = ("network", *(header for name in protocols for header in (f"{name} mAP", "student above it by")))
    align = ("left", *["right"] * (len(headers) - 1))
    return tabulate(rows, headers, tablefmt="github", disable_numparse=True, colalign=align)


def write_controls(folder: Path, seeds: Seeds, config: Config) -> None:
    """Writes `controls.json`, `controls.md` and `controls.png`, each whole or not at all."""
    title = f"{config.model.name} on {', '.join(config.data.targets)}"
    maps, gained = map_spreads(seeds), gain_spreads(seeds)
    write_json(
        folder / JSON_NAME,
        {
            "format_version": FORMAT_VERSION,
            "mAP": _plain(maps),
            "student above it by": _plain(gained),
            "rows": {str(seed): [dataclasses.asdict(row) for row in rows] for seed, rows in seeds.items()},
        },
    )
    bars = {
        network: {name: _bar(spread, gained.get(network, {}).get(name)) for name, spread in of_network.items()}
        for network, of_network in maps.items()
    }
    protocol_bars(bars, folder / PICTURE_NAME, title)
    with atomic(folder / MARKDOWN_NAME) as temporary:
        temporary.write_text("\n\n".join(_paragraphs(seeds, config, title)) + "\n", encoding="utf-8")


def _plain(spreads: dict[str, dict[str, Spread]]) -> dict[str, dict[str, dict[str, float]]]:
    return {key: {name: dataclasses.asdict(spread) for name, spread in each.items()} for key, each in spreads.items()}


def _bar(spread: Spread, gained: Spread | None) -> Bar:
    return Bar(100 * spread.mean, 100 * spread.deviation, f"student {points(gained)}" if gained else "")


def _paragraphs(seeds: Seeds, config: Config, title: str) -> Iterator[str]:
    node = config.vkd
    yield f"# What distillation is worth: {title}"
    yield controls_table(seeds)
    yield (
        "mAP (interpolated) in %, on identities that no network was trained on; mean ± standard deviation over the "
        f"training seeds {', '.join(map(str, seeds))}, each with its own teacher. Differences are means over pairs of "
        "one seed, in points, ± their standard error. V: a tracklet, I: its first frame; queries come first."
    )
    yield (
        f"A student sees {node.num_student_views} of the {node.num_views} views of a set that its teacher does "
        f"({node.strategy}); alpha {node.alpha:g}, beta {node.beta:g}, temperature {node.temperature:g}. Without "
        "distillation it begins in the same way and sees the same sets for as many epochs, and learns from labels "
        "alone. A teacher that is trained on keeps its weights and its own views, for as many epochs."
    )
