"""The effects of a camera on a picture: response to colours, optics, sensor and compression."""

import math

import cv2
import numpy as np

from .scene import draw_scene
from .settings import SyntheticSettings
from .streams import Purpose, stream

_MOTION_BLUR_PROBABILITY = 0.25


class Camera:
    """One camera; everything about it follows from the settings and its number.

    Attributes:
        scene: Its background, uint8 of shape (1.25 height, 8 width, 3).
        yaw: Usual direction in which people pass, radians.
        pitch: How far it looks down, see `pose.View`.
        light: Usual strength of light from one side.
        jpeg_quality: Quality of its compressed pictures, 1 to 100.
    """

    def __init__(self, settings: SyntheticSettings, number: int):
        random = stream(settings.seed, Purpose.CAMERA, number)
        cast = settings.camera_cast
        gain = np.exp(cast * np.clip(random.normal(0.0, 0.1, 3), -0.16, 0.16))
        self._gain = gain / gain.mean() * math.exp(cast * random.uniform(-0.35, 0.12))
        self._gamma = math.exp(cast * random.normal(0.0, 0.2))
        self._contrast = 1.0 + cast * random.uniform(-0.25, 0.12)
        self._black_level = cast * random.uniform(-6.0, 18.0)
        self._saturation = 1.0 + cast * random.uniform(-0.5, 0.05)
        self._sharpness = 1.0 - settings.resolution_loss * random.uniform(0.1, 0.62)
        noise = settings.noise * random.uniform(1.5, 7.0)
        self.jpeg_quality = int(95 - settings.noise * random.uniform(5.0, 45.0))
        self.yaw = random.uniform(-math.pi, math.pi)
        self.pitch = random.uniform(0.04, 0.3)
        self.light = random.uniform(-0.35, 0.35)
        # Drawn once: every frame cuts its grain out of this field at its own place.
        grain = random.standard_normal((2 * settings.height, 2 * settings.width, 3), dtype=np.float32) * noise
        self._grain = np.clip(np.round(grain), -127, 127).astype(np.int16)
        self.scene = draw_scene(random, int(settings.height * 1.25), settings.width * 8)

    def response(self, light_gain: np.ndarray) -> np.ndarray:
        """The colour table of the camera under one light.

        Args:
            light_gain: Factor per channel that the light and the automatic white balance of a walk add, shape (3,).

        Returns:
            uint8 table of shape (256, 1, 3) for `take`.
        """
        level = np.linspace(0.0, 1.0, 256)[:, None]
        curve = (level**self._gamma - 0.5) * self._contrast + 0.5
        table = curve * (self._gain * light_gain) * 255.0 + self._black_level
        return np.clip(table, 0.0, 255.0).astype(np.uint8)[:, None]

    def take(self, picture: np.ndarray, response: np.ndarray, random: np.random.Generator) -> np.ndarray:
        """The picture as this camera sees it.

        Args:
            picture: The world in front of it, uint8 of shape (height, width, 3).
            response: From `response`.
            random: Stream of the frame.

        Returns:
            A new uint8 picture of the same shape.
        """
        picture = cv2.LUT(picture, response)
        grey = cv2.cvtColor(cv2.cvtColor(picture, cv2.COLOR_BGR2GRAY), cv2.COLOR_GRAY2BGR)
        picture = cv2.addWeighted(picture, self._saturation, grey, 1.0 - self._saturation, 0)
        sharpness = min(1.0, self._sharpness * math.exp(0.15 * random.normal()))
        if random.random() < _MOTION_BLUR_PROBABILITY:
            picture = _motion_blurred(picture, int(3 + picture.shape[0] / 64 * random.random()))
        picture = _downsampled(picture, sharpness)
        height, width = picture.shape[:2]
        top, left = random.integers(height), random.integers(width)
        return np.clip(picture + self._grain[top : top + height, left : left + width], 0, 255).astype(np.uint8)


def _motion_blurred(picture: np.ndarray, length: int) -> np.ndarray:
    return cv2.blur(picture, (length, 1))


def _downsampled(picture: np.ndarray, sharpness: float) -> np.ndarray:
    """The picture at a share of its resolution, brought back to its size."""
    if sharpness > 0.97:
        return picture
    height, width = picture.shape[:2]
    small = (max(4, int(width * sharpness)), max(8, int(height * sharpness)))
    reduced = cv2.resize(picture, small, interpolation=cv2.INTER_AREA)
    return cv2.resize(reduced, (width, height), interpolation=cv2.INTER_LINEAR)
