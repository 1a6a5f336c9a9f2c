"""The jobs of a comparison: every job is an ordinary run with a few changed keys.

tuning     learning rates, on training identities that are held out; the test set is not looked at
finetune   teacher, chain, students of every width by chain and baselines, for the students' epochs
passes ... baselines that are trained for as much as the chain is, see `equal`
transfer   few identities of other people and cameras, on which chain and baselines' students are fine-tuned
ablation   the same teacher with another refinement, each for the same epochs
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path

from ...baselines import baseline
from ...config import Config, merged
from ...datasets.synthped import VARIANTS
from ...errors import ConfigError
from ...runs.trainer import drawn_settings
from .equal import check_equal, compute_jobs, equal_jobs, methods_at
from .parts import CHAIN_METHOD, CHAIN_NAME, TEACHER, TEACHER_PLACE, Changes, Job, Rates, student_entries, tuned

_KEYS_OF_EXPANSION = ("oskt.statistics", "oskt.vectors_over", "oskt.distance", "oskt.recalibrate", "oskt.attention")


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
    check_equal(config)
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


def ablations(config: Config) -> list[tuple[str, Changes]]:
    """Name and changes of each entry "name: KEY=VALUE ..." of `comparison.ablations`."""
    entries = []
    for text in config.comparison.ablations:
        name, _, words = text.partition(":")
        pairs = [word.partition("=")[::2] for word in shlex.split(words)]
        entries.append((name.strip(), dict(pairs)))
    return entries


# ---- measuring ---------------------------------------------------------------------------------------------------


def seed_jobs(config: Config, rates: Rates, step: str) -> list[Job]:
    """All runs of a step, for every pair of data seed and training seed.

    Args:
        config: whole tree.
        rates: as they were tuned.
        step: `finetune` (makes teacher and chain), then `rest`, which reads what the first measured.
    """
    node = config.comparison
    jobs = []
    for data_seed in node.data_seeds:
        for seed in node.seeds:
            place = f"data-{data_seed}/seed-{seed}"
            labels = {"data_seed": data_seed, "seed": seed}
            shared = {"synthped.seed": data_seed, "train.seed": seed, "oskt.controls": []}
            if step == "finetune":
                students = [
                    entry
                    for width in node.widths
                    for entry in student_entries([CHAIN_METHOD, *methods_at(node.methods, width)], [width])
                ]
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
    for scenario, name, changes in (*equal_jobs(config, rates), *compute_jobs(config, rates, folder / "finetune")):
        yield scenario, name, {**files, **changes}
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
            seeds = f"data-{data_seed}/seed-{seed}"
            folder = Path(config.data.save_dir) / seeds
            widths = [width for width in node.transfer.widths if width in node.equal_passes_widths]
            runs = {width: folder / ("passes" if width < 1 else "passes-1") / "students" for width in widths}
            paths = [place / f"scratch-width={width:g}" / "student.pth" for width, place in runs.items()]
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
                jobs.append(Job(f"transfer-{identities}", f"{seeds}/transfer-{identities}-source", changes, labels))
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
    whole = drawn_settings(config)[config.data.sources[0]].train_identities
    total = int(whole * share + 1e-9)
    return {
        "synthped.seed": node.data_seed + data_seed,
        "few_shot.ratio": identities / total,
        "oskt.finetune.max_epoch": node.max_epoch,
        "oskt.finetune.half_resolution_epochs": node.half_resolution_epochs,
        "oskt.curves": False,
    }
