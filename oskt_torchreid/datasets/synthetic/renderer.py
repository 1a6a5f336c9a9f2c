"""Puts a person, a walk and a camera together into a picture."""

import functools
import math

import cv2
import numpy as np

from ...errors import ConfigError
from .camera import Camera
from .canvas import lay_over, new_layer, shadow
from .figure import Figure
from .identity import draw_family
from .settings import SyntheticSettings
from .streams import Purpose, stream
from .walk import OCCLUDER_SPLIT, PASSER_BY_SPLIT, Crossing, Occluder, Walk, crossing_layer, draw_walk, lit, thing_layer

TRAIN_SPLIT, TEST_SPLIT = 0, 1

# How much of the box a person of average size fills.
_FILL = 0.9


class Renderer:
    """Draws pictures of pedestrians.

    A picture is a pure function of the settings and its five numbers: it does not depend on what was drawn before.

    Args:
        settings: What the pictures look like.
    """

    def __init__(self, settings: SyntheticSettings):
        self.settings = settings
        self._cameras = tuple(Camera(settings, number) for number in range(settings.cameras))
        # Look-alikes are drawn one after the other, so a family is drawn once and kept; walks likewise.
        self._family = functools.lru_cache(maxsize=1024)(self._draw_family)
        self._walk = functools.lru_cache(maxsize=64)(self._draw_walk)

    def picture(self, split: int, identity: int, camera: int, walk: int, frame: int = 0) -> np.ndarray:
        """One picture.

        Args:
            split: 0 = train, 1 = test.
            identity: Number of the person within the split, from 0.
            camera: Number of the camera, from 0.
            walk: Number of the walk past this camera, from 0.
            frame: Number of the frame of the walk, from 0; frames of a walk form a continuous movement.

        Returns:
            uint8 array of shape (height, width, 3), channels blue, green, red.

        Raises:
            ConfigError: A camera that does not exist.
        """
        if not 0 <= camera < len(self._cameras):
            last = len(self._cameras) - 1
            raise ConfigError(f"synthped: there is no camera {camera}; choose one from 0 to {last}")
        settings, machine = self.settings, self._cameras[camera]
        passed = self._walk(split, identity, camera, walk)
        random = stream(settings.seed, Purpose.FRAME, split, identity, camera, walk, frame)
        figure = self._figure(split, identity)

        size = settings.height * _FILL * passed.size
        size *= (1.0 + 0.05 * settings.jitter * random.normal()) * (1.0 + 0.03 * figure.appearance.body[5])
        centre = settings.width * (0.5 + 0.045 * settings.jitter * random.normal())
        top = settings.height * (0.05 + 0.03 * settings.jitter * random.normal())
        top += 0.5 * (settings.height * _FILL - size)
        yaw = passed.yaw + passed.yaw_step * frame + 0.05 * random.normal()
        phase = passed.phase + passed.phase_step * frame

        picture = self._background(machine, passed, frame)
        person = new_layer(settings.height, settings.width)
        shadow(person, (centre, top + 0.975 * size), (0.14 * size, 0.03 * size), opacity=0.43)
        figure.draw(person, yaw, machine.pitch, phase, centre, top, size)
        lit(person, passed.side_light, random)
        picture = lay_over(picture, person)
        if passed.occluder is not None:
            picture = lay_over(picture, self._occluder_layer(passed.occluder, machine, phase, top, size))
        if passed.crossing is not None:
            picture = lay_over(picture, self._crossing_layer(passed.crossing, machine, frame))
        return machine.take(picture, machine.response(passed.light_gain), random)

    def encoded(self, split: int, identity: int, camera: int, walk: int, frame: int = 0) -> bytes:
        """The same picture as a JPEG file of the camera's quality."""
        picture = self.picture(split, identity, camera, walk, frame)
        quality = [cv2.IMWRITE_JPEG_QUALITY, self._cameras[camera].jpeg_quality]
        return cv2.imencode(".jpg", picture, quality)[1].tobytes()

    def _draw_family(self, split: int, family: int) -> list[Figure]:
        return [Figure(appearance) for appearance in draw_family(self.settings, split, family)]

    def _draw_walk(self, split: int, identity: int, camera: int, walk: int) -> Walk:
        return draw_walk(self.settings, self._cameras[camera], split, identity, camera, walk)

    def _figure(self, split: int, identity: int) -> Figure:
        family, place = divmod(identity, self.settings.family_size)
        return self._family(split, family)[place]

    def _background(self, camera: Camera, walk: Walk, frame: int) -> np.ndarray:
        """The part of the scene behind the walk, with the people in the distance."""
        height, width = self.settings.height, self.settings.width
        limit = camera.scene.shape[1] - width
        left = int(np.clip(walk.scene_left + walk.scene_step * frame, 0, limit))
        picture = camera.scene[walk.scene_top : walk.scene_top + height, left : left + width].copy()
        for passer_by in walk.passers_by:
            layer = new_layer(height, width)
            self._figure(PASSER_BY_SPLIT, passer_by.stranger).draw(
                layer,
                yaw=passer_by.yaw,
                pitch=camera.pitch,
                phase=0.6 * frame + passer_by.stranger,
                centre=width * passer_by.across,
                top=height * (0.5 - 0.45 * passer_by.size),
                size=height * passer_by.size,
            )
            picture = lay_over(picture, layer)
        return picture

    def _occluder_layer(self, occluder: Occluder, camera: Camera, phase: float, top: float, size: float) -> np.ndarray:
        """The object in front of the person."""
        height, width = self.settings.height, self.settings.width
        if occluder.kind != "person":
            return thing_layer(occluder, height, width)
        layer = new_layer(height, width)
        self._figure(OCCLUDER_SPLIT, occluder.stranger).draw(
            layer,
            yaw=occluder.yaw,
            pitch=camera.pitch,
            phase=1.1 * phase + 1.0,
            centre=width * (0.5 + 0.95 * occluder.side * occluder.reach),
            top=top + 0.06 * height,
            size=1.04 * size,
        )
        return layer

    def _crossing_layer(self, crossing: Crossing, camera: Camera, frame: int) -> np.ndarray:
        """The person or object that passes in front, nearer to the camera than the person."""
        height, width = self.settings.height, self.settings.width
        if crossing.stranger < 0:
            return crossing_layer(crossing, frame, height, width)
        layer = new_layer(height, width)
        self._figure(OCCLUDER_SPLIT, crossing.stranger).draw(
            layer,
            yaw=math.copysign(0.5 * math.pi, crossing.speed),
            pitch=camera.pitch,
            phase=0.7 * frame + crossing.stranger,
            centre=width * crossing.across(frame),
            top=0.06 * height,
            size=1.25 * height,
        )
        return layer
