"""One walk of one person past one camera: the shared properties of its frames."""

import dataclasses
import math

import cv2
import numpy as np

from .camera import Camera
from .canvas import new_layer, polygon
from .settings import SyntheticSettings
from .streams import Purpose, stream

# People in front of the person or in the distance are drawn from splits that are neither train nor test.
OCCLUDER_SPLIT, PASSER_BY_SPLIT = 8, 9
STRANGERS = 64


@dataclasses.dataclass(frozen=True)
class Occluder:
    """Something between the camera and the person.

    Attributes:
        kind: person, pole, wall (below) or edge (at one side).
        side: -1 = left, 1 = right.
        reach: How far into the picture it stands, as a share of the width.
        height: Upper edge of a wall as a share of the height.
        colour: Colour of a thing.
        stranger: Number of an occluding person in its split.
        yaw: Direction of an occluding person.
    """

    kind: str
    side: int
    reach: float
    height: float
    colour: np.ndarray
    stranger: int
    yaw: float


@dataclasses.dataclass(frozen=True)
class Crossing:
    """A person or object that passes between the camera and the person during the walk.

    Attributes:
        stranger: Number of a crossing person in its split; -1 = a thing.
        middle: Frame at which it is in front of the person.
        speed: Shares of the width per frame; positive = to the right.
        reach: Half the width of a thing as a share of the width of the picture.
        height: Upper edge of a thing as a share of the height.
        colour: Colour of a thing.
    """

    stranger: int
    middle: float
    speed: float
    reach: float
    height: float
    colour: np.ndarray

    def across(self, frame: int) -> float:
        """Where it is at a frame, as a share of the width."""
        return 0.5 + self.speed * (frame - self.middle)


@dataclasses.dataclass(frozen=True)
class PasserBy:
    """A small person in the background: number in its split, place across, size (shares of the picture), direction."""

    stranger: int
    across: float
    size: float
    yaw: float


@dataclasses.dataclass(frozen=True)
class Walk:
    """Properties of a walk that are constant or change steadily over its frames.

    Attributes:
        yaw, yaw_step: Direction at frame 0 and its change per frame, radians. phase, phase_step: Phase of the gait at
        frame 0 and its change per frame, radians. scene_left, scene_top, scene_step: Corner of the cut-out of the
        scene, and its shift per frame, pixels. size: Factor of the size in the box. side_light: Light from the right
        (positive) or left. light_gain: Factor per channel (blue, green, red) of this walk's light and white balance.
        occluder: The object in front of the person, if any. passers_by: People in the distance. crossing: The person or
        object that passes in front, if any.
    """

    yaw: float
    yaw_step: float
    phase: float
    phase_step: float
    scene_left: float
    scene_top: int
    scene_step: float
    size: float
    side_light: float
    light_gain: np.ndarray
    occluder: Occluder | None
    passers_by: tuple[PasserBy, ...]
    crossing: Crossing | None


def draw_walk(settings: SyntheticSettings, camera: Camera, split: int, identity: int, number: int, walk: int) -> Walk:
    """The walk of an identity past camera `number`."""
    random = stream(settings.seed, Purpose.WALK, split, identity, number, walk)
    turned = (0.0, 0.0, math.pi, random.uniform(-math.pi, math.pi))[random.integers(4)]
    scene_height, scene_width = camera.scene.shape[:2]
    # One draw for brightness and one for hue: the first dims all channels alike.
    exposure = random.normal(0.0, 0.1 * settings.camera_cast + 0.1 * settings.white_balance)
    hue = np.clip(random.normal(0.0, 1.0, 3), -2.0, 2.0) * 0.14 * settings.white_balance
    return Walk(
        yaw=camera.yaw + settings.view * (turned + random.normal(0.0, 0.4)),
        yaw_step=random.normal(0.0, 0.03 + 0.1 * settings.turning),
        phase=random.uniform(0.0, 2.0 * math.pi),
        phase_step=random.uniform(0.5, 0.8),
        scene_left=random.uniform(0.0, scene_width - settings.width * 1.3),
        scene_top=int(random.uniform(0, scene_height - settings.height)),
        scene_step=random.normal(0.0, 0.03 * settings.width),
        size=1.0 + 0.06 * random.normal(),
        side_light=camera.light + random.normal(0.0, 0.15),
        light_gain=np.exp(exposure + hue - hue.mean()),
        occluder=_draw_occluder(random) if random.random() < settings.occlusion else None,
        passers_by=tuple(_draw_passer_by(random) for _ in range(random.poisson(0.5 * settings.clutter))),
        # Drawn last, so that walks without one do not change.
        crossing=_draw_crossing(random, settings.last_frame) if random.random() < settings.crossing else None,
    )


