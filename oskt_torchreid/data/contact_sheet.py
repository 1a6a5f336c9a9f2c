"""Many pictures of the synthetic set at one look: a row per person, a column per camera and walk."""

import cv2
import numpy as np

from .synthetic import Renderer, SyntheticSettings
from .synthetic.renderer import TRAIN_SPLIT

_GAP = 2
_WHITE = (255, 255, 255)


def contact_sheet(settings: SyntheticSettings, rows: int = 8, first: int = 0, split: int = TRAIN_SPLIT) -> np.ndarray:
    """Draws the first picture of every walk of some people; look-alikes are in neighbouring rows.

    Args:
        settings: What the pictures look like.
        rows: Number of people.
        first: Number of the first one within its split.
        split: 0 = train, 1 = test.

    Returns:
        uint8 array of shape (rows * (height + 4), cameras * walks * (width + 4), 3), channels blue, green, red.
    """
    renderer = Renderer(settings)
    lines = []
    for identity in range(first, first + rows):
        cells = [
            renderer.picture(split, identity, camera, walk)
            for camera in range(settings.cameras)
            for walk in range(settings.walks)
        ]
        framed = [cv2.copyMakeBorder(cell, *(_GAP,) * 4, cv2.BORDER_CONSTANT, value=_WHITE) for cell in cells]
        lines.append(np.hstack(framed))
    return np.vstack(lines)
