"""Settings of synthetic tracklets, in addition to those of single pictures."""

import dataclasses
from typing import Any, ClassVar

from .settings import PRESETS, SyntheticSettings, check_ranges, from_presets

FRAME_STEP = 2
"""Frames of a walk from one picture of its tracklet to the next; a turn of the gait takes four to six pictures."""

_WHOLE_RANGES = {"frames": (2, 49)}
_REAL_RANGES = {"turning": (0.0, 1.0), "crossing": (0.0, 1.0)}


@dataclasses.dataclass(frozen=True)
class VideoSettings(SyntheticSettings):
    """AnySettings of tracklets, one per walk: `cameras` x `walks` of each identity, with `frames` pictures each.

    The set is meant to be hard for a single picture and easier for a tracklet: people turn while they walk, so frames
    show several sides, and objects that cross in front of them hide each part in some frames only.

    Attributes:
        frames: Pictures of a tracklet; `images_per_camera` is always frames * walks.
        turning: How far people turn during a walk; 1 = standard deviation of 0.26 radians per picture.
        crossing: Probability that a person or object passes in front of the person during a walk.

    Raises:
        ConfigError: As for single pictures; or too few gallery tracklets for torchreid's ranking.
    """

    frames: int = 8
    turning: float = 0.7
    crossing: float = 0.85

    _gallery_items: ClassVar[tuple[str, str]] = ("tracklets", "walks")

    def __post_init__(self):
        check_ranges(self, _WHOLE_RANGES, _REAL_RANGES)
        object.__setattr__(self, "images_per_camera", self.frames * self.walks)
        super().__post_init__()

    @property
    def last_frame(self) -> int:
        """Frame of a walk that the last picture of its tracklet shows."""
        return FRAME_STEP * (self.frames - 1)


def _video(name: str, **changes: Any) -> VideoSettings:
    sizes = {"train_identities": 80, "test_identities": 32, "cameras": 4}
    return VideoSettings(**{**PRESETS[name].as_dict(), **sizes, **changes})


# A small network trained on single pictures of "quick" (64x32, ten epochs, one seed) reaches an mAP of 76.9 from
# tracklet to tracklet, 69.3 from one picture to tracklet and 60.2 from picture to picture; with turning 0.5 and
# crossing 0.6 the first two are 80.5 and 75.2.
VIDEO_PRESETS = {"quick": _video("quick"), "medium": _video("medium", turning=0.9, crossing=0.95)}
"""As difficult in everything else as the presets of single pictures."""


def video_preset(name: str, **changes: Any) -> VideoSettings:
    """AnySettings of a preset of tracklets, some of them changed; errors as of `settings.preset`."""
    return from_presets(VIDEO_PRESETS, name, changes)
