"""One random stream per thing that is drawn, so that no picture depends on the order of drawing."""

import enum

import numpy as np


class Purpose(enum.IntEnum):
    """The purpose of a random stream; two purposes never share numbers."""

    FAMILY = 1
    IDENTITY = 2
    CAMERA = 3
    WALK = 4
    FRAME = 5


def stream(seed: int, purpose: Purpose, *key: int) -> np.random.Generator:
    """The random stream of one thing.

    Args:
        seed: Data seed.
        purpose: What the numbers are for.
        *key: Whole numbers >= 0 that name the thing, such as split, identity, camera, walk, frame.
    """
    return np.random.default_rng([seed, int(purpose), *key])
