"""A gallery that students of several widths share: their features lifted, told apart by chain, and ranked."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from ..errors import FeatureError
from ..files import load_checkpoint
from ..networks import unwrapped
from .export import SUFFIXES
from .lifting import FEATURES
from .runtimes import read_metadata

Features = TypeVar("Features", Tensor, np.ndarray)
Source = nn.Module | Mapping[str, Any] | str | Path
"""Where features come from: a student, its file, an exported file, or the metadata of one."""

QUERIES_AT_ONCE, GALLERY_AT_ONCE = 256, 1 << 16


class Origin(NamedTuple):
    """What a student, or a file of one, says of its features.

    Attributes:
        chain: fingerprint of the chain that it was expanded from; empty: of none.
        lifting: the entry of its own feature that stands for each of the teacher's; empty: unknown.
        feature: `own`, or `teacher` where its features are lifted.
    """

    chain: str = ""
    lifting: tuple[int, ...] = ()
    feature: str = FEATURES[0]

    @property
    def length(self) -> int:
        """Length of a feature that it makes; 0 if it is unknown."""
        return len(self.lifting) if self.feature == "teacher" else max(self.lifting, default=-1) + 1


class Ranked(NamedTuple):
    """The nearest entries of a gallery for each query, the most similar first.

    Attributes:
        places: indices into the gallery, `[queries, most]`.
        similarities: cosine similarities, `[queries, most]`.
    """

    places: Tensor
    similarities: Tensor


def rank(
    queries: Tensor | np.ndarray,
    gallery: Tensor | np.ndarray,
    of_queries: Source | None = None,
    of_gallery: Source | None = None,
    most: int = 10,
) -> Ranked:
    """The entries of a gallery that are most like each query, by cosine similarity.

    Features of students of different widths are lifted first. Memory is bounded: no more than 256 queries and 65,536
    gallery entries are compared at once.

    Args:
        queries: features `[queries, length]`.
        gallery: features `[gallery, length]`.
        of_queries: what made the queries, see `lift`; `None`: the teacher, or features that are lifted.
        of_gallery: the same of the gallery.
        most: how many entries per query, at most as many as there are.

    Raises:
        FeatureError: features of two chains, of different lengths, or none.
        OsktError: a source that cannot be read.

    Example: in a gallery `[[1, 0], [0, 1]]` the query `[[3, 4]]` has the places `[[1, 0]]`, with the similarities
    `[[0.8, 0.6]]`.
    """
    origins = [None if source is None else origin_of(source) for source in (of_queries, of_gallery)]
    chains = {origin.chain for origin in origins if origin is not None}
    if len(chains) > 1:
        raise FeatureError(
            f"queries are of the chain {_shown(origins[0])}, the gallery is of {_shown(origins[1])}: features of two "
            "chains cannot be compared; enrol the gallery again with a network of one of them"
        )
    sides = []
    for side, source in ((queries, of_queries), (gallery, of_gallery)):
        tensor = torch.as_tensor(side)
        sides.append((tensor if source is None else lift(tensor, source)).float())
    first, second = sides
    if not (first.dim() == second.dim() == 2 and first.shape[1] == second.shape[1] and len(first) and len(second)):
        raise FeatureError(
            f"queries have the shape {tuple(first.shape)}, the gallery has {tuple(second.shape)}: give features "
            "[count, length] of one length, or what made them (of_queries, of_gallery), so that they can be lifted"
        )
    parts = [_nearest(part, second, min(most, len(second))) for part in first.split(QUERIES_AT_ONCE)]
    return Ranked(torch.cat([part.places for part in parts]), torch.cat([part.similarities for part in parts]))


def _nearest(queries: Tensor, gallery: Tensor, most: int) -> Ranked:
    queries = functional.normalize(queries, dim=1)
    found = Ranked(torch.empty(len(queries), 0, dtype=torch.int64), torch.empty(len(queries), 0))
    for start, part in zip(range(0, len(gallery), GALLERY_AT_ONCE), gallery.split(GALLERY_AT_ONCE), strict=True):
        alike, places = (queries @ functional.normalize(part, dim=1).T).topk(min(most, len(part)), dim=1)
        similarities = torch.cat([found.similarities, alike], 1)
        best = similarities.topk(min(most, similarities.shape[1]), dim=1)
        places = torch.cat([found.places, places + start], 1)
        found = Ranked(places.gather(1, best.indices), best.values)
    return found


def _shown(origin: Origin | None) -> str:
    return f"'{origin.chain}'" if origin is not None and origin.chain else "no chain"


def lift(features: Features, source: Source) -> Features:
    """Gives features that were stored as a student made them the length and places of its teacher's.

    Args:
        features: `[count, length]`; those of a source that gives lifted ones are returned as they are.
        source: what made them: a student, its file, an exported file, or the metadata of one.

    Returns:
        `[count, teacher's length]`, of the same kind. Divide by lengths afterwards, not before.

    Raises:
        FeatureError: a source that does not say how, or features of another length than its own.
        OsktError: a file that cannot be read.

    Example: a source of the lifting `0 1 0 2` makes `[[5, 7, 9]]` to `[[5, 7, 5, 9]]`.
    """
    origin, name = origin_of(source), _named(source)
    if not origin.lifting:
        raise FeatureError(
            f"{name} does not say how its features are lifted: it is no student of a chain, has several features, or "
            "was written by an earlier version; expand and export it again"
        )
    if len(features.shape) != 2 or features.shape[1] != origin.length:
        raise FeatureError(
            f"features have the shape {tuple(features.shape)}, those of {name} are [count, {origin.length}]; give what "
            "made them"
        )
    return features if origin.feature == "teacher" else features[:, list(origin.lifting)]


def origin_of(source: Source) -> Origin:
    """What a student, its file, an exported file or its metadata says of its features; errors as of `lift`."""
    if isinstance(source, nn.Module):
        record = getattr(unwrapped(source), "student_record", None)
        return Origin() if record is None else Origin(record.chain, record.lifting, record.feature)
    if isinstance(source, Mapping):
        return _checked(source, _named(source))
    path = Path(source)
    if (format := SUFFIXES.get(path.suffix.lower())) is not None:
        return _checked(read_metadata(path, format), _named(source))
    content = load_checkpoint(path)
    return _checked(content.get("oskt") if isinstance(content, dict) else None, _named(source))


def _checked(content: Any, name: str) -> Origin:
    """The facts of a file, which may hold anything."""
    try:
        lifting = tuple(int(entry) for entry in content.get("lifting", ()))
        origin = Origin(str(content.get("chain", "")), lifting, str(content.get("feature", FEATURES[0])))
    except (AttributeError, TypeError, ValueError) as error:
        raise FeatureError(f"{name} does not say what its features are; expand and export it again") from error
    entries = set(lifting)
    if origin.feature not in FEATURES or entries != set(range(len(entries))):
        raise FeatureError(f"{name} is damaged: its lifting is not a list of entries of a feature; export it again")
    return origin


def _named(source: Source) -> str:
    if isinstance(source, nn.Module):
        return f"this {type(unwrapped(source)).__name__}"
    return "this metadata" if isinstance(source, Mapping) else f"'{source}'"
