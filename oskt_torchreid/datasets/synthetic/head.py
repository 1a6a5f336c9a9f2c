"""Head, hair, face and hat."""

import numpy as np

from .canvas import ellipse, limb, polygon
from .clothes import Wardrobe
from .identity import Appearance
from .pose import HEAD_Y, NECK_Y, Body, View

_GLASSES = (20.0, 20.0, 20.0)


def draw_head(layer: np.ndarray, appearance: Appearance, body: Body, wardrobe: Wardrobe, view: View) -> None:
    """Draws the head on a layer in place."""
    middle = view.project((0.0, HEAD_Y, 0.012))
    radii = np.array([view.size * body.head * 0.74, view.size * body.head])
    from_front = view.facing > -0.15
    if appearance.hair == "long" and from_front:
        _draw_long_hair(layer, middle, radii, wardrobe, view, length=2.0)
    neck = view.project((0.0, NECK_Y + 0.01, 0.0))
    limb(layer, middle, neck, (view.size * 0.026, view.size * 0.03), wardrobe.skin, 0.82)
    _draw_skull(layer, appearance, middle, radii, wardrobe, view)
    if view.facing > -0.2:
        _draw_face(layer, appearance, middle, radii, wardrobe, view)
    if appearance.hair == "long" and not from_front:
        _draw_long_hair(layer, middle, radii, wardrobe, view, length=2.3)
    if appearance.hair == "tail" and view.facing < 0.5:
        root = view.project((0.0, 0.07, -0.075))
        tip = root + np.array([-view.aside * 0.02, 0.095]) * view.size
        limb(layer, root, tip, (view.size * 0.02, view.size * 0.01), wardrobe.hair)
    if appearance.hat != "none":
        _draw_hat(layer, appearance, middle, radii, wardrobe, view)


def _draw_long_hair(
    layer: np.ndarray, middle: np.ndarray, radii: np.ndarray, wardrobe: Wardrobe, view: View, length: float
) -> None:
    """Hair down to `length` head radii below the middle; it falls away from the face."""
    back = -0.5 * view.aside * max(view.facing, 0.0) - 0.25 * view.aside
    outline = np.array([(-1.12, 0.0), (1.12, 0.0), (1.25 + back, length), (-1.25 + back, length)])
    polygon(layer, middle + outline * radii, wardrobe.hair)


def _draw_skull(
    layer: np.ndarray, appearance: Appearance, middle: np.ndarray, radii: np.ndarray, wardrobe: Wardrobe, view: View
) -> None:
    if appearance.hair == "bald":
        ellipse(layer, middle, radii, wardrobe.skin, 0.97)
        return
    ellipse(layer, middle + radii * (-0.15 * view.aside, -0.05), radii * (1.08, 1.06), wardrobe.hair)
    if view.facing > -0.35:
        wide = min(0.82 * max(view.facing, 0.0) + 0.45 * abs(view.aside) + 0.1, 0.95)
        ellipse(layer, middle + radii * (0.42 * view.aside, 0.18), radii * (wide, 0.8), wardrobe.skin)


def _draw_face(
    layer: np.ndarray, appearance: Appearance, middle: np.ndarray, radii: np.ndarray, wardrobe: Wardrobe, view: View
) -> None:
    centre = middle + radii * (0.5 * view.aside, 0.0)
    if appearance.face == "beard":
        wide = 0.55 * (0.4 + 0.6 * abs(view.facing))
        ellipse(layer, centre + radii * (0.0, 0.62), radii * (wide, 0.34), wardrobe.hair, 0.9)
    elif appearance.face == "glasses":
        wide = 0.6 * (0.35 + 0.65 * max(view.facing, 0.0))
        outline = np.array([(-wide, -0.02), (wide, -0.02), (wide, 0.17), (-wide, 0.17)])
        polygon(layer, centre + outline * radii, _GLASSES)


def _draw_hat(
    layer: np.ndarray, appearance: Appearance, middle: np.ndarray, radii: np.ndarray, wardrobe: Wardrobe, view: View
) -> None:
    ellipse(layer, middle + radii * (0.0, -0.22), radii * (1.14, 0.92), wardrobe.accent, arc=(180, 360))
    if appearance.hat == "cap" and view.facing > -0.5:
        peak = middle + radii * (1.0 * view.aside, -0.22)
        ellipse(layer, peak, radii * (0.55 + 0.4 * abs(view.aside), 0.13), wardrobe.accent, 0.8)
    elif appearance.hat == "beanie":
        ellipse(layer, middle + radii * (0.0, -1.15), radii * (0.25, 0.22), wardrobe.accent)
