"""Clothing patterns: where a garment shows its second colour.

A pattern is a function of the place on the body: the angle around it (radians, 0 = front, positive towards the
person's left) and the height on the garment (0 = collar, 1 = hem). Patterns therefore turn with the person.

`WOVEN` patterns cover close to half of the garment with the second colour wherever one looks, so two of them have the
same mean colour and only differ in form. `PLACED` patterns leave most of the garment in the first colour.
"""

import math
from collections.abc import Callable

import numpy as np

Pattern = Callable[[np.ndarray, np.ndarray, int], np.ndarray]


def _wave(phase: np.ndarray) -> np.ndarray:
    """True over the first half of every unit of phase."""
    return np.mod(phase, 1.0) < 0.5


def _around(angle: np.ndarray, count: int) -> np.ndarray:
    """Angle in units of one of `count` equal parts of the full turn."""
    return angle * (count / (2.0 * math.pi))


def _hoops(angle, height, scale):
    return np.broadcast_to(_wave(height * (3.0, 5.5)[scale]), np.broadcast(angle, height).shape)


def _pinstripes(angle, height, scale):
    return np.broadcast_to(_wave(_around(angle, (5, 9)[scale])), np.broadcast(angle, height).shape)


def _checks(angle, height, scale):
    return _wave(height * (2.5, 4.5)[scale]) ^ _wave(_around(angle, (4, 7)[scale]))


def _diagonals(angle, height, scale):
    return _wave(height * (2.5, 4.5)[scale] + _around(angle, (4, 6)[scale]))


def _zigzags(angle, height, scale):
    sway = np.abs(np.mod(_around(angle, (4, 7)[scale]), 1.0) - 0.5)
    return _wave(height * (2.5, 4.5)[scale] + sway * 1.6)


def _dots(angle, height, scale):
    down = np.mod(height * (3.5, 5.5)[scale], 1.0) - 0.5
    across = np.mod(_around(angle, (6, 10)[scale]), 1.0) - 0.5
    return down**2 + across**2 < 0.155


def _plain(angle, height, scale):
    return np.zeros(np.broadcast(angle, height).shape, dtype=bool)


def _band(angle, height, scale):
    return np.broadcast_to(np.abs(height - (0.36, 0.6)[scale]) < 0.08, np.broadcast(angle, height).shape)


def _open_front(angle, height, scale):
    return np.broadcast_to(np.abs(angle) < (0.5, 0.3)[scale], np.broadcast(angle, height).shape)


def _side_panels(angle, height, scale):
    on_sides = np.abs(np.abs(angle) - math.pi / 2) < (0.45, 0.3)[scale]
    return np.broadcast_to(on_sides, np.broadcast(angle, height).shape)


def _emblem(angle, height, scale):
    # On chest and back, so that it shows from most directions.
    from_middle = np.minimum(np.abs(angle), math.pi - np.abs(angle))
    return (from_middle < (0.6, 0.4)[scale]) & (np.abs(height - 0.38) < (0.1, 0.17)[scale])


WOVEN: dict[str, Pattern] = {
    "hoops": _hoops,
    "pinstripes": _pinstripes,
    "checks": _checks,
    "diagonals": _diagonals,
    "zigzags": _zigzags,
    "dots": _dots,
}
PLACED: dict[str, Pattern] = {
    "plain": _plain,
    "band": _band,
    "open_front": _open_front,
    "side_panels": _side_panels,
    "emblem": _emblem,
}
PATTERNS = {**WOVEN, **PLACED}


def paint(pattern: str, scale: int, angle: np.ndarray, height: np.ndarray, colours: np.ndarray) -> np.ndarray:
    """Colour of a garment at places of the body.

    Args:
        pattern: Name in `PATTERNS`.
        scale: 0 = coarse, 1 = fine.
        angle: Angles around the body in radians within [-pi, pi], shape (rows, columns).
        height: Heights on the garment within [0, 1], any shape that broadcasts with `angle`.
        colours: First and second colour, shape (2, 3).

    Returns:
        Array of shape (rows, columns, 3).
    """
    return colours[PATTERNS[pattern](angle, height, scale).astype(np.intp)]
