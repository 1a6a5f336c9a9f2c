"""Few-shot training: any data set with a seeded subset of its training identities.

Identities are distinguished by their files, not by the labels of a run, so that a seed means the same ones on every
machine. The subsets of one seed are nested: those of 0.1 are among those of 0.3.

Example: identities with the files {a1, a2}, {b1}, {c1}, {d1} are in this order. With the shuffled order (2, 0, 3, 1)
of some seed, a ratio of 0.5 keeps the places 2 and 0, that is c and a; they get the labels 1 and 0, because a is before
c.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..errors import DataError
from ..files import atomic
from .checks import Item
from .variants import Dataset, register_variant, replace_parts

LIST_NAME = "few_shot_list.txt"


def keep_few(dataset: Dataset, ratio: float, seed: int) -> None:
    """Shrinks the training part of a data set, in place; query and gallery stay whole.

    Args:
        dataset: of torchreid.
        ratio: share of the training identities.
        seed: of the draw.
    """
    replace_parts(dataset, train=few_identities(dataset.train, ratio, seed))


def few_identities(items: Sequence[Item], ratio: float, seed: int) -> list[Item]:
    """The pictures of a subset of the identities, relabelled from 0 in the order of their files.

    Args:
        items: (path, identity, camera, ...) of every training picture, or (paths, ...) of every tracklet.
        ratio: share of the identities; their number is rounded down.
        seed: decides which.

    Raises:
        DataError: a ratio that keeps no identity.
    """
    first_file: dict[int, str] = {}
    for path, identity, *_ in items:
        first_file[identity] = min(first_file.get(identity, path), path)
    identities = sorted(first_file, key=first_file.__getitem__)
    count = kept_count(len(identities), ratio)
    if count == 0:
        raise DataError(
            f"few_shot.ratio {ratio:g} of {len(identities)} training identities keeps none; give a larger one"
        )
    kept = sorted(np.random.default_rng(seed).permutation(len(identities))[:count])
    labels = {identities[place]: label for label, place in enumerate(kept)}
    return [(path, labels[identity], *rest) for path, identity, *rest in items if identity in labels]


def kept_count(identities: int, ratio: float) -> int:
    """How many of the identities a ratio keeps, rounded down; 0.3 of 10 are 3, in spite of floating-point errors."""
    return int(identities * ratio + 1e-9)


def few_shot_dataset(name: str, ratio: float, seed: int, kind: str = "image") -> str:
    """Registers the few-shot variant of a data set and returns its name; doing it again changes nothing.

    Args:
        name: of a registered data set.
        ratio: share of the training identities; 1 gives `name` itself.
        seed: of the draw.
        kind: "image" or "video".
    """
    if ratio == 1:
        return name
    return register_variant(name, f"few-shot-{ratio:g}-{seed}", kind, keep_few, ratio=ratio, seed=seed)


def save_list(folder: str | Path, items: Sequence[Item], root: str | Path, ratio: float, seed: int) -> Path:
    """Writes which pictures a few-shot run trains on: a line "path below the root, space, label" for each, sorted.

    Args:
        folder: of the run; the file is `few_shot_list.txt` in it.
        items: (path, label, ...) of every training picture, or (paths, label, ...) of every tracklet.
        root: folder of all data sets.
        ratio: as drawn, for the first line.
        seed: as drawn, for the first line.
    """
    base = Path(root).expanduser().absolute()
    pictures = [(path, label) for paths, label, *_ in items for path in _each(paths)]
    lines = sorted(f"{_below(Path(path).absolute(), base)} {label}" for path, label in pictures)
    identities = len({label for _, label in pictures})
    path = Path(folder) / LIST_NAME
    with atomic(path) as temporary:
        head = f"# {identities} identities, {len(lines)} pictures: ratio {ratio:g}, seed {seed}"
        temporary.write_text("\n".join([head, *lines, ""]), encoding="utf-8")
    return path


def _each(paths: str | Sequence[str]) -> Sequence[str]:
    return [paths] if isinstance(paths, str) else paths


def _below(path: Path, base: Path) -> str:
    return (path.relative_to(base) if path.is_relative_to(base) else path).as_posix()
