"""Draws one walking person on a layer: parts with a depth each, the far ones first."""

import math
from collections.abc import Callable
from functools import partial

import numpy as np

from .canvas import limb, polygon
from .clothes import Wardrobe
from .head import draw_head
from .identity import Appearance
from .pose import LEFT, RIGHT, SHOULDER_Y, Arm, Body, Leg, View, arm_at, leg_at
from .torso import draw_torso

# Depths of parts that are always behind or in front of the rest, whatever the direction.
_BEHIND, _IN_FRONT = -2.0, 2.0

BodyPart = tuple[float, Callable[[], None]]
"""(depth, function that draws it)."""


class Figure:
    """A person that can be drawn in any view and phase.

    Args:
        appearance: The looks.
    """

    def __init__(self, appearance: Appearance):
        self.appearance = appearance
        self.body = Body.of(appearance)
        self.wardrobe = Wardrobe.of(appearance)

    def draw(
        self, layer: np.ndarray, yaw: float, pitch: float, phase: float, centre: float, top: float, size: float
    ) -> None:
        """Draws the person on a layer in place.

        Args:
            layer: Layer of `canvas`.
            yaw, pitch, centre, top, size: See `pose.View`.
            phase: Phase of the gait in radians; two steps are a full turn.
        """
        view = View(
            yaw, pitch, centre, top, size, 0.03 * self.appearance.gait[0], 0.008 * math.cos(2 * phase), self.body.hip_y
        )
        parts: list[BodyPart] = [(_IN_FRONT, lambda: draw_head(layer, self.appearance, self.body, self.wardrobe, view))]
        parts.append((0.0, lambda: draw_torso(layer, self.appearance, self.body, self.wardrobe, view)))
        parts.append((_BEHIND + 1.5, lambda: self._draw_hips(layer, view)))
        for side in (RIGHT, LEFT):
            leg = leg_at(self.appearance, self.body, side, phase)
            arm = arm_at(self.appearance, self.body, side, phase)
            arm_depth = view.depth((side * self.body.shoulder, 0.0, 0.0)) + 0.02
            parts.append((_BEHIND + view.depth(leg.hip), partial(self._draw_leg, layer, leg, view)))
            parts.append((arm_depth, partial(self._draw_arm, layer, arm, view)))
        parts.extend(self._bag_parts(layer, view))
        for _, draw in sorted(parts, key=lambda part: part[0]):
            draw()

    def _shade(self, view: View, side: int) -> float:
        """The far limb of a person seen from a side lies in shadow."""
        return 0.84 if view.depth((side * self.body.hip, 0.0, 0.0)) < -0.03 else 1.0

    def _draw_leg(self, layer: np.ndarray, leg: Leg, view: View) -> None:
        body, wardrobe, size = self.body, self.wardrobe, view.size
        shade = self._shade(view, leg.side)
        hip, knee, ankle = view.project(leg.hip), view.project(leg.knee), view.project(leg.ankle)
        if self.appearance.lower in ("trousers", "coat"):
            limb(layer, knee, ankle, (size * body.calf * 1.1, size * body.calf * 0.85), wardrobe.lower, 0.9 * shade)
            limb(layer, hip, knee, (size * body.thigh, size * body.calf * 1.12), wardrobe.lower, shade)
            self._draw_trouser_detail(layer, leg, view, shade)
        else:
            limb(layer, knee, ankle, (size * body.calf * 0.95, size * body.calf * 0.62), wardrobe.skin, 0.88 * shade)
            limb(layer, hip, knee, (size * body.thigh * 0.95, size * body.calf), wardrobe.skin, 0.92 * shade)
            if self.appearance.lower == "shorts":
                hem = hip + 0.8 * (knee - hip)
                limb(layer, hip, hem, (size * body.thigh * 1.08, size * body.thigh), wardrobe.lower, shade)
            if self.appearance.lower_detail != "none":
                sock = ankle + 0.35 * (knee - ankle)
                limb(layer, sock, ankle, (size * body.calf * 0.76, size * body.calf * 0.7), wardrobe.accent, shade)
        x, y, z = leg.ankle
        toe, heel = view.project((x, y + 0.022, z + 0.062)), view.project((x, y + 0.022, z - 0.018))
        limb(layer, heel, toe, (size * 0.02, size * 0.016), wardrobe.shoe, shade)

    def _draw_trouser_detail(self, layer: np.ndarray, leg: Leg, view: View, shade: float) -> None:
        body, accent, size = self.body, self.wardrobe.accent, view.size
        if self.appearance.lower_detail == "stripe" and view.depth((leg.side * 1.0, 0.0, 0.0)) > -0.3:
            out = leg.side * body.calf * 0.6
            hip, knee, ankle = (view.project((x + out, y, z)) for x, y, z in (leg.hip, leg.knee, leg.ankle))
            limb(layer, hip, knee, (size * 0.008, size * 0.008), accent, shade)
            limb(layer, knee, ankle, (size * 0.008, size * 0.007), accent, 0.95 * shade)
        elif self.appearance.lower_detail == "cuff":
            knee, ankle = view.project(leg.knee), view.project(leg.ankle)
            radius = size * body.calf * 0.95
            limb(layer, ankle + 0.22 * (knee - ankle), ankle, (radius, radius), accent, 0.92 * shade)

    def _draw_arm(self, layer: np.ndarray, arm: Arm, view: View) -> None:
        body, wardrobe, size = self.body, self.wardrobe, view.size
        shade, sleeve = self._shade(view, arm.side), self.appearance.sleeve
        shoulder, elbow, wrist = view.project(arm.shoulder), view.project(arm.elbow), view.project(arm.wrist)
        hand = wrist + 0.16 * (wrist - elbow)
        cloth = wardrobe.accent if sleeve == "contrast" else wardrobe.upper
        forearm = wardrobe.skin if sleeve == "short" else cloth
        hand_radius = (size * 0.017, size * 0.017)
        limb(layer, wrist, hand, hand_radius, wardrobe.skin, 0.95 * shade)
        limb(layer, elbow, wrist, (size * body.arm * 0.8, size * body.arm * 0.62), forearm, 0.9 * shade)
        limb(layer, shoulder, elbow, (size * body.arm * 1.1, size * body.arm * 0.85), cloth, 0.93 * shade)
        if sleeve == "short":
            radius = size * body.arm * 0.82
            limb(layer, shoulder + 0.7 * (elbow - shoulder), elbow, (radius, radius), wardrobe.skin, 0.9 * shade)
        if self.appearance.bag == "hand" and arm.side == self._bag_side:
            self._draw_hand_bag(layer, hand, view, shade)

    def _draw_hips(self, layer: np.ndarray, view: View) -> None:
        body, wardrobe = self.body, self.wardrobe
        if self.appearance.lower == "skirt":
            rows: tuple[tuple[float, float, float], ...] = ((-0.07, 1.0, 1.0), (0.0, 1.15, 1.15), (0.19, 1.45, 1.7))
        else:
            rows = ((-0.06, 1.05, 1.0), (0.045, 1.03, 1.0))
        left, right = [], []
        for down, wide, deep in rows:
            middle = view.project((0.0, body.hip_y + down, 0.0))
            reach = np.array([view.half_width(body.hip * wide, body.depth * deep), 0.0])
            left.append(middle - reach)
            right.append(middle + reach)
        polygon(layer, left + right[::-1], wardrobe.lower)
        if self.appearance.lower == "skirt" and self.appearance.lower_detail != "none":
            rise = np.array([0.0, view.size * 0.035])
            polygon(layer, [left[-1] - rise, right[-1] - rise, right[-1], left[-1]], wardrobe.accent, 0.95)

    @property
    def _bag_side(self) -> int:
        return LEFT if self.appearance.left_handed else RIGHT

    def _bag_parts(self, layer: np.ndarray, view: View) -> list[BodyPart]:
        """Parts of a backpack or a shoulder bag; a hand bag hangs on its arm."""
        if self.appearance.bag == "backpack":
            depth = view.depth((0.0, 0.0, -self.body.depth - 0.1))
            parts: list[BodyPart] = [(depth, lambda: self._draw_backpack(layer, view))]
            if view.facing > 0.2:
                parts.append((0.01, lambda: self._draw_backpack_straps(layer, view)))
            return parts
        if self.appearance.bag == "shoulder":
            parts = [(0.01, lambda: self._draw_shoulder_strap(layer, view))]
            depth = view.depth((self._bag_side * self.body.hip, 0.0, 0.0))
            if depth > -0.05:
                parts.append((0.5, lambda: self._draw_shoulder_bag(layer, view)))
            return parts
        return []

    def _draw_hand_bag(self, layer: np.ndarray, hand: np.ndarray, view: View, shade: float) -> None:
        half = view.size * (0.05 * abs(view.aside) + 0.022 * abs(view.facing) + 0.01)
        top, bottom = view.size * 0.02, view.size * 0.115
        corners = [(-half, top), (half, top), (half * 1.15, bottom), (-half * 1.15, bottom)]
        polygon(layer, hand + np.array(corners), self.wardrobe.bag, shade)

    def _draw_backpack(self, layer: np.ndarray, view: View) -> None:
        middle = view.project((0.0, 0.315, -self.body.depth - 0.045))
        half = view.size * (0.085 * abs(view.facing) + 0.05 * abs(view.aside))
        tall = view.size * 0.125
        outline = np.array([(-1.0, -0.8), (-0.6, -1.0), (0.6, -1.0), (1.0, -0.8), (1.0, 1.0), (-1.0, 1.0)])
        polygon(layer, middle + outline * (half, tall), self.wardrobe.bag)
        if view.facing < -0.15:
            pocket = np.array([(-0.7, 0.15), (0.7, 0.15), (0.7, 0.85), (-0.7, 0.85)])
            polygon(layer, middle + pocket * (half, tall), self.wardrobe.bag * 0.7 + 20.0)

    def _draw_backpack_straps(self, layer: np.ndarray, view: View) -> None:
        body = self.body
        for side in (RIGHT, LEFT):
            top = view.project((side * body.shoulder * 0.5, SHOULDER_Y - 0.01, body.depth * 0.7))
            bottom = view.project((side * body.shoulder * 0.62, 0.36, body.depth))
            limb(layer, top, bottom, (view.size * 0.012, view.size * 0.01), self.wardrobe.bag, 0.9)

    def _draw_shoulder_strap(self, layer: np.ndarray, view: View) -> None:
        body, side = self.body, self._bag_side
        near = math.copysign(body.depth, view.facing)
        top = view.project((-side * body.shoulder * 0.6, SHOULDER_Y - 0.005, near * 0.7))
        bottom = view.project((side * body.shoulder * 0.95, body.hip_y - 0.04, near * 0.4))
        limb(layer, top, bottom, (view.size * 0.009, view.size * 0.009), self.wardrobe.bag, 0.85)

    def _draw_shoulder_bag(self, layer: np.ndarray, view: View) -> None:
        middle = view.project((self._bag_side * self.body.shoulder * 1.12, self.body.hip_y + 0.03, 0.0))
        half = view.size * (0.065 * abs(view.aside) + 0.03 * abs(view.facing) + 0.012)
        tall = view.size * 0.055
        corners = np.array([(-half, -tall), (half, -tall), (half, tall), (-half, tall)])
        polygon(layer, middle + corners, self.wardrobe.bag)
        flap = np.array([(-half, -tall), (half, -tall), (half, -0.1 * tall), (-half, -0.1 * tall)])
        polygon(layer, middle + flap, self.wardrobe.bag * 0.75 + 12.0)