def _draw_occluder(random: np.random.Generator) -> Occluder:
    return Occluder(
        kind=("person", "person", "pole", "wall", "edge")[random.integers(5)],
        side=(-1, 1)[random.integers(2)],
        reach=random.uniform(0.3, 0.55),
        height=random.uniform(0.6, 0.88),
        colour=random.uniform(30.0, 170.0) * np.exp(random.normal(0.0, 0.18, 3)),
        stranger=int(random.integers(STRANGERS)),
        yaw=random.uniform(-math.pi, math.pi),
    )


def _draw_crossing(random: np.random.Generator, last_frame: int) -> Crossing:
    return Crossing(
        stranger=int(random.integers(STRANGERS)) if random.random() < 0.5 else -1,
        middle=random.uniform(0.0, last_frame),
        speed=random.choice((-1.0, 1.0)) * random.uniform(0.05, 0.12),
        reach=random.uniform(0.18, 0.34),
        height=random.uniform(0.0, 0.35),
        colour=random.uniform(30.0, 170.0) * np.exp(random.normal(0.0, 0.18, 3)),
    )


def _draw_passer_by(random: np.random.Generator) -> PasserBy:
    return PasserBy(
        stranger=int(random.integers(STRANGERS)),
        across=random.uniform(0.0, 1.0),
        size=random.uniform(0.25, 0.5),
        yaw=random.uniform(-math.pi, math.pi),
    )


def thing_layer(occluder: Occluder, height: int, width: int) -> np.ndarray:
    """A layer with an occluding pole, wall or edge."""
    layer = new_layer(height, width)
    corners: list[tuple[float, float]]
    middle = 0.5 * width
    if occluder.kind == "pole":
        x = middle + occluder.side * (occluder.reach - 0.25) * width
        half = 0.06 * width
        corners = [(x - half, 0), (x + half, 0), (x + half, height), (x - half, height)]
    elif occluder.kind == "wall":
        y = occluder.height * height
        corners = [(0, y), (0.6 * width, y - 0.03 * height), (width, y), (width, height), (0, height)]
    else:
        x, end = middle + occluder.side * occluder.reach * 0.55 * width, middle + occluder.side * width
        corners = [(x, 0), (x, height), (end, height), (end, 0)]
    polygon(layer, corners, occluder.colour)
    return layer


def crossing_layer(crossing: Crossing, frame: int, height: int, width: int) -> np.ndarray:
    """A layer with a crossing thing at a frame."""
    layer = new_layer(height, width)
    middle, half, top = crossing.across(frame) * width, crossing.reach * width, crossing.height * height
    left, right = middle - half, middle + half
    polygon(layer, [(left, top), (right, top), (right, height), (left, height)], crossing.colour)
    return layer


def lit(layer: np.ndarray, side_light: float, random: np.random.Generator) -> None:
    """Scales the colours of a layer in place by uneven light with a gradient from one side."""
    height, width = layer.shape[:2]
    coarse = random.normal(0.0, 0.07, (10, 5)).astype(np.float32)
    light = 1.0 + cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    light += 0.6 * side_light * np.linspace(-1.0, 1.0, width, dtype=np.float32)
    # Premultiplied colours must not exceed the opacity.
    layer[..., :3] = np.minimum(layer[..., :3] * light[..., None], layer[..., 3:])
