"""The upper garment, with its pattern wrapped around the body."""

import math

import numpy as np

from .canvas import polygon_mask
from .clothes import Wardrobe
from .identity import Appearance
from .pose import SHOULDER_Y, Body, View
from .texture import paint


def _outline(appearance: Appearance, body: Body, view: View) -> tuple[np.ndarray, np.ndarray]:
    """Middles, shape (rows, 2), and half-widths, shape (rows,), of the garment from collar to hem, in pixels."""
    long = appearance.lower == "coat"
    hem = body.hip_y + (0.2 if long else 0.035)
    rows = (
        (SHOULDER_Y - 0.018, body.shoulder * 0.5, body.depth * 0.5),
        (SHOULDER_Y, body.shoulder * 0.93, body.depth * 0.8),
        (SHOULDER_Y + 0.05, body.shoulder * 1.02, body.depth),
        (0.36, body.shoulder * 0.86, body.depth * 0.98),
        (body.hip_y - 0.03, body.hip * 1.05, body.depth),
        (hem, body.hip * (1.25 if long else 1.1), body.depth * 1.1),
    )
    middles = np.array([view.project((0.0, y, 0.0)) for y, _, _ in rows])
    return middles, np.array([view.half_width(x, z) for _, x, z in rows])


def draw_torso(layer: np.ndarray, appearance: Appearance, body: Body, wardrobe: Wardrobe, view: View) -> None:
    """Draws the upper garment on a layer in place.

    The garment is a stack of ellipses: at the sideways position u in [-1, 1] of a row one sees the body angle
    arcsin(u) - yaw, which is where the pattern is looked up.
    """
    middles, halves = _outline(appearance, body, view)
    reach = np.stack([halves, np.zeros_like(halves)], axis=1)
    points = np.concatenate([middles - reach, (middles + reach)[::-1]])
    low = np.maximum(np.floor(points.min(axis=0)).astype(int) - 1, 0)
    high = np.minimum(np.ceil(points.max(axis=0)).astype(int) + 2, (layer.shape[1], layer.shape[0]))
    if (high <= low).any():
        return
    rows, columns = np.arange(low[1], high[1]) + 0.5, np.arange(low[0], high[0]) + 0.5
    middle = np.interp(rows, middles[:, 1], middles[:, 0])[:, None]
    half = np.interp(rows, middles[:, 1], halves)[:, None]
    sideways = np.clip((columns[None] - middle) / (half + 1e-3), -0.999, 0.999)
    angle = np.mod(np.arcsin(sideways) - view.yaw + math.pi, 2.0 * math.pi) - math.pi
    # Measured in body heights, not in garment lengths: a coat shows the same weave as a shirt, only more of it.
    height = ((rows - middles[0, 1]) / (view.size * 0.375))[:, None]
    colours = np.stack([wardrobe.upper, wardrobe.accent]).astype(np.float32)
    cloth = paint(appearance.pattern, appearance.pattern_scale, angle, height, colours)
    cloth = np.clip(cloth * (1.06 - 0.28 * sideways**2)[..., None], 0.0, 255.0)
    cover = polygon_mask(high[1] - low[1], high[0] - low[0], points - low)[..., None]
    under = layer[low[1] : high[1], low[0] : high[0]]
    painted = np.concatenate([cloth, np.full_like(cloth[..., :1], 255.0)], axis=2)
    under[...] = np.round(under * (1.0 - cover) + painted * cover)
