"""The jobs of a comparison: every job is an ordinary run with a few changed keys.

tuning     learning rates, on training identities that are held out; the test set is not looked at
finetune   teacher, chain, students of every width by chain and baselines, for the students' epochs
passes     baselines for as many epochs as refinement and fine-tuning take together
transfer   few identities of other people and cameras, on which chain and baselines' students are fine-tuned
ablation   the same teacher with another refinement, each for the same epochs
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...baselines import baseline
from ...config import Config, get, merged
from ...datasets.synthetic import preset
from ...datasets.synthped import VARIANTS
from ...errors import ConfigError
from ...runs.oskt.specification import StudentSpec

CHAIN_METHOD, TEACHER = "oskt", "teacher"
_KEYS_OF_EXPANSION = ("oskt.statistics", "oskt.distance", "oskt.recalibrate", "oskt.attention")
CHAIN_NAME, TEACHER_PLACE = "chain.safetensors", "teacher/teacher.pth"

Changes = dict[str, Any]
Rates = Mapping[str, Mapping[str, float]]
"""Learning rate by scenario (teacher, refine, finetune, passes, transfer) and method."""


@dataclass(frozen=True)
class Job:
    """One run.

    Attributes:
        scenario: finetune, passes, transfer-16, ablation:NAME or tuning.
        folder: below the comparison's own.
        changes: dotted keys of the configuration and their values.
        labels: further entries for the report: data seed, seed, rate.
    """

    scenario: str
    folder: str
    changes: Changes
    labels: dict[str, Any] = field(default_factory=dict)

    def config(self, config: Config) -> Config:
        """The configuration of this run."""
        folder = str(Path(config.data.save_dir) / self.folder)
        return merged(config, {**self.changes, "data.save_dir": folder})


def student_entries(methods: list[str], widths: list[float]) -> list[str]:
    """Entries of `oskt.students`; the chain's own are named only by their width."""
    return [f"width={w:g}" if m == CHAIN_METHOD else f"{m}:width={w:g}" for w in widths for m in methods]


def split_name(name: str) -> tuple[str, float] | None:
    """Method and width of a row's name; `None` for the teacher and for files."""
    spec = StudentSpec.parse(name)
    return (spec.method or CHAIN_METHOD, float(spec.value)) if spec.way == "width" else None


def check_comparison(config: Config) -> None:
    """Raises `ConfigError` for mistakes that would only show after hours: methods, ablations, seeds, identities."""
    node = config.comparison
    for name in node.methods:
        baseline(name)
    for name, changes in ablations(config):
        merged(config, changes)
        if not name:
            raise ConfigError("comparison.ablations has an entry without a name; write 'random labels: KEY=VALUE ...'")
    for key in ("widths", "methods", "seeds", "data_seeds", "rates"):
        if not node[key]:
            raise ConfigError(f"comparison.{key} is empty; name at least one")
    of_transfer = node.transfer.widths if node.transfer.identities else ()
    lowest = min([*node.widths, *node.equal_passes_widths, *of_transfer])
    if isinstance(config.oskt.width, str) or lowest < config.oskt.width:
        raise ConfigError(
            f"comparison has width {lowest:g}, and the chain oskt.width={config.oskt.width}; every width is compared "
            "with a student of the chain, so give the chain a ratio that is not wider"
        )
    if not _is_drawn(config) and (len(node.data_seeds) > 1 or node.transfer.identities):
        raise ConfigError(
            f"comparison.data_seeds {node.data_seeds} and comparison.transfer.identities {node.transfer.identities} "
            f"need data that are drawn by a seed, and data.sources is {config.data.sources}; give one data seed and no "
            f"identities, or one of {', '.join(VARIANTS)}"
        )


def _is_drawn(config: Config) -> bool:
    return all(name in VARIANTS for name in (*config.data.sources, *config.data.targets))


def passes_changes(config: Config) -> Changes:
    """As many epochs as refinement and fine-tuning take together, at low resolution where refinement had it."""
    refine, finetune = get(config, "oskt.refine"), get(config, "oskt.finetune")
    keys = ("max_epoch", "half_resolution_epochs")
    return {f"oskt.finetune.{key}": refine[key] + finetune[key] for key in keys}


def ablations(config: Config) -> list[tuple[str, Changes]]:
    """Name and changes of each entry "name: KEY=VALUE ..." of `comparison.ablations`."""
    entries = []
    for text in config.comparison.ablations:
        name, _, words = text.partition(":")
        pairs = [word.partition("=")[::2] for word in shlex.split(words)]
        entries.append((name.strip(), dict(pairs)))
    return entries


def tuned(rates: Rates, scenario: str) -> Changes:
    """Keys that set the chosen rates of a scenario."""
    chosen = rates[scenario]
    changes = {f"oskt.control_lr.{name}": rate for name, rate in chosen.items() if name != CHAIN_METHOD}
    return {**changes, "oskt.finetune.lr": chosen[CHAIN_METHOD]} if CHAIN_METHOD in chosen else changes


# ---- measuring ---------------------------------------------------------------------------------------------------


