"""How far colour alone goes: a re-identification baseline without any learning.

The middle of a picture is cut into horizontal stripes; the mean colour of each is the feature. Statistics of every
camera are taken out (mean and standard deviation over all its pictures), and pictures are ranked by Euclidean
distance. On a fair test set a trained network must be far better than this: what the baseline finds is the colour
shortcut.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np

from ..errors import ConfigError, DataError
from ..host.compat import quiet, torchreid


@dataclasses.dataclass(frozen=True)
class StripeScore:
    """Mean average precision and rank-1 of the baseline, as fractions."""

    mean_precision: float
    rank1: float


def stripe_features(
    pictures: Sequence[np.ndarray], stripes: int = 16, centre: float = 0.3, balanced: bool = False
) -> np.ndarray:
    """Mean colours of horizontal stripes.

    The defaults are the strongest ones on these sets: perceptual colours (CIELAB), and only the middle columns, where
    the person is.

    Args:
        pictures: uint8 arrays of shape (height, width, 3), channels blue, green, red.
        stripes: Number of stripes.
        centre: Share of the width that is looked at.
        balanced: Whether the mean colour of each picture's stripes is taken out of them: a crude white balance that
            undoes most of a light that changes from walk to walk.

    Returns:
        float32 array of shape (pictures, 3 * stripes).

    Raises:
        ConfigError: Fewer than one stripe, or a share outside (0, 1].
    """
    if stripes < 1 or not 0.0 < centre <= 1.0:
        raise ConfigError(
            f"stripe baseline: got {stripes} stripes and centre {centre}; allowed: 1 stripe or more, 0 < centre <= 1"
        )
    features = []
    for picture in pictures:
        colours = cv2.cvtColor(picture.astype(np.float32) / 255.0, cv2.COLOR_BGR2LAB)
        middle, half = picture.shape[1] // 2, max(1, int(picture.shape[1] * centre / 2))
        parts = np.array_split(colours[:, middle - half : middle + half], stripes)
        means = np.stack([part.mean(axis=(0, 1)) for part in parts])
        features.append((means - means.mean(axis=0) if balanced else means).ravel())
    return np.stack(features)


def normalised_per_camera(features: np.ndarray, cameras: np.ndarray) -> np.ndarray:
    """Features with mean 0 and standard deviation 1 over the pictures of each camera.

    Args:
        features: Shape (pictures, size).
        cameras: Camera of every picture, shape (pictures,).

    Returns:
        A new array of the same shape.
    """
    normalised = np.empty_like(features)
    for camera in np.unique(cameras):
        own = cameras == camera
        normalised[own] = (features[own] - features[own].mean(axis=0)) / (features[own].std(axis=0) + 1e-6)
    return normalised


def stripe_baseline(dataset: Any, stripes: int = 16, centre: float = 0.3, balanced: bool = False) -> StripeScore:
    """Scores the baseline on the test split of an image data set, with torchreid's metrics.

    Args:
        dataset: torchreid image data set; `query` and `gallery` are read.
        stripes, centre, balanced: See `stripe_features`.

    Raises:
        DataError: A picture that cannot be read.
    """
    items = [*dataset.query, *dataset.gallery]
    identities, cameras = (np.array([item[place] for item in items]) for place in (1, 2))
    features = stripe_features([_read(item[0]) for item in items], stripes, centre, balanced)
    features = normalised_per_camera(features, cameras)
    count = len(dataset.query)
    distances = np.linalg.norm(features[:count, None] - features[None, count:], axis=2)
    with quiet():
        curve, mean_precision = torchreid.metrics.evaluate_rank(
            distances, identities[:count], identities[count:], cameras[:count], cameras[count:], use_cython=False
        )
    return StripeScore(float(mean_precision), float(curve[0]))


def _read(path: str) -> np.ndarray:
    picture = cv2.imread(path, cv2.IMREAD_COLOR)
    if picture is None:
        raise DataError(f"stripe baseline: '{path}' is missing or no picture; draw or download the data set again")
    return picture
