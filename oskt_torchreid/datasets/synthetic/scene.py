"""The place that a camera looks at: one wide background out of which every picture cuts its own part."""

from collections.abc import Callable

import cv2
import numpy as np

Draw = Callable[[np.ndarray, np.random.Generator, int, np.ndarray, int, int], None]


def _varied(random: np.random.Generator, colour: np.ndarray, low: float, high: float, spread: float) -> list[float]:
    """A colour scaled by a factor within [low, high], its channels spread by a log-normal, as OpenCV wants it."""
    return np.clip(colour * random.uniform(low, high) * np.exp(random.normal(0.0, spread, 3)), 0.0, 255.0).tolist()


def _window(picture, random, horizon, wall, x, width):
    top, bottom = int(horizon * random.uniform(0.05, 0.5)), int(horizon * random.uniform(0.6, 1.0))
    cv2.rectangle(picture, (x, top), (x + int(width * 0.6), bottom), _varied(random, wall, 0.4, 1.4, 0.15), -1)


def _tree(picture, random, horizon, wall, x, width):
    leaves = _varied(random, np.array([50.0, 105.0, 60.0]), 0.5, 1.5, 0.05)
    centre = (x, int(horizon * random.uniform(0.3, 1.0)))
    cv2.circle(picture, centre, int(width * 0.7), leaves, -1, cv2.LINE_AA)


def _car(picture, random, horizon, wall, x, width):
    tall = picture.shape[0]
    paint = _varied(random, np.full(3, 100.0), 0.4, 2.0, 0.3)
    top, bottom = int(horizon * random.uniform(0.3, 0.9)), horizon + int(random.uniform(0.02, 0.1) * tall)
    cv2.rectangle(picture, (x, top), (x + width * 2, bottom), paint, -1)
    wheel = (x + width // 3, horizon + int(0.08 * tall))
    cv2.circle(picture, wheel, max(1, int(0.03 * tall)), (30, 30, 30), -1, cv2.LINE_AA)


def _pillar(picture, random, horizon, wall, x, width):
    cv2.rectangle(picture, (x, 0), (x + int(width * 0.25), horizon), _varied(random, wall, 0.4, 1.4, 0.15), -1)


_OBJECTS: tuple[Draw, ...] = (_window, _tree, _car, _pillar)


def _kerb(picture, random, horizon, ground, y):
    cv2.line(picture, (0, y), (picture.shape[1], y), ground, max(1, int(picture.shape[0] * 0.006)))


def _joint(picture, random, horizon, ground, y):
    tall, wide = picture.shape[:2]
    x = int(random.uniform(0, wide))
    end = (int(x + random.normal(0.0, tall)), tall)
    cv2.line(picture, (x, horizon), end, ground, max(1, int(tall * 0.01)), cv2.LINE_AA)


def _puddle(picture, random, horizon, ground, y):
    tall, wide = picture.shape[:2]
    radii = (int(random.uniform(0.05, 0.4) * tall), int(random.uniform(0.01, 0.05) * tall))
    cv2.ellipse(picture, (int(random.uniform(0, wide)), y), radii, 0, 0, 360, ground, -1, cv2.LINE_AA)


_GROUND_MARKS = (_kerb, _joint, _puddle)


def draw_scene(random: np.random.Generator, height: int, width: int) -> np.ndarray:
    """A background of a wall over a ground, with one kind of object and one kind of ground mark.

    Args:
        random: The camera's stream.
        height, width: Size in pixels.

    Returns:
        uint8 array of shape (height, width, 3).
    """
    horizon = int(height * random.uniform(0.3, 0.62))
    wall = random.uniform(60.0, 205.0) * np.exp(random.normal(0.0, 0.12, 3))
    ground = random.uniform(70.0, 180.0) * np.exp(random.normal(0.0, 0.08, 3))
    picture = np.empty((height, width, 3), dtype=np.float32)
    picture[:horizon] = wall
    picture[horizon:] = ground * np.linspace(0.85, 1.1, height - horizon)[:, None, None]
    picture = np.clip(picture, 0.0, 255.0).astype(np.uint8)

    draw_object = _OBJECTS[random.integers(len(_OBJECTS))]
    x = 0
    while x < width:
        wide = max(2, int(random.uniform(0.08, 0.32) * height))
        draw_object(picture, random, horizon, wall, x, wide)
        x += int(wide * random.uniform(0.5, 1.6)) + 2

    draw_mark = _GROUND_MARKS[random.integers(len(_GROUND_MARKS))]
    for _ in range(int(random.integers(5, 14))):
        y = horizon + int((height - horizon) * random.random() ** 1.3)
        draw_mark(picture, random, horizon, _varied(random, ground, 0.7, 1.25, 0.0), y)
    return _roughened(picture, random)


def _roughened(picture: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """The picture with coarse and fine variations of brightness."""
    height, width = picture.shape[:2]
    coarse = random.normal(0.0, 9.0, (max(2, height // 8), max(2, width // 8))).astype(np.float32)
    brightness = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR)
    brightness += random.normal(0.0, 3.0, (height, width)).astype(np.float32)
    return np.clip(picture + brightness[..., None], 0.0, 255.0).astype(np.uint8)
