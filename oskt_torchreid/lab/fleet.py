"""A fleet: queries of networks of one chain against galleries of others, in the places of their teacher's feature."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tabulate import tabulate
from torch import Tensor, nn
from tqdm.auto import tqdm

from ..chain.chain import WeightChain
from ..chain.expansion import expand
from ..chain.student_reading import load_student
from ..config import Config, get, load_resolved
from ..deploy.gallery import lift, origin_of
from ..errors import CheckpointError, ConfigError
from ..files import atomic, write_json
from ..host.ranking import INTERPOLATED, Labels, rank_features
from ..report.fleet_plot import fleet_maps
from ..runs.exporting import load_network
from ..runs.oskt.baselines import STUDENT_NAME
from ..runs.oskt.refinement import refined_teacher
from ..runs.oskt.run import CHAIN_NAME
from ..runs.oskt.specification import StudentSpec, students_of
from ..runs.oskt.students import EXPANDED_NAME
from ..runs.oskt.teachers import TEACHER_NAME
from ..runs.trainer import Trainer

UNTRAINED, RECALIBRATED, FINETUNED = "untrained", "recalibrated", "fine-tuned"
TEACHER, REFINED = "teacher", "refined teacher"
FORMAT_VERSION = 1
JSON_NAME, MARKDOWN_NAME, PICTURE_NAME = "fleet.json", "fleet.md", "fleet.png"


class Member(NamedTuple):
    """A network of a run, as it was at one time; `state` is empty for teachers, `path` is `None` without a file."""

    state: str
    name: str
    network: nn.Module
    path: Path | None = None


class Seen(NamedTuple):
    """What one network makes of the test pictures: mAP of its features as they are, these lifted, and their labels."""

    own: float
    queries: Tensor
    gallery: Tensor
    labels: Labels


@dataclass(frozen=True, eq=False)
class Fleet:
    """Networks of one chain, each as it was at one time.

    Attributes:
        state: of the students: untrained, recalibrated or fine-tuned.
        names: of the networks.
        own: mAP of each alone, its features as they are, `[networks]`.
        mean_ap: mAP of queries of each (rows) against a gallery of each, lifted, `[networks, networks]`.
    """

    state: str
    names: tuple[str, ...]
    own: np.ndarray
    mean_ap: np.ndarray

    @property
    def lost(self) -> np.ndarray:
        """How far each pair is below the lower of its two networks' own mAP, `[networks, networks]`."""
        return np.minimum(self.own[:, None], self.own[None]) - self.mean_ap

    def between(self, values: np.ndarray) -> np.ndarray:
        """Values of pairs of two different networks, but for the teacher before refinement, `[pairs]`."""
        trained = np.array([name != TEACHER for name in self.names])
        chosen = trained[:, None] & trained[None] & ~np.eye(len(trained), dtype=bool)
        return values[chosen]


def measure_fleet(folder: str | Path) -> list[Fleet]:
    """mAP by cosine distance of every pair of a run's networks, on its first target.

    Args:
        folder: of a finished run of engine `oskt`, with its chain.

    Returns:
        A fleet for untrained students, one for recalibrated ones where the run made such, and one for those that it
        fine-tuned, each with the teacher before and after refinement.

    Raises:
        ConfigError: no students of the run's chain.
        CheckpointError: a file of the run that is missing or damaged.
        FeatureError: networks whose features cannot be lifted.
    """
    trainer, members = members_of_run(folder)
    with tqdm(members, disable=None, unit="network", leave=False) as bar:
        seen = {(member.state, member.name): _seen(trainer, member.network) for member in bar}
    states = [state for state in dict.fromkeys(member.state for member in members) if state]
    return [_fleet(state, {name: each for (of, name), each in seen.items() if of in ("", state)}) for state in states]


def members_of_run(folder: str | Path) -> tuple[Trainer, list[Member]]:
    """What evaluates a run's networks, and these: the teacher, the refined one, and the chain's students in each state.

    Raises:
        ConfigError: no students of the run's chain.
        CheckpointError: a file of the run that is missing or damaged.
    """
    folder = Path(folder)
    config = load_resolved(folder)
    specs = [spec for spec in students_of(config) if spec.of_chain] if config.engine == "oskt" else []
    if not specs:
        raise ConfigError(f"'{folder}' is no run with students of a chain (engine: oskt, oskt.students); give one")
    trainer = Trainer(config)
    return trainer, [*_teachers(folder, config, trainer), *_students(folder, config, specs)]


