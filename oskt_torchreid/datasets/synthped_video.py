"""Tracklets of the synthetic pedestrians as video data sets of torchreid: `synthped_video`, `synthped_video_medium`.

Importing the package registers both names, so that `VideoDataManager(root="reid-data", sources="synthped_video",
height=128, width=64)` of torchreid draws and reads them. In the test an identity's first tracklet at each camera is a
query, the others are in the gallery.
"""

from itertools import groupby
from operator import attrgetter
from typing import Any

from ..host.compat import torchreid
from ..host.data import register_dataset, video_dataset_names
from .checks import Item
from .drawn_folder import drawn_folder
from .synthetic import VIDEO_PRESETS, VideoSettings
from .synthetic.renderer import TRAIN_SPLIT
from .synthped import check_variant, with_settings
from .tracklet_layout import TRACKLET_LAYOUT, tracklet_files


class SynthPedVideo(torchreid.data.VideoDataset):
    """Tracklets of synthetic pedestrians, drawn below `root` on first use.

    Args:
        root: Folder of all data sets.
        settings: What to draw.
        name: Of the registered set; the folder is named after it.
        **kwargs: As for every video data set of torchreid.

    Raises:
        DataError: The root cannot be written, or there are other files in the set's folder.
    """

    drawn_on_first_use = True  # the folder need not be there beforehand

    def __init__(
        self,
        root: str = "",
        settings: VideoSettings = VIDEO_PRESETS["quick"],
        name: str = "synthped_video",
        **kwargs: Any,
    ):
        self.settings = settings
        self.root = root
        self.dataset_dir = str(drawn_folder(root, name, settings, TRACKLET_LAYOUT))
        super().__init__(*self._listing(), **kwargs)

    def _listing(self) -> tuple[list, list, list]:
        """(paths, person, camera) of train, query and gallery; train persons count from 0, cameras too."""
        train: list[Item] = []
        query: list[Item] = []
        gallery: list[Item] = []
        tracklet = attrgetter("split", "identity", "person", "camera", "walk")
        for (split, identity, person, camera, walk), files in groupby(tracklet_files(self.settings), tracklet):
            paths = tuple(f"{self.dataset_dir}/{file.folder}/{file.name}" for file in files)
            if split == TRAIN_SPLIT:
                train.append((paths, identity, camera))
            else:
                (gallery if walk else query).append((paths, person, camera))
        return train, query, gallery


VARIANTS = {"synthped_video": VIDEO_PRESETS["quick"], "synthped_video_medium": VIDEO_PRESETS["medium"]}
"""Initial settings of the registered names; the second is the harder set, for benchmarks."""


def register() -> None:
    """Makes all variants known to torchreid; doing it again changes nothing."""
    for name, settings in VARIANTS.items():
        if name not in video_dataset_names():
            register_dataset(name, with_settings(SynthPedVideo, name, settings), "video")


def configure(settings: VideoSettings, variant: str = "synthped_video") -> None:
    """Sets the settings of a registered name from now on; existing data sets do not change.

    Args:
        settings: What to draw when torchreid next makes the data set.
        variant: "synthped_video" or "synthped_video_medium".

    Raises:
        ConfigError: An unknown variant, or settings of another type.
    """
    check_variant(VARIANTS, settings, variant)
    register_dataset(variant, with_settings(SynthPedVideo, variant, settings), "video", replace=True)
