"""Files that a data set's protocol needs, and where they come from; checked before torchreid reads anything."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..errors import DataError


@dataclass(frozen=True)
class Protocol:
    """Files of a data set.

    Attributes:
        folders: where the set may lie below the root; the first that exists counts.
        files: what must be in it.
        source: where they come from.
    """

    folders: tuple[str, ...]
    files: tuple[str, ...]
    source: str


_CUHK03_SOURCE = (
    "cuhk03_release with cuhk-03.mat comes with the data set (request it from its authors, "
    "www.ee.cuhk.edu.hk/~xgwang/CUHK_identification.html), the cuhk03_new_protocol_config_*.mat files of the new "
    "protocol (CUHK03-NP, 767/700 identities) from github.com/zhunzhong07/person-re-ranking, folder "
    "evaluation/data/CUHK03; splits_new_*.json is made from them on first use"
)

PROTOCOLS = {
    "market1501": Protocol(
        ("market1501/Market-1501-v15.09.15", "market1501"),
        ("bounding_box_train", "query", "bounding_box_test"),
        "unpack Market-1501-v15.09.15.zip (www.liangzheng.org/Project/project_reid.html) below market1501",
    ),
    "msmt17": Protocol(
        ("msmt17/MSMT17_V1", "msmt17/MSMT17_V2"),
        ("list_train.txt", "list_val.txt", "list_query.txt", "list_gallery.txt"),
        "request MSMT17 from www.pkuvmc.com/publications/msmt17.html and unpack it, lists included, below msmt17",
    ),
    "cuhk03": Protocol(
        ("cuhk03",),
        (
            "cuhk03_release/cuhk-03.mat",
            "cuhk03_new_protocol_config_detected.mat",
            "cuhk03_new_protocol_config_labeled.mat",
        ),
        _CUHK03_SOURCE,
    ),
}


def check_protocol(root: str | Path, name: str) -> None:
    """Checks that a data set is there with every list and split file that its protocol needs.

    Args:
        root: folder of all data sets.
        name: of a data set; those that this module does not know are left to torchreid.

    Raises:
        DataError: what is missing, the path looked at, and where to get it.
    """
    protocol = PROTOCOLS.get(name)
    if protocol is None:
        return
    base = Path(root).expanduser().absolute()
    folder = next((base / part for part in protocol.folders if (base / part).is_dir()), base / protocol.folders[0])
    missing = [file for file in protocol.files if not (folder / file).exists()]
    if missing:
        raise DataError(
            f"data set '{name}' lacks {', '.join(missing)} (looked in '{folder}'): {protocol.source}, or give the "
            "folder that contains it with --root (data.root)"
        )
