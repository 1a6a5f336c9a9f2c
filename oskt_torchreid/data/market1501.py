"""Market-1501's layout, read without the limits of torchreid's own readers.

Those take identities to 1501, six cameras (eight of DukeMTMC-reID) of one digit, and `.jpg` alone; pictures of one's
own in this layout have others. The classes of this module take their place under the names `market1501` and
`dukemtmcreid`. Of the real data sets they give the same pictures with the same labels.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, ClassVar

from ..errors import DataError
from ..host.compat import torchreid
from ..host.data import replace_dataset
from .market_layout import GALLERY_FOLDER, QUERY_FOLDER, TRAIN_FOLDER

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
JUNK = -1
_NAME = re.compile(r"(-1|\d{1,9})_c([1-9]\d{0,5})(?!\d)", re.ASCII)
_SHOWN = 3

Item = tuple[str, int, int]
"""(path, identity, camera from 0)."""


class MarketLayout(torchreid.data.ImageDataset):
    """Pictures `<identity>_c<camera>...` in three folders; identity -1 is left out, 0 is the background.

    Args:
        root: folder of all data sets.
        market1501_500k: whether the pictures of the folder `images` join the gallery.
        **kwargs: as for every data set of torchreid.

    Attributes:
        dataset_dir: of the class: folder below the root; of an object: its path.
        inner: folder within that one that the parts lie in, where it is there.

    Raises:
        DataError: a folder is missing or has no pictures, or a picture's name does not fit.
    """

    _junk_pids: ClassVar[list[int]] = [0, JUNK]
    dataset_dir: str = "market1501"
    inner: ClassVar[str] = "Market-1501-v15.09.15"

    def __init__(self, root: str = "", market1501_500k: bool = False, **kwargs: Any) -> None:
        folder = Path(root).expanduser().absolute() / self.dataset_dir
        self.dataset_dir = str(folder)
        folder = folder / self.inner if (folder / self.inner).is_dir() else folder
        train, query, gallery = (read_part(folder / part) for part in (TRAIN_FOLDER, QUERY_FOLDER, GALLERY_FOLDER))
        if market1501_500k:
            gallery = gallery + read_part(folder / "images")
        labels = {identity: label for label, identity in enumerate(sorted({item[1] for item in train}))}
        train = [(path, labels[identity], camera) for path, identity, camera in train]
        super().__init__(train, query, gallery, **kwargs)


class Market1501(MarketLayout):
    """Market-1501 (Zheng et al., ICCV 2015), and pictures of one's own in its layout."""


class DukeMTMCreID(MarketLayout):
    """DukeMTMC-reID (Ristani et al., ECCVW 2016), in the same layout."""

    _junk_pids: ClassVar[list[int]] = []
    dataset_dir = "dukemtmc-reid"
    inner = "DukeMTMC-reID"


def read_part(folder: Path) -> list[Item]:
    """The pictures of a folder in the order of their names, those of identity -1 left out.

    Hidden files and files that are no pictures by their suffix are passed over; a folder that is named like a picture
    is told when it is read.

    Raises:
        DataError: no such folder, no picture, or names that do not fit.
    """
    try:
        names = sorted(path.name for path in folder.iterdir())
    except OSError as reason:
        raise DataError(
            f"there is no folder '{folder}' that can be read ({reason.strerror}); a set in this layout has the folders "
            f"{TRAIN_FOLDER}, {QUERY_FOLDER} and {GALLERY_FOLDER}"
        ) from reason
    names = [name for name in names if not name.startswith(".") and name.lower().endswith(SUFFIXES)]
    found = {name: _NAME.match(name) for name in names}
    strange = [name for name, match in found.items() if match is None]
    if strange:
        shown = ", ".join(map(repr, strange[:_SHOWN])) + (", ..." if len(strange) > _SHOWN else "")
        raise DataError(
            f"{len(strange)} of {len(names)} pictures in '{folder}' have names that do not fit: {shown}; they begin "
            "with identity and camera, such as 0002_c1s1_000451_03.jpg or 1600_c12_7.png (-1 or up to 9 digits, cameras "
            "from 1): rename these files, or take them out"
        )
    items = [(str(folder / name), int(match[1]), int(match[2]) - 1) for name, match in found.items()]
    items = [item for item in items if item[1] != JUNK]
    if not items:
        raise DataError(
            f"'{folder}' has no picture of anybody, so that this part is empty; expected are files with names such as "
            f"0002_c1s1_000451_03.jpg, ending in {', '.join(SUFFIXES)}"
        )
    return items


def register() -> None:
    """Puts these readers in the place of torchreid's; doing it again changes nothing."""
    replace_dataset("market1501", Market1501)
    replace_dataset("dukemtmcreid", DukeMTMCreID)
