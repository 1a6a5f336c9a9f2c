"""Tracklets of the synthetic pedestrians as video data sets of torchreid: `synthped_video`, `synthped_video_medium`.

Importing the package registers both names, so that `VideoDataManager(root="reid-data", sources="synthped_video",
height=128, width=64)` of torchreid draws and reads them. In the test an identity's first tracklet at each camera is a
query, the others are in the gallery.
"""

from itertools import groupby
from operator import attrgetter
from typing import Any, ClassVar

from ..host.compat import torchreid
from ..host.data import register_dataset
from .checks import Item
from .drawn_folder import drawn_folder
from .synthetic import VIDEO_PRESETS, VideoSettings
from .synthetic.renderer import TRAIN_SPLIT
from .synthped import DrawnSet, configure_variant
from .tracklet_layout import TRACKLETS, tracklet_files


class SynthPedVideo(DrawnSet, torchreid.data.VideoDataset):
    """Tracklets of synthetic pedestrians, drawn below `root` on first use.

    Args:
        root: Folder of all data sets.
        settings: What to draw; None = what `configure` set for this variant.
        **kwargs: As for every video data set of torchreid.

    Raises:
        DataError: The root cannot be written, or foreign files lie where the set belongs.
    """

    variant = "synthped_video"
    configured: ClassVar[VideoSettings] = VIDEO_PRESETS["quick"]

    def __init__(self, root: str = "", settings: VideoSettings | None = None, **kwargs: Any):
        self.settings = settings or self.configured
        self.root = root
        self.dataset_dir = str(drawn_folder(root, self.variant, self.settings, TRACKLETS))
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


class SynthPedVideoMedium(SynthPedVideo):
    """The harder set, for benchmarks."""

    variant = "synthped_video_medium"
    configured = VIDEO_PRESETS["medium"]


VARIANTS: dict[str, type[SynthPedVideo]] = {
    variant.variant: variant for variant in (SynthPedVideo, SynthPedVideoMedium)
}


def register() -> None:
    """Makes all variants known to torchreid; doing it again changes nothing."""
    for name, variant in VARIANTS.items():
        register_dataset(name, variant, "video")


def configure(settings: VideoSettings, variant: str = "synthped_video") -> None:
    """Sets what a registered name stands for from now on; data sets that were made before stay as they are.

    Args:
        settings: What to draw when torchreid next makes the data set.
        variant: "synthped_video" or "synthped_video_medium".

    Raises:
        ConfigError: An unknown variant, or settings of another type.
    """
    configure_variant(VARIANTS, settings, variant)
