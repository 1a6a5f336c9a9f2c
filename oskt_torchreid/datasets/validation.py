"""Validation without the test set: some training identities are held out, and replace query and gallery.

Learning rates and other choices are made on them; the identities that results are reported on are not looked at.

Example: identities a, b, c, d with pictures of two cameras. A share of 0.5 holds two of them out, say a and c. Training
sees b and d (labels 0 and 1); of a and of c the first picture of each camera is a query, the others are the gallery.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import DataError
from .checks import Item
from .fewshot import few_identities, kept_count
from .variants import Dataset, register_variant, replace_parts


def validate_on_some(dataset: Dataset, share: float, seed: int) -> None:
    """Puts some training identities of a data set in the place of query and gallery, in place.

    Args:
        dataset: of torchreid.
        share: of the training identities that are held out.
        seed: of the draw.
    """
    train, query, gallery = hold_out(dataset.train, share, seed)
    replace_parts(dataset, train=train, query=query, gallery=gallery)


def hold_out(items: Sequence[Item], share: float, seed: int) -> tuple[list[Item], list[Item], list[Item]]:
    """Training pictures, queries and gallery.

    Args:
        items: (path, identity, camera, ...) of every training picture, or (paths, ...) of every tracklet.
        share: of the identities that are held out; the number that stays in training is rounded down.
        seed: decides which.

    Returns:
        Pictures of the identities that stay, relabelled from 0 in the order of their files; of the others the first
        picture of each identity and camera; and the rest of theirs, the gallery.

    Raises:
        DataError: a share that leaves no identity to train on.
    """
    items = [(tuple(paths) if isinstance(paths, list) else paths, *labels) for paths, *labels in items]
    identities = len({identity for _, identity, *_ in items})
    if kept_count(identities, 1 - share) == 0:
        raise DataError(
            f"validation.share {share:g} of {identities} training identities leaves none to train on; lower it"
        )
    train = few_identities(items, 1 - share, seed)
    kept = {path for path, *_ in train}
    query: dict[tuple[int, int], Item] = {}
    gallery: list[Item] = []
    for item in sorted(item for item in items if item[0] not in kept):
        first = query.setdefault((item[1], item[2]), item)
        if first is not item:
            gallery.append(item)
    if not gallery:
        raise DataError(
            f"validation.share {share:g} holds out {len(query)} pictures that leave no gallery; raise the share, or "
            "use a data set with several pictures of an identity at a camera"
        )
    return train, list(query.values()), gallery


def validation_dataset(name: str, share: float, seed: int, kind: str = "image") -> str:
    """Registers the variant of a data set with identities held out and returns its name; doing it again is harmless.

    Args:
        name: of a registered data set.
        share: of the training identities; 0 gives `name` itself.
        seed: of the draw.
        kind: image or video.
    """
    if share == 0:
        return name
    return register_variant(name, f"validation-{share:g}-{seed}", kind, validate_on_some, share=share, seed=seed)
