"""Settings of the synthetic pedestrians, checked when they are made."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar

from ...errors import ConfigError
from ...registry import nearest

# Part of the digest: raise it with every change of the drawing, so that older folders are not mistaken for new ones.
DRAWING_VERSION = 1

# torchreid ranks the first 50 gallery pictures of every query; its curves become ragged below that.
MIN_GALLERY_PER_QUERY = 51

_WHOLE_RANGES = {
    "seed": (0, 2**31 - 1),
    "height": (32, 1024),
    "width": (16, 512),
    "train_identities": (2, 4999),
    "test_identities": (2, 4999),
    "cameras": (2, 9),
    "images_per_camera": (2, 99),
    "walks": (1, 9),
    "family_size": (1, 64),
}
_REAL_RANGES = {
    "form_change": (0.0, 1.0),
    "colour_change": (0.0, 1.0),
    "min_differences": (0.0, 4.0),
    "camera_cast": (0.0, 2.0),
    "white_balance": (0.0, 2.0),
    "occlusion": (0.0, 1.0),
    "view": (0.0, 1.0),
    "resolution_loss": (0.0, 1.5),
    "noise": (0.0, 2.0),
    "jitter": (0.0, 2.0),
    "clutter": (0.0, 4.0),
}


AnySettings = TypeVar("AnySettings", bound="SyntheticSettings")


def _check(name: str, value: object, limits: tuple[float, float], whole: bool) -> None:
    """Raises ConfigError unless value is a number of the wanted kind within limits (both included)."""
    low, high = limits
    kind = "a whole number" if whole else "a number"
    allowed = int if whole else (int, float)
    if isinstance(value, bool) or not isinstance(value, allowed) or not low <= value <= high:
        raise ConfigError(f"synthped: {name} is {value!r}, but must be {kind} from {low} to {high}")


def check_ranges(settings: "SyntheticSettings", whole: Mapping[str, tuple], real: Mapping[str, tuple]) -> None:
    """Checks that settings are numbers within their ranges, whole ones and real ones; real ones become floats."""
    for name, limits in whole.items():
        _check(name, getattr(settings, name), limits, whole=True)
    for name, limits in real.items():
        _check(name, getattr(settings, name), limits, whole=False)
        # One spelling per value: 1 and 1.0 must give one digest.
        object.__setattr__(settings, name, float(getattr(settings, name)))


@dataclasses.dataclass(frozen=True)
class SyntheticSettings:
    """Everything that determines the look and the number of pictures.

    Attributes:
        seed: Seed of the data; another seed is another set of people, cameras and walks.
        height: Height of a picture in pixels; people are drawn at this size, not resized to it.
        width: Width of a picture in pixels.
        train_identities: People to train on.
        test_identities: Other people, in query and gallery.
        cameras: Cameras; every identity walks past all of them.
        images_per_camera: Pictures of one identity at one camera. In the test split the first is the query.
        walks: Separate walks over which these pictures are spread; direction, light and occluder change per walk.
        family_size: Look-alikes per family: they share garment types and, mostly, colours. 1 = no look-alikes.
        form_change: Probability that a look-alike draws its own pattern, hair style, hat, bag, sleeves, and so on.
        colour_change: Probability that a look-alike draws its own second colours (accent, hair, bag, shoes, skin) and
            its own kind of pattern. High values make colours alone distinguish look-alikes.
        min_differences: Least visible difference between two look-alikes, in units of one clear attribute.
        camera_cast: Strength of the colour cast, exposure and contrast of a camera.
        white_balance: Strength of the colour cast and exposure that changes from walk to walk, which no statistic of
            the camera can take out.
        occlusion: Probability that an object is in front of a walk.
        view: Spread of the walking direction around the camera's own; 1 = any direction.
        resolution_loss: Strength of the resolution loss of the cameras.
        noise: Strength of sensor noise and JPEG compression.
        jitter: Strength of the shift and scale error of the box around a person.
        clutter: Twice the mean number of distant people in the background.

    Raises:
        ConfigError: A value of a wrong type, out of its range, or a test split too small for torchreid's ranking.
    """

    seed: int = 0
    height: int = 128
    width: int = 64
    train_identities: int = 192
    test_identities: int = 64
    cameras: int = 6
    images_per_camera: int = 2
    walks: int = 2
    family_size: int = 4
    form_change: float = 0.9
    colour_change: float = 0.7
    min_differences: float = 3.5
    camera_cast: float = 0.1
    white_balance: float = 0.25
    occlusion: float = 0.05
    view: float = 0.25
    resolution_loss: float = 0.05
    noise: float = 0.15
    jitter: float = 0.2
    clutter: float = 0.2

    # Items of galleries, and their number per identity and camera.
    _gallery_items: ClassVar[tuple[str, str]] = ("pictures", "images_per_camera")

    def __post_init__(self):
        check_ranges(self, _WHOLE_RANGES, _REAL_RANGES)
        self._check_gallery()

    def _check_gallery(self) -> None:
        items, name = self._gallery_items
        count = getattr(self, name)
        gallery = (self.test_identities * self.cameras - 1) * (count - 1)
        if gallery < MIN_GALLERY_PER_QUERY:
            raise ConfigError(
                f"synthped: {self.test_identities} test identities x {self.cameras} cameras x "
                f"{count} {items} leave {gallery} gallery {items} per query, but torchreid's ranking needs "
                f"{MIN_GALLERY_PER_QUERY} or more; raise test_identities, cameras or {name}"
            )

    @property
    def turning(self) -> float:
        """People only turn in tracklets, see `VideoSettings`."""
        return 0.0

    @property
    def crossing(self) -> float:
        """People and objects only pass in front in tracklets."""
        return 0.0

    @property
    def last_frame(self) -> int:
        """Walks that may be crossed: only in tracklets."""
        return 0

    def as_dict(self) -> dict[str, Any]:
        """The settings as plain numbers by name, in the order of the attributes."""
        return dataclasses.asdict(self)

    def digest(self) -> str:
        """Ten hexadecimal digits that change with every setting and with the version of the drawing."""
        text = json.dumps({"drawing": DRAWING_VERSION, **self.as_dict()}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:10]

    def replace(self: AnySettings, **changes: Any) -> AnySettings:
        """These settings with some of them changed.

        Raises:
            ConfigError: A name that is no setting (the nearest one is named), or a value that is not allowed.
        """
        names = [field.name for field in dataclasses.fields(self)]
        for name in changes:
            if name not in names:
                raise ConfigError(
                    f"synthped: unknown setting '{name}'{nearest(name, names)} (settings: {', '.join(names)})"
                )
        return dataclasses.replace(self, **changes)


# Against the shortcut of distinguishing people by colour alone, light that changes from walk to walk lowers the
# colour-stripe baseline (datasets/stripes.py), which knows each camera's statistics, by 8 to 10 points. Look-alikes
# that share their second colours too (a small colour_change) lowered it by less than 3, so they are left out here.
QUICK = SyntheticSettings()
PRESETS = {
    "quick": QUICK,
    "medium": QUICK.replace(
        min_differences=2.0,
        camera_cast=0.45,
        white_balance=0.5,
        occlusion=0.15,
        view=0.5,
        resolution_loss=0.4,
        noise=0.6,
        jitter=0.6,
        clutter=0.5,
    ),
}
# Narrow networks keep up with wide ones where few people are learnt, or where pictures of a person are alike: with 768
# of them and the disturbances of medium, half a ResNet-18 came within 0.4 points of the whole one.
PRESETS["hard"] = PRESETS["medium"].replace(
    train_identities=768,
    test_identities=128,
    family_size=8,
    min_differences=1.5,
    camera_cast=1.5,
    white_balance=1.0,
    occlusion=0.4,
    view=1.0,
    resolution_loss=0.6,
    noise=0.9,
    jitter=1.3,
    clutter=3.0,
)


def preset(name: str, **changes: Any) -> SyntheticSettings:
    """AnySettings of a preset, some of them changed: `preset("quick", seed=3, height=256, width=128)`.

    Raises:
        ConfigError: An unknown preset or setting, or a value that is not allowed.
    """
    return from_presets(PRESETS, name, changes)


def from_presets(presets: Mapping[str, AnySettings], name: str, changes: Mapping[str, Any]) -> AnySettings:
    """AnySettings of a preset in a table, some of them changed; errors as of `preset`."""
    if name not in presets:
        raise ConfigError(f"synthped: unknown preset '{name}'{nearest(name, presets)} (presets: {', '.join(presets)})")
    return presets[name].replace(**changes)
