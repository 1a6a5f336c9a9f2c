"""The colours that one identity really wears, ready to paint with."""

import dataclasses

import numpy as np

from .identity import Appearance
from .palette import CLOTH, HAIR, LOWER_CLOTH, SHOE, SKIN

_MIN_CONTRAST = 70.0


@dataclasses.dataclass(frozen=True)
class Wardrobe:
    """Colours of one identity, each an array (blue, green, red) of 0 to 255."""

    upper: np.ndarray
    accent: np.ndarray
    lower: np.ndarray
    bag: np.ndarray
    shoe: np.ndarray
    skin: np.ndarray
    hair: np.ndarray

    @classmethod
    def of(cls, appearance: Appearance) -> "Wardrobe":
        """The colours of an identity: its palette rows, its own tints, and an accent that can be seen."""
        tints = appearance.tints
        upper = np.clip(CLOTH[appearance.upper_colour] + tints[0], 0.0, 255.0)
        return cls(
            upper=upper,
            accent=_visible_on(upper, np.clip(CLOTH[appearance.accent_colour] + tints[1], 0.0, 255.0)),
            lower=np.clip(LOWER_CLOTH[appearance.lower_colour] + tints[2], 0.0, 255.0),
            bag=np.clip(CLOTH[appearance.bag_colour] + tints[3], 0.0, 255.0),
            shoe=SHOE[appearance.shoe_colour],
            skin=SKIN[appearance.skin_colour],
            hair=HAIR[appearance.hair_colour],
        )


def _visible_on(ground: np.ndarray, accent: np.ndarray) -> np.ndarray:
    """The accent, made lighter or darker where its brightness is too close to that of the ground."""
    difference = float(accent.mean() - ground.mean())
    if abs(difference) >= _MIN_CONTRAST:
        return accent
    if ground.mean() > 110.0:
        return ground * 0.3
    return 0.4 * accent + 130.0
