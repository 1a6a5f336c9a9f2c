"""Market-1501's layout, which DukeMTMC-reID has too, as image data sets of torchreid: for these two and for own data.

Three folders hold the pictures to train on, the queries and the gallery. A name such as `0002_c1s1_000451_03.jpg`
begins with the identity and the camera. torchreid's own classes read pictures of the two published data sets alone: one
digit of a camera, up to six cameras and 1501 identities, `.jpg`. Here any numbers are allowed, so that users can lay
out their own pictures like this, and files that do not fit are reported instead of left out.

Example: training pictures of the identities 7, 3 and -1 have the labels 1 and 0; -1 is junk and left out. Camera 1 is
torchreid's camera 0; where any picture is of a camera 0, cameras have their own numbers.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any, ClassVar

from ..errors import DataError
from ..host.compat import torchreid
from ..host.data import register_dataset
from .market_layout import GALLERY_FOLDER, QUERY_FOLDER, TRAIN_FOLDER
from .protocols import protocol_folder

FOLDER_OF_PART = {"train": TRAIN_FOLDER, "query": QUERY_FOLDER, "gallery": GALLERY_FOLDER}
DISTRACTORS = "images"  # of the 500,000 that belong to Market-1501
PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
JUNK = -1
_NAME = re.compile(r"(-1|\d+)_c(\d+)", re.ASCII)
_EXPECTED = "IDENTITY_cCAMERA..., such as 0002_c1s1_000451_03.jpg"

MarketItem = tuple[str, int, int]
"""(path, identity, camera)."""


class MarketLayout(torchreid.data.ImageDataset):
    """Pictures in Market-1501's layout.

    Args:
        root: folder of all data sets.
        market1501_500k: whether the pictures of the folder `images` are in the gallery too.
        **kwargs: as for every image data set of torchreid.

    Attributes:
        variant: registered name, which determines the set's folder, see `protocols`.

    Raises:
        DataError: a folder is missing or has no pictures, a picture has a name of another kind, or a folder has the
            name of a picture.
    """

    variant: ClassVar[str]

    def __init__(self, root: str = "", market1501_500k: bool = False, **kwargs: Any) -> None:
        self.data_dir = str(protocol_folder(root, self.variant))
        parts = {part: self._pictures(part, folder) for part, folder in FOLDER_OF_PART.items()}
        if market1501_500k:
            parts["gallery"] += self._pictures("gallery", DISTRACTORS)
        first = min(1, *(camera for items in parts.values() for _, _, camera in items))
        train, query, gallery = (
            [(path, identity, camera - first) for path, identity, camera in items] for items in parts.values()
        )
        numbers = sorted({identity for _, identity, _ in train})
        labels = {identity: label for label, identity in enumerate(numbers)}
        super().__init__([(path, labels[own], camera) for path, own, camera in train], query, gallery, **kwargs)

    def _pictures(self, part: str, name: str) -> list[MarketItem]:
        """The pictures of a folder, by name, junk left out."""
        folder = Path(self.data_dir, name)
        what = f"the {part} of data set '{self.variant}', '{folder}',"
        if not folder.is_dir():
            raise DataError(
                f"{what} is no folder; put its pictures there, or set market1501.use_500k_distractors=False"
            )
        with os.scandir(folder) as entries:
            visible = [entry for entry in entries if not entry.name.startswith(".")]
        visible.sort(key=lambda entry: entry.name)
        found = [entry for entry in visible if entry.name.lower().endswith(PICTURE_SUFFIXES)]
        kept = [item for item in _items(what, found) if item[1] != JUNK]
        if not kept:
            other = f"it has {len(visible)} entries, such as '{visible[0].name}'" if visible else "it is empty"
            raise DataError(
                f"{what} has no picture {_EXPECTED} ({', '.join(PICTURE_SUFFIXES)}; identity {JUNK} is junk): {other}; "
                "put pictures there, or give the folder that contains the data set with --root (data.root)"
            )
        return kept


class Market1501(MarketLayout):
    """Market-1501 (Zheng et al., ICCV 2015), or own pictures in its place."""

    variant = "market1501"
    dataset_dir = "market1501"
    _junk_pids: ClassVar[list[int]] = [0, JUNK]


class DukeMTMCreID(MarketLayout):
    """DukeMTMC-reID (Zheng et al., ICCV 2017), or own pictures in its place."""

    variant = "dukemtmcreid"
    dataset_dir = "dukemtmc-reid"

    def __init__(self, root: str = "", market1501_500k: bool = False, **kwargs: Any) -> None:
        super().__init__(root, **kwargs)  # the distractors belong to Market-1501


def register() -> None:
    """Puts both in the place of torchreid's own classes of these names; doing it again changes nothing."""
    for dataset in (Market1501, DukeMTMCreID):
        register_dataset(dataset.variant, dataset, "image", replace=True)


def _items(what: str, found: list[os.DirEntry[str]]) -> list[MarketItem]:
    """Pictures by their names; raises DataError for folders with such names, and for names of another kind."""
    folders = [entry.name for entry in found if entry.is_dir()]
    if folders:
        raise DataError(
            f"{what} has a folder '{folders[0]}' with the name of a picture{_more(folders)}; move it away, or rename it"
        )
    matches = [(entry, _NAME.match(entry.name)) for entry in found]
    strange = [entry.name for entry, match in matches if match is None]
    if strange:
        raise DataError(
            f"{what} has a picture '{strange[0]}'{_more(strange)}, whose name does not say whom it shows; expected: "
            f"{_EXPECTED} (identity {JUNK} for junk); rename it, or move it away"
        )
    return [(entry.path, int(match[1]), int(match[2])) for entry, match in matches if match]


def _more(names: list[str]) -> str:
    return f" and {len(names) - 1} more" if len(names) > 1 else ""
