"""The parts of a run's page, each made of what the run's folder holds."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...chain.chain import WeightChain
from ...config import Config
from ...errors import OsktError
from ...files import read_json
from ...graph.keeping import in_words
from ...report import Row
from ...report.page import Place, Ranked, Section, Table, picture_of, thumbnail
from ...report.page_figures import Point, cost_picture, lines_picture
from ...report.protocols import SetRow
from ...report.tables import human_count, table_cells
from .curves import curves_below
from .kept import RANKED_NAME

logger = logging.getLogger(__name__)

CHAIN_NAME = "chain.safetensors"
SHOWN = 6  # networks in a ranked list; further ones would make the page long


def result_section(rows: Sequence[Row]) -> Section:
    """The table of a run."""
    headers, cells = table_cells(rows)
    text = (
        "mAP, rank-1 and mINP in %, on identities that no network was trained on; 'before' is before any fine-tuning. "
        "Parameters and FLOPs (multiply-adds of one image) leave out the classifier."
    )
    return Section("Results", [text], Table(headers, cells))


def point_of(row: Row, cost: float, name: str = "") -> Point | None:
    """A network in a drawing; `None` where it has no mAP."""
    before, after = (None if value is None else 100 * value for value in (row.map_before, row.map_after))
    return None if before is None and after is None else Point(name or row.name, row.kind, cost, before, after)


def cost_section(folder: Path, rows: Sequence[Row]) -> Section | None:
    """Parameters, FLOPs and, where it was measured, latency against mAP."""
    costs: dict[str, dict[str, float]] = {
        "parameters": {row.name: row.params for row in rows},
        "FLOPs": {row.name: row.flops for row in rows},
    }
    latencies = _latencies(folder)
    costs |= {f"latency, {backend} (ms)": found for backend, found in latencies.items()}
    pictures = []
    for cost, values in costs.items():
        points = [point_of(row, values[row.name]) for row in rows if row.name in values]
        if shown := [point for point in points if point]:
            pictures.append(cost_picture(shown, cost))
    place = _quoted(folder)
    ways = [("For latency on this machine:", f"oskt bench latency {place}\noskt report {place}")]
    commands = [] if latencies else ways
    return Section("What accuracy costs", pictures=pictures, commands=commands) if pictures else None


def _latencies(folder: Path) -> dict[str, dict[str, float]]:
    """Milliseconds of an image by backend and network, if `oskt bench latency` has measured them."""
    path = folder / "latency.json"
    rows = read_json(path).get("rows", []) if path.is_file() else []
    found: dict[str, dict[str, float]] = {}
    for row in rows:
        for seen in row["seen"]:
            found.setdefault(seen["backend"], {}).setdefault(row["name"], seen["median_ms"])
    return found


def training_section(folder: Path, config: Config, facts: Mapping[str, Any]) -> Section | None:
    """Losses, accuracies and the row dispersion; `None` for a run that trained nothing."""
    pictures = []
    losses, accuracies = curves_below(folder)
    if losses:
        pictures.append(lines_picture(losses, "schedule of the stage (%)", "sum of losses (% of its start)"))
    if accuracies:
        pictures.append(lines_picture(accuracies, "epochs", "mAP (%)", "Evaluated during training."))
    text = _dispersion(config, facts)
    return Section("Training", text, pictures=pictures) if pictures or text else None


def _dispersion(config: Config, facts: Mapping[str, Any]) -> list[str]:
    """The row dispersion after refinement, what it means for the refinement that was used, and what to do."""
    value = facts.get("refine", {}).get("row_dispersion")
    if value is None:
        return []
    refine = config.oskt.refine
    if config.oskt.nested:
        said = (
            "how far the rows that lead the teacher's clusters are from the chain's. Rows inside of a cluster may "
            "differ: that is what wide students keep and narrow ones merge."
        )
        high = "Refine for more epochs or with a higher oskt.refine.lambda: teacher and narrow student are still apart."
    else:
        said = (
            "how much rows inside of the teacher's clusters differ from the chain's. At 0 every student computes what "
            "the narrowest one does, so that width gains nothing before fine-tuning; what remains is lost in expansion."
        )
        high = (
            "Fine-tune the students, or refine for longer or with a higher oskt.refine.lambda; with oskt.nested=True "
            "wide students keep what rows differ by."
        )
    small = "It is small: nothing has to be done." if value < 0.02 else high
    return [
        f"Row dispersion after {counted(refine.max_epoch, 'epoch')} of refinement: {value:.3f}. It says {said} {small}"
    ]


def ranked_section(folder: Path) -> Section | None:
    """What networks found for the same queries; `None` for a run that kept no lists."""
    path = folder / RANKED_NAME
    if not path.is_file():
        return None
    content = read_json(path)
    shown = list(content["networks"].items())[:SHOWN]
    small: dict[str, str] = {}

    def source(entry: Mapping[str, Any]) -> str:
        name = entry["path"]
        if name not in small:
            small[name] = thumbnail(name)
        return small[name]

    queries = []
    for number, query in enumerate(content["queries"]):
        lists = [
            (name, [Place(source(entry), entry["identity"] == query["identity"]) for entry in found[number]])
            for name, found in shown
        ]
        name = "/".join(Path(query["path"]).parts[-2:])
        label = f"query {name}: identity {query['identity']}, camera {query['camera'] + 1}"
        queries.append(Ranked(source(query), label, lists))
    text = [
        "The nearest entries of the gallery for the same queries, spread evenly over all; the nearest is on the left."
    ]
    return Section("Ranked lists", text, ranked=queries)


def width_section(folder: Path, config: Config, facts: Mapping[str, Any]) -> Section | None:
    """Widths of the chain and its students, and what is whole; `None` without a chain."""
    students = facts.get("students", {})
    if not students:
        return None
    path = folder / CHAIN_NAME
    try:
        chain = WeightChain.load(config.oskt.chain or path)
    except OsktError as error:
        logger.warning("the page has no widths: %s", error)
        return None
    graph = chain.graph
    free = [group for group in graph.groups if not group.fixed]
    shares = {"chain": chain.widths} | {name: about["widths"] for name, about in students.items()}
    lines = {
        name: [(place, 100 * widths[group.name] / group.size) for place, group in enumerate(free, 1)]
        for name, widths in shares.items()
    }
    picture = lines_picture(lines, "channel groups, in the order of the network", "width (% of the teacher's)")
    kept = f"Kept whole in every student: {in_words(graph.kept)}." if graph.kept else ""
    fixed = sum(bool(group.fixed) for group in graph.groups)
    text = (
        f"{graph.num_channels} channels in {len(graph.groups)} groups, of which {fixed} are whole in every student; "
        f"{100 * graph.immovable_share:.1f} % of the parameters make or read channels that cannot be merged."
    )
    return Section("Width of every layer", [text, *([kept] if kept else [])], pictures=[picture])


def home_section(folder: Path, facts: Mapping[str, Any]) -> Section | None:
    """The commands that make files of students; `None` without students."""
    students = facts.get("students", {})
    commands = []
    for name, about in students.items():
        file, chain, settings = (_quoted(folder / name) for name in (about["file"], CHAIN_NAME, "config.yaml"))
        way, _, value = name.partition("=")
        stem = shlex.quote(name.replace("=", "-").replace("/", "-").replace(" ", "-"))
        lines = [
            f"oskt expand {chain} --{way} {shlex.quote(value)} -o {stem}.pth   # untrained, from the chain",
            f"oskt export {file} -o {stem}.onnx   # the fine-tuned one, for ONNX Runtime",
            f"oskt export {file} -o {stem}-int8.onnx --precision int8 --config-file {settings}",
        ]
        commands.append((name, "\n".join(lines)))
    if not commands:
        return None
    text = ["Files say in their metadata how they are fed. With --feature teacher all widths share one gallery."]
    return Section("Take a student home", text, commands=commands)


def origin_section(folder: Path, config: Config, facts: Mapping[str, Any]) -> Section:
    """Settings, versions and machine."""
    about = facts.get("environment", {})
    rows = [
        ("engine", str(config.engine or config.loss.name)),
        ("training data", ", ".join(config.data.sources)),
        ("test data", ", ".join(config.data.targets)),
        ("image", f"{config.data.height} x {config.data.width}"),
        ("seed", str(config.train.seed)),
        ("folder", str(folder.absolute())),
        ("again", f"oskt run {_quoted(folder / 'config.yaml')}"),
        *((name, str(value)) for name, value in about.items()),
    ]
    text = ["Relative paths in config.yaml begin in the folder in which the run was started; start it again there."]
    return Section("How this was made", text, table=Table((), rows))


def counted(number: int, noun: str) -> str:
    """`no student`, `1 student`, `2 students`."""
    return f"{number or 'no'} {noun}{'' if number == 1 else 's'}"


def _quoted(path: Path) -> str:
    """A path as a shell takes it from any folder."""
    return shlex.quote(str(path.absolute()))


# ---- networks of sets ----------------------------------------------------------------------------------------------


def set_section(folder: Path, rows: Sequence[SetRow]) -> Section:
    """Numbers of VKD's networks in every protocol."""
    protocols = list(rows[0].protocols) if rows else []
    headers = ("network", "params", "views", *(f"{name} mAP" for name in protocols), "epochs")
    cells = [
        (
            *(row.name, human_count(row.params), str(row.views)),
            *(f"{100 * value:.1f}" for value in row.mean_precisions.values()),
            str(row.epochs),
        )
        for row in rows
    ]
    bars = picture_of(folder / "protocols.png", "mAP of every network in every protocol")
    text = ["mAP in %; V: a tracklet, I: its first frame; queries come first."]
    return Section("Results", text, Table(headers, cells), [bars] if bars else [])
