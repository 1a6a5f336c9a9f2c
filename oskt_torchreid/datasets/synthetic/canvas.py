"""Drawing with sub-pixel, anti-aliased shapes on a layer that is then laid over a picture.

A layer is a uint8 array of shape (height, width, 4): blue, green, red, each already multiplied by the fourth channel,
the opacity. Coordinates are pixels, x to the right and y down.
"""

import math
from collections.abc import Sequence

import cv2
import numpy as np

# OpenCV takes whole numbers; these are sixteenths of a pixel.
_FRACTION_BITS = 4
_FRACTION = 1 << _FRACTION_BITS

Point = Sequence[float] | np.ndarray
Colour = Sequence[float] | np.ndarray


def new_layer(height: int, width: int) -> np.ndarray:
    """A fully transparent layer."""
    return np.zeros((height, width, 4), dtype=np.uint8)


def fixed_point(points: Sequence[Point] | np.ndarray) -> np.ndarray:
    """Pixel coordinates of shape (n, 2) as OpenCV's fixed-point contour of shape (n, 1, 2)."""
    return np.round(np.asarray(points, dtype=np.float64) * _FRACTION).astype(np.int32).reshape(-1, 1, 2)


def _opaque(colour: Colour, shade: float) -> tuple[float, float, float, float]:
    blue, green, red = np.asarray(colour).tolist()
    # No colour and no shade is negative, so only the upper end needs care.
    return min(blue * shade, 255.0), min(green * shade, 255.0), min(red * shade, 255.0), 255.0


def _fill(layer: np.ndarray, points: Sequence[Point] | np.ndarray, paint: tuple[float, ...]) -> None:
    cv2.fillPoly(layer, [fixed_point(points)], paint, cv2.LINE_AA, _FRACTION_BITS)


def _fill_ellipse(
    layer: np.ndarray, centre: Point, radii: Point, paint: tuple[float, ...], arc: tuple[int, int] = (0, 360)
) -> None:
    at = (round(centre[0] * _FRACTION), round(centre[1] * _FRACTION))
    size = (round(max(radii[0], 0.3) * _FRACTION), round(max(radii[1], 0.3) * _FRACTION))
    cv2.ellipse(layer, at, size, 0, arc[0], arc[1], paint, -1, cv2.LINE_AA, _FRACTION_BITS)


def polygon(layer: np.ndarray, points: Sequence[Point] | np.ndarray, colour: Colour, shade: float = 1.0) -> None:
    """Fills a polygon in place; `shade` scales the colour's brightness."""
    _fill(layer, points, _opaque(colour, shade))


def polygon_mask(height: int, width: int, points: np.ndarray) -> np.ndarray:
    """Coverage of a polygon, float32 of shape (height, width) within [0, 1]."""
    mask = np.zeros((height, width), dtype=np.uint8)
    cv2.fillPoly(mask, [fixed_point(points)], 255, cv2.LINE_AA, _FRACTION_BITS)
    return mask.astype(np.float32) / 255.0


def ellipse(
    layer: np.ndarray,
    centre: Point,
    radii: Point,
    colour: Colour,
    shade: float = 1.0,
    arc: tuple[int, int] = (0, 360),
) -> None:
    """Fills an upright ellipse, or the part of it between two angles in degrees, in place."""
    _fill_ellipse(layer, centre, radii, _opaque(colour, shade), arc)


def limb(
    layer: np.ndarray,
    start: np.ndarray,
    end: np.ndarray,
    radii: tuple[float, float],
    colour: Colour,
    shade: float = 1.0,
) -> None:
    """Fills a rounded, tapering bar from start to end in place; `radii` at both ends in pixels."""
    paint = _opaque(colour, shade)
    (x0, y0), (x1, y1) = start.tolist(), end.tolist()
    length = math.hypot(x1 - x0, y1 - y0) + 1e-6
    across_x, across_y = (y0 - y1) / length, (x1 - x0) / length
    wide, narrow = radii
    corners = [
        (x0 + across_x * wide, y0 + across_y * wide),
        (x1 + across_x * narrow, y1 + across_y * narrow),
        (x1 - across_x * narrow, y1 - across_y * narrow),
        (x0 - across_x * wide, y0 - across_y * wide),
    ]
    _fill(layer, corners, paint)
    _fill_ellipse(layer, (x0, y0), (wide, wide), paint)
    _fill_ellipse(layer, (x1, y1), (narrow, narrow), paint)


def shadow(layer: np.ndarray, centre: Point, radii: Point, opacity: float) -> None:
    """Fills a black ellipse of partial opacity (0 to 1) in place; the layer must be empty there."""
    _fill_ellipse(layer, centre, radii, (0.0, 0.0, 0.0, 255.0 * opacity))


def lay_over(picture: np.ndarray, layer: np.ndarray) -> np.ndarray:
    """A new uint8 picture of shape (height, width, 3): the layer on top of `picture`."""
    transparency = (255 - layer[..., 3:]).astype(np.uint16)
    # A premultiplied colour never exceeds its opacity by more than rounding, which the saturating add cuts off.
    return cv2.add(layer[..., :3], ((picture * transparency + 127) // 255).astype(np.uint8))
