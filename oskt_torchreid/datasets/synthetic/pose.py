"""Where the parts of a walking body are, in the body's own space and on the picture.

Body space: unit = body height; x towards the person's left, y down from the top of the head, z forward.
"""

import dataclasses
import math

import numpy as np

from .identity import Appearance

SHOULDER_Y = 0.178
NECK_Y = 0.15
HEAD_Y = 0.075
ANKLE_Y = 0.955
LEFT, RIGHT = 1, -1

Place = tuple[float, float, float]


@dataclasses.dataclass(frozen=True)
class View:
    """How a body is seen.

    Attributes:
        yaw: Direction of the body in radians; 0 = facing the camera, pi = seen from behind.
        pitch: How far the camera looks down: shift on the picture per unit of depth.
        centre: Column of the body's axis in pixels.
        top: Row of the top of the head in pixels.
        size: Body height in pixels.
        lean: Forward lean per unit of height above the hips.
        bob: Vertical shift of the whole body in body heights.
        hip: Height of the hips, y in body space.
    """

    yaw: float
    pitch: float
    centre: float
    top: float
    size: float
    lean: float
    bob: float
    hip: float

    @property
    def facing(self) -> float:
        """1 = from the front, 0 = from a side, -1 = from behind."""
        return math.cos(self.yaw)

    @property
    def aside(self) -> float:
        """Shift of the front to the right on the picture: 1 = walking right, -1 = walking left."""
        return math.sin(self.yaw)

    def depth(self, place: Place) -> float:
        """How near a place of the body is to the camera, in body heights; larger = nearer."""
        return place[2] * self.facing - place[0] * self.aside

    def project(self, place: Place) -> np.ndarray:
        """Pixel (x, y) of a place of the body."""
        x, y, z = place
        across = x * self.facing + (z + self.lean * (self.hip - y)) * self.aside
        return np.array(
            [
                self.centre + self.size * across,
                self.top + self.size * (y + self.bob + self.depth(place) * self.pitch),
            ]
        )

    def half_width(self, x: float, z: float) -> float:
        """Half the width in pixels of an upright cylinder with these half-axes in body heights."""
        return self.size * math.hypot(x * self.facing, z * self.aside)


@dataclasses.dataclass(frozen=True)
class Body:
    """Proportions of one identity in body heights: half-widths, radii, and the height of the joints."""

    shoulder: float
    hip: float
    depth: float
    head: float
    thigh: float
    calf: float
    arm: float
    hip_y: float
    knee_y: float

    @classmethod
    def of(cls, appearance: Appearance) -> "Body":
        """The proportions of an identity."""
        build_trait, shoulder_trait, hip_trait, head_trait, leg_trait, _ = appearance.body
        build = 1.0 + 0.15 * build_trait
        hip_y = 0.5 + 0.02 * leg_trait
        return cls(
            shoulder=0.108 * build * (1.0 + 0.06 * shoulder_trait),
            hip=0.082 * build * (1.0 + 0.06 * hip_trait),
            depth=0.068 * build,
            head=0.064 * (1.0 + 0.05 * head_trait),
            thigh=0.05 * build,
            calf=0.034 * build,
            arm=0.031 * build,
            hip_y=hip_y,
            knee_y=hip_y + 0.235,
        )


@dataclasses.dataclass(frozen=True)
class Leg:
    """Joints of one leg."""

    side: int
    hip: Place
    knee: Place
    ankle: Place


@dataclasses.dataclass(frozen=True)
class Arm:
    """Joints of one arm."""

    side: int
    shoulder: Place
    elbow: Place
    wrist: Place


def leg_at(appearance: Appearance, body: Body, side: int, phase: float) -> Leg:
    """One leg at a phase of the gait, radians; the legs are half a turn apart."""
    own_phase = phase if side == RIGHT else phase + math.pi
    step = 0.42 + 0.12 * appearance.gait[1]
    thigh = step * math.sin(own_phase)
    shin = thigh - (0.12 + 1.05 * step * max(0.0, math.cos(own_phase)))
    upper, lower = body.knee_y - body.hip_y, ANKLE_Y - body.knee_y
    x = side * body.hip * 0.55
    knee = (x, body.hip_y + upper * math.cos(thigh), upper * math.sin(thigh))
    ankle = (x * 0.92, knee[1] + lower * math.cos(shin), knee[2] + lower * math.sin(shin))
    return Leg(side, (x, body.hip_y, 0.0), knee, ankle)


def arm_at(appearance: Appearance, body: Body, side: int, phase: float) -> Arm:
    """One arm at a phase of the gait; it swings against the leg of its side."""
    own_phase = phase if side == LEFT else phase + math.pi
    swing = (0.38 + 0.2 * appearance.gait[2]) * math.sin(own_phase)
    bend = swing + 0.25 + 0.15 * appearance.gait[3] + 0.2 * max(0.0, math.sin(own_phase))
    length, out = 0.155, body.shoulder * 0.97
    shoulder = (side * out, SHOULDER_Y + 0.022, 0.0)
    elbow = (side * (out + 0.018), shoulder[1] + length * math.cos(swing), length * math.sin(swing))
    wrist = (side * (out + 0.014), elbow[1] + length * math.cos(bend), elbow[2] + length * math.sin(bend))
    return Arm(side, shoulder, elbow, wrist)
