"""Files that a data set's protocol needs, and their sources; checked before torchreid reads anything."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..errors import DataError


@dataclass(frozen=True)
class Protocol:
    """Files of a data set.

    Attributes:
        folders: folders of the set below the root; the first that exists counts.
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

_ATRW_SOURCE = (
    "unpack atrw_reid_train.tar.gz and atrw_anno_reid_train.tar.gz (lila.science/datasets/atrw) into the folder atrw"
)

PROTOCOL_FILES = {
    "market1501": Protocol(
        ("market1501/Market-1501-v15.09.15", "market1501"),
        ("bounding_box_train", "query", "bounding_box_test"),
        "unpack Market-1501-v15.09.15.zip (www.liangzheng.org/Project/project_reid.html) below market1501",
    ),
    "dukemtmcreid": Protocol(
        ("dukemtmc-reid/DukeMTMC-reID", "dukemtmc-reid"),
        ("bounding_box_train", "query", "bounding_box_test"),
        "unpack DukeMTMC-reID.zip (github.com/layumi/DukeMTMC-reID_evaluation) below dukemtmc-reid",
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
    "mars": Protocol(
        ("mars",),
        (
            "bbox_train",
            "bbox_test",
            "info/train_name.txt",
            "info/test_name.txt",
            "info/tracks_train_info.mat",
            "info/tracks_test_info.mat",
            "info/query_IDX.mat",
        ),
        "unpack bbox_train.zip and bbox_test.zip of MARS (zheng-lab.cecs.anu.edu.au/Project/project_mars.html) below "
        "mars, and put the folder info of github.com/liangzheng06/MARS-evaluation next to them",
    ),
    "dukemtmcvidreid": Protocol(
        ("dukemtmc-vidreid",),
        ("DukeMTMC-VideoReID/train", "DukeMTMC-VideoReID/query", "DukeMTMC-VideoReID/gallery"),
        "unpack DukeMTMC-VideoReID.zip (github.com/Yu-Wu/DukeMTMC-VideoReID) below dukemtmc-vidreid",
    ),
    "veri776": Protocol(
        ("veri776", "VeRi", "VeRi776", "VeRi-776"),
        (
            "image_train",
            "image_query",
            "image_test",
            "name_train.txt",
            "name_query.txt",
            "name_test.txt",
            "test_track.txt",
        ),
        "request VeRi-776 (vehiclereid.github.io/VeRi) and unpack it below veri776",
    ),
    "atrw": Protocol(("atrw", "ATRW"), ("train", "reid_list_train.csv"), _ATRW_SOURCE),
    "atrw_challenge": Protocol(
        ("atrw", "ATRW"),
        ("train", "reid_list_train.csv", "test", "gt_test_plain.json"),
        f"{_ATRW_SOURCE}; likewise atrw_reid_test.tar.gz, and gt_test_plain.json of github.com/cvwc2019/ATRWEvalScript",
    ),
}


def check_protocol(root: str | Path, name: str) -> None:
    """Checks that a data set is there, as `protocol_folder` does; sets without a protocol are left to torchreid."""
    if name in PROTOCOL_FILES:
        protocol_folder(root, name)


def protocol_folder(root: str | Path, name: str) -> Path:
    """The folder of a data set, with every list and split file that its protocol needs.

    Args:
        root: folder of all data sets.
        name: of `PROTOCOL_FILES`.

    Raises:
        DataError: missing files; the message gives the path and their source.
    """
    protocol = PROTOCOL_FILES[name]
    base = Path(root).expanduser().absolute()
    folder = next((base / part for part in protocol.folders if (base / part).is_dir()), base / protocol.folders[0])
    missing = [file for file in protocol.files if not (folder / file).exists()]
    if missing:
        raise DataError(
            f"data set '{name}' lacks {', '.join(missing)} (looked in '{folder}'): {protocol.source}, or give the "
            "folder that contains it with --root (data.root)"
        )
    return folder
