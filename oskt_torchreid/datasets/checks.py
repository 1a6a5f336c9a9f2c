"""Checks of data before anything is trained: batches, matches, and readable pictures."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from ..errors import ConfigError, DataError
from ..host.pictures import damage_of

HOW = ("headers", "all", "none")
_SHOWN = 5
_THREADS = 8

Item = tuple[Any, ...]
"""(path of a picture or paths of a tracklet, identity, camera, ...), as torchreid's data sets have them."""


def check_batches(datamanager: Any, stage: str, batch_key: str) -> None:
    """Raises `DataError` if a stage would train nothing, because its pictures do not fill one batch.

    Args:
        datamanager: of the stage.
        stage: its name.
        batch_key: key that says how large its batches are.
    """
    loader = datamanager.train_loader
    if len(loader):
        return
    items = len(loader.dataset)
    raise DataError(
        f"stage '{stage}' would train nothing: {items} training {_kind(loader.dataset)} fill no batch of "
        f"{loader.batch_size}; lower {batch_key}, to {items} at most"
    )


def _kind(dataset: Any) -> str:
    items: Sequence[Item] = getattr(dataset, "train", ())
    return "pictures" if not len(items) or isinstance(items[0][0], str) else "tracklets"


def check_matches(datamanager: Any, no_camera: bool = False) -> None:
    """Raises `DataError` unless some query of every target has a match: its identity, seen by another camera.

    Args:
        datamanager: with `test_dataset[target]["query" or "gallery"]`.
        no_camera: whether cameras leave nothing out, so that any picture of the identity is a match.
    """
    for target, parts in datamanager.test_dataset.items():
        query, gallery = parts["query"], parts["gallery"]
        if not len(query) or not len(gallery):
            empty = "gallery" if len(query) else "query"
            raise DataError(f"the {empty} of data set '{target}' is empty; an evaluation needs a query and a gallery")
        seen: dict[Any, set[Any]] = {}
        for _, pid, camera, *_ in gallery:
            seen.setdefault(pid, set()).add(camera)
        if any(pid in seen and (no_camera or seen[pid] - {camera}) for _, pid, camera, *_ in query):
            continue
        shared = len({item[1] for item in query} & seen.keys())
        raise DataError(
            f"no query of data set '{target}' has a match: of {len(query)} queries and {len(gallery)} gallery entries "
            f"{shared} identities are in both, and none of these was seen by two cameras (query and gallery have "
            f"cameras {_cameras(query)} and {_cameras(gallery)}, numbered from 0). A query's own camera is left out of "
            "its ranking; check who is who and which camera saw them, or, where cameras are not known, leave them out: "
            "crops.cameras=none for a folder, no column 'camera' in a table, vkd.no_camera=True for views"
        )


def _cameras(items: Sequence[Item]) -> str:
    names = sorted({item[2] for item in items})
    return ", ".join(map(str, names[:_SHOWN])) + (", ..." if len(names) > _SHOWN else "")


def check_pictures(datamanager: Any, how: str = "headers", workers: int = 0) -> int:
    """Looks at every picture of training, queries and galleries once.

    Args:
        datamanager: of torchreid or of sets.
        how: `headers` opens them, `all` decodes them, `none` does nothing.
        workers: threads besides the usual ones.

    Returns:
        How many were looked at.

    Raises:
        ConfigError: unknown `how`.
        DataError: some cannot be read; how many, and the first of them.
    """
    if how not in HOW:
        raise ConfigError(f"data.check is '{how}'; allowed: {', '.join(HOW)}")
    if how == "none":
        return 0
    paths = list(dict.fromkeys(pictures_of(datamanager)))
    with ThreadPoolExecutor(max(_THREADS, workers)) as pool:
        found = pool.map(lambda path: damage_of(path, decoded=how == "all"), paths)
        bar = tqdm(found, "looking at pictures", len(paths), unit=" pictures", disable=None, leave=False)
        damages = {path: damage for path, damage in zip(paths, bar, strict=True) if damage}
    if damages:
        shown = "; ".join(f"'{path}': {damage}" for path, damage in list(damages.items())[:_SHOWN])
        more = "; ..." if len(damages) > _SHOWN else ""
        raise DataError(
            f"{len(damages)} of {len(paths)} pictures cannot be read: {shown}{more}; replace these files, or take them "
            "out of the data set"
        )
    return len(paths)


def pictures_of(datamanager: Any) -> Iterator[str]:
    """Paths of all pictures of training, queries and galleries; one that is in several comes several times."""
    parts = [part for target in datamanager.test_dataset.values() for part in target.values()]
    for items in (datamanager.train_loader.dataset.train, *parts):
        for paths, *_ in items:
            yield from _each(paths)


def _each(paths: str | Sequence[str]) -> Sequence[str]:
    return [paths] if isinstance(paths, str) else paths


def counts_of(items: Sequence[Item]) -> str:
    """`48 pictures of 8 identities by 3 cameras`, for messages."""
    pictures = sum(len(_each(item[0])) for item in items)
    identities, cameras = (len({item[place] for item in items}) for place in (1, 2))
    return f"{pictures} pictures of {identities} identities by {cameras} cameras"


def data_digest(items: Iterable[Item]) -> str:
    """Digest of pictures: their names, sizes, identities and cameras, in any order.

    Names are relative to the common folder of all pictures, so that a set may be moved. A picture that was added,
    removed, renamed or replaced by one of another size gives another digest.
    """
    rows = [(path, pid, camera) for paths, pid, camera, *_ in items for path in _each(paths)]
    common = os.path.commonpath([os.path.dirname(path) for path, _, _ in rows]) if rows else ""
    counted: Counter[str] = Counter()
    for path, pid, camera in rows:
        place = Path(path)
        size = place.stat().st_size if place.exists() else -1
        counted[f"{os.path.relpath(path, common)}|{size}|{int(pid)}|{int(camera)}"] += 1
    text = "\n".join(f"{line}|{count}" for line, count in sorted(counted.items()))
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:16]
