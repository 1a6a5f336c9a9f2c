"""Writes the page of a run, at the run's end and whenever somebody asks, and pages that compare runs."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path

from ...config import Config, load_resolved
from ...errors import ConfigError, OsktError
from ...files import read_json
from ...host.distributed import is_rank_zero
from ...report import Row, read_results
from ...report.page import Section, Table, write_page
from ...report.page_figures import cost_picture
from ...report.protocols import read_set_rows
from ...report.tables import table_cells
from .sections import (
    cost_section,
    counted,
    home_section,
    origin_section,
    point_of,
    ranked_section,
    result_section,
    set_section,
    training_section,
    width_section,
)

logger = logging.getLogger(__name__)

PAGE_NAME = "report.html"


def finish_page(folder: Path, config: Config) -> None:
    """Writes the page at the end of a run, if `page` asks for it; what keeps it from that does not undo the run."""
    if not (config.page and is_rank_zero()):
        return
    try:
        write_run_page(folder)
    except OsktError as error:
        logger.warning("the run has no page: %s", error)


def write_run_page(folder: str | Path, path: str | Path = "") -> Path:
    """Writes the page of a run.

    Args:
        folder: of the run; its configuration, results, ranked lists, losses and chain are read.
        path: HTML file; empty: `report.html` in the folder.

    Returns:
        The file.

    Raises:
        ConfigError: a folder without a configuration or results.
    """
    folder = Path(folder)
    _check_run(folder)
    config = load_resolved(folder)
    place = Path(path) if path else folder / PAGE_NAME
    title = f"{config.model.name} on {', '.join(config.data.targets)}"
    lead, sections = _sets(folder, config) if config.engine == "vkd" else _networks(folder, config)
    write_page(place, title, lead, [section for section in sections if section is not None])
    return place


def _networks(folder: Path, config: Config) -> tuple[str, list[Section | None]]:
    results = read_results(folder / "results.json")
    facts = results.facts
    return _lead(config, results.rows), [
        result_section(results.rows),
        cost_section(folder, results.rows),
        training_section(folder, config, facts),
        ranked_section(folder),
        width_section(folder, config, facts),
        home_section(folder, facts),
        origin_section(folder, config, facts),
    ]


def _sets(folder: Path, config: Config) -> tuple[str, list[Section | None]]:
    path, node = folder / "results.json", config.vkd
    rows, facts = read_set_rows(path), read_json(path).get("facts", {})
    lead = f"A teacher of {node.num_views} views, and students that see {node.num_student_views}: {len(rows)} networks."
    return lead, [
        set_section(folder, rows),
        training_section(folder, config, facts),
        origin_section(folder, config, facts),
    ]


def _lead(config: Config, rows: Sequence[Row]) -> str:
    kinds = {kind: sum(row.kind == kind for row in rows) for kind in ("student", "control")}
    if config.engine != "oskt":
        return f"One network, trained on {', '.join(config.data.sources)}."
    oskt = config.oskt
    origin = f"the chain '{oskt.chain}'" if oskt.chain else f"a weight chain of width {oskt.width}"
    teacher = f"the teacher '{oskt.teacher}'" if oskt.teacher else "a teacher that this run trained"
    return (
        f"From {teacher} and {origin}, refined on {', '.join(config.data.sources)}: "
        f"{counted(kinds['student'], 'student')}, beside {counted(kinds['control'], 'control')}."
    )


def _check_run(folder: Path) -> None:
    """Raises `ConfigError` for a folder that no run was finished in."""
    if missing := [name for name in ("config.yaml", "results.json") if not (folder / name).is_file()]:
        raise ConfigError(
            f"'{folder}' is no folder of a finished run: it has no {' and no '.join(missing)}; give the "
            "data.save_dir of a run that has ended"
        )


def names_apart(folders: Sequence[str | Path]) -> list[str]:
    """A name for each folder: as little of the end of its path as tells it from the others, `a/mine` and `b/mine`.

    Raises:
        ConfigError: fewer than two folders, or one that is given twice.
    """
    parts = [Path(os.path.abspath(folder)).parts for folder in folders]
    if len(parts) < 2 or len(set(parts)) < len(parts):
        raise ConfigError(f"runs to compare are {list(map(str, folders))}; give two or more, each once")
    for count in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-count:]) for part in parts]
        if len(set(names)) == len(names):
            break
    return names


def write_comparison_page(folders: Sequence[str | Path], path: str | Path) -> Path:
    """Writes a page that shows several runs side by side; networks are called `run: network`.

    Args:
        folders: of runs of engine oskt, or of one network each.
        path: HTML file.

    Raises:
        ConfigError: fewer than two runs, one of them twice, or a folder without results.
    """
    names = names_apart(folders)
    for folder in folders:
        _check_run(Path(folder))
    found = {name: read_results(Path(folder) / "results.json") for name, folder in zip(names, folders, strict=True)}
    headers: tuple[str, ...] = ()
    rows: list[tuple[str, ...]] = []
    points = []
    for name, results in found.items():
        headers, cells = table_cells(results.rows)
        rows += [(name, *row) for row in cells]
        points += [point_of(row, row.params, f"{name}: {row.name}") for row in results.rows]
    data = [", ".join(results.facts.get("data", ())) for results in found.values()]
    text = [] if len(set(data)) == 1 else ["The runs were evaluated on different data; compare with care."]
    places = [str(Path(folder).absolute()) for folder in folders]
    sections = [
        Section("Results", text, Table(("run", *headers), rows)),
        Section("Size and accuracy", pictures=[cost_picture([point for point in points if point], "parameters")]),
        Section("Runs", table=Table((), list(zip(names, data, places, strict=True)))),
    ]
    write_page(path, " and ".join(names), f"{len(folders)} runs side by side.", sections)
    return Path(path)
