"""Many pictures of the synthetic sets at one look: a row per person or tracklet."""

import cv2
import numpy as np

from .synthetic import Renderer, SyntheticSettings, VideoSettings
from .synthetic.renderer import TRAIN_SPLIT
from .synthetic.video import FRAME_STEP

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
        lines.append(_line(cells))
    return np.vstack(lines)


def tracklet_sheet(settings: VideoSettings, rows: int = 2, first: int = 0, split: int = TRAIN_SPLIT) -> np.ndarray:
    """Draws all tracklets of some people: the walks past a camera in a row, their pictures in order.

    Args:
        settings: What the pictures look like.
        rows: Number of people, each with a row per camera.
        first: Number of the first one within its split.
        split: 0 = train, 1 = test.

    Returns:
        uint8 array of shape (rows * cameras * (height + 4), walks * frames * (width + 4), 3), blue, green, red.
    """
    renderer = Renderer(settings)
    lines = []
    for identity in range(first, first + rows):
        for camera in range(settings.cameras):
            cells = [
                renderer.picture(split, identity, camera, walk, number * FRAME_STEP)
                for walk in range(settings.walks)
                for number in range(settings.frames)
            ]
            lines.append(_line(cells))
    return np.vstack(lines)


def _line(cells: list[np.ndarray]) -> np.ndarray:
    return np.hstack([cv2.copyMakeBorder(cell, *(_GAP,) * 4, cv2.BORDER_CONSTANT, value=_WHITE) for cell in cells])