def seed_jobs(config: Config, rates: Rates, step: str) -> list[Job]:
    """All runs of a step, for every pair of data seed and training seed.

    Args:
        config: whole tree.
        rates: as they were tuned.
        step: `finetune` (makes teacher and chain), then `rest`.
    """
    node = config.comparison
    jobs = []
    for data_seed in node.data_seeds:
        for seed in node.seeds:
            place = f"data-{data_seed}/seed-{seed}"
            labels = {"data_seed": data_seed, "seed": seed}
            shared = {"synthped.seed": data_seed, "train.seed": seed, "oskt.controls": []}
            if step == "finetune":
                students = student_entries([CHAIN_METHOD, *node.methods], list(node.widths))
                changes = {**shared, **tuned(rates, "finetune"), "oskt.students": students, "oskt.curves": True}
                changes["train.lr"] = rates["teacher"][TEACHER]
                changes["oskt.refine.lr"] = rates["refine"][CHAIN_METHOD]
                jobs.append(Job("finetune", f"{place}/finetune", changes, labels))
            else:
                folder = Path(config.data.save_dir) / place
                jobs += (
                    Job(scenario, f"{place}/{name}", {**shared, **changes}, labels)
                    for scenario, name, changes in _rest(config, rates, folder, data_seed)
                )
    return jobs


def _rest(config: Config, rates: Rates, folder: Path, data_seed: int) -> Iterator[tuple[str, str, Changes]]:
    """Scenario, folder and changes of the runs that need teacher and chain."""
    node = config.comparison
    teacher = {"oskt.teacher": str(folder / "finetune" / TEACHER_PLACE)}
    files = {"oskt.chain": str(folder / "finetune" / CHAIN_NAME), **teacher}
    if node.equal_passes_widths:
        students = student_entries(list(node.methods), list(node.equal_passes_widths))
        changes = {**files, **tuned(rates, "passes"), **passes_changes(config), "oskt.curves": True}
        yield "passes", "passes", {**changes, "oskt.students": students}
    for identities in node.transfer.identities:
        changes = {**files, **tuned(rates, "transfer"), **transfer_changes(config, identities, data_seed)}
        changes["oskt.students"] = student_entries(transferable(config), list(node.transfer.widths))
        yield f"transfer-{identities}", f"transfer-{identities}", changes
    for name, changed in ablations(config):
        changes = {**tuned(rates, "finetune"), "oskt.students": student_entries([CHAIN_METHOD], list(node.widths))}
        if all(key in _KEYS_OF_EXPANSION for key in changed):
            changes |= files  # the chain is the same
        else:
            changes |= {**teacher, "oskt.refine.lr": rates["refine"][CHAIN_METHOD]}
            changes |= {"oskt.refine.max_epoch": node.ablation_epochs} if node.ablation_epochs else {}
        yield f"ablation:{name}", f"ablations/{name.replace('/', '-')}", {**changes, **changed}


def source_jobs(config: Config, rates: Rates) -> list[Job]:
    """Narrow networks, trained on the source for equal passes, and fine-tuned on few identities of other people."""
    node = config.comparison
    jobs = []
    for data_seed in node.data_seeds if node.equal_passes_widths else ():
        for seed in node.seeds:
            place = f"data-{data_seed}/seed-{seed}"
            folder = Path(config.data.save_dir) / place
            widths = [width for width in node.transfer.widths if width in node.equal_passes_widths]
            paths = [folder / "passes" / "students" / f"scratch-width={width:g}" / "student.pth" for width in widths]
            for identities in node.transfer.identities if "scratch" in node.methods and widths else ():
                changes = {
                    "train.seed": seed,
                    "oskt.controls": [],
                    **transfer_changes(config, identities, data_seed),
                    "oskt.chain": str(folder / "finetune" / CHAIN_NAME),
                    "oskt.students": [f"file={path}" for path in paths],
                    "oskt.finetune.lr": rates["transfer"][CHAIN_METHOD],
                }
                labels = {"data_seed": data_seed, "seed": seed}
                jobs.append(Job(f"transfer-{identities}", f"{place}/transfer-{identities}-source", changes, labels))
    return jobs


def transferable(config: Config) -> list[str]:
    """Methods that need no class scores of a teacher, whose identities are others."""
    return [CHAIN_METHOD, *(name for name in config.comparison.methods if not baseline(name).distils)]


def transfer_changes(config: Config, identities: int, data_seed: int, share: float = 1.0) -> Changes:
    """Other people and cameras, few of them to learn from.

    Args:
        config: whole tree.
        identities: to train on.
        data_seed: of the source; the target's is another one for each.
        share: of the training identities that validation leaves.
    """
    node = config.comparison.transfer
    whole = config.synthped.num_train or preset(config.synthped.preset).train_identities
    total = int(whole * share + 1e-9)
    return {
        "synthped.seed": node.data_seed + data_seed,
        "few_shot.ratio": identities / total,
        "oskt.finetune.max_epoch": node.max_epoch,
        "oskt.finetune.half_resolution_epochs": node.half_resolution_epochs,
        "oskt.curves": False,
    }