def _fleet(state: str, seen: dict[str, Seen]) -> Fleet:
    pairs = [[_mean_ap(query.queries, pool.gallery, pool.labels) for pool in seen.values()] for query in seen.values()]
    return Fleet(state, tuple(seen), np.array([each.own for each in seen.values()]), np.array(pairs))


def _teachers(folder: Path, config: Config, trainer: Trainer) -> Iterator[Member]:
    teacher = load_network(str(folder / "teacher" / TEACHER_NAME), config=config, num_classes=trainer.num_classes)
    yield Member("", TEACHER, teacher)
    refined = refined_teacher(teacher, get(config, "oskt.refine"), folder / "refine")
    if refined is not None:
        yield Member("", REFINED, refined)


def _students(folder: Path, config: Config, specs: list[StudentSpec]) -> Iterator[Member]:
    chain = WeightChain.load(folder / CHAIN_NAME)
    for spec in specs:
        place = folder / "students" / spec.folder
        made = {RECALIBRATED: EXPANDED_NAME, FINETUNED: STUDENT_NAME}
        if not config.oskt.recalibrate:
            del made[RECALIBRATED]
        yield Member(UNTRAINED, spec.text, expand(chain, **spec.arguments()))
        for state, name in made.items():
            student = load_student(place / name)
            if origin_of(student).chain != chain.fingerprint:
                raise CheckpointError(
                    f"'{place / name}' is not of the chain '{folder / CHAIN_NAME}'; run the configuration again"
                )
            yield Member(state, spec.text, student, place / name)


def _seen(trainer: Trainer, network: nn.Module) -> Seen:
    queries, gallery, labels = trainer.features(network)
    own = _mean_ap(queries, gallery, labels)
    if origin_of(network).chain:
        queries, gallery = lift(queries, network), lift(gallery, network)
    return Seen(own, queries, gallery, labels)


def _mean_ap(queries: Tensor, gallery: Tensor, labels: Labels) -> float:
    return rank_features(queries, gallery, labels, "cosine")[INTERPOLATED].mean_ap


# ---- report ----------------------------------------------------------------------------------------------------------


def write_fleet(folder: str | Path, fleets: Sequence[Fleet], title: str) -> None:
    """Writes `fleet.json`, `fleet.md` and `fleet.png` into a folder, each whole or not at all."""
    folder = Path(folder)
    content = [
        {"state": fleet.state, "names": list(fleet.names), "own": fleet.own.tolist(), "mAP": fleet.mean_ap.tolist()}
        for fleet in fleets
    ]
    write_json(folder / JSON_NAME, {"format_version": FORMAT_VERSION, "fleets": content})
    fleet_maps({fleet.state: 100 * fleet.mean_ap for fleet in fleets}, fleets[0].names, folder / PICTURE_NAME, title)
    parts = [f"# One gallery for all widths: {title}", *(text for fleet in fleets for text in _paragraphs(fleet)), NOTE]
    with atomic(folder / MARKDOWN_NAME) as temporary:
        temporary.write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def _paragraphs(fleet: Fleet) -> Iterator[str]:
    yield f"## Students {fleet.state}"
    headers = ("queries of", *(f"gallery of {name}" for name in fleet.names), "its own, not lifted")
    rows = [
        (name, *(f"{100 * value:.1f}" for value in (*row, own)))
        for name, row, own in zip(fleet.names, fleet.mean_ap, fleet.own, strict=True)
    ]
    align = ("left", *["right"] * (len(headers) - 1))
    yield tabulate(rows, headers, tablefmt="github", disable_numparse=True, colalign=align)
    lost = 100 * fleet.between(fleet.lost)
    yield (
        f"Two different networks, the {TEACHER} before refinement left out: mAP is {lost.mean():.1f} points below the "
        f"lower of their own two on average, {lost.max():.1f} at most (below 0: it is above)."
    )


NOTE = (
    "mAP in % by cosine distance. Features are lifted to the places of the teacher's, so that those of all widths are "
    "compared; the last column has each network alone, with its features as they are."
)
