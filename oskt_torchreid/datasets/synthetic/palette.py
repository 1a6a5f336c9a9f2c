"""Colours of clothes, skin and hair, as float32 arrays in OpenCV's channel order (blue, green, red), 0 to 255."""

import numpy as np


def _palette(*colours: tuple[int, int, int]) -> np.ndarray:
    """Rows of (red, green, blue) to an array of shape (colours, 3) in the order blue, green, red."""
    palette = np.array(colours, dtype=np.float32)[:, ::-1].copy()
    palette.setflags(write=False)
    return palette


CLOTH = _palette(
    (30, 30, 34),
    (226, 226, 222),
    (122, 124, 128),
    (34, 44, 88),
    (172, 38, 42),
    (46, 94, 170),
    (54, 106, 62),
    (208, 172, 64),
    (198, 120, 152),
    (114, 80, 54),
    (202, 98, 42),
    (112, 72, 132),
)
LOWER_CLOTH = _palette(
    (28, 28, 32),
    (40, 48, 80),
    (90, 110, 148),
    (98, 98, 102),
    (178, 158, 122),
    (214, 212, 206),
    (86, 64, 48),
    (76, 86, 56),
)
SKIN = _palette((236, 198, 172), (212, 166, 132), (162, 114, 82), (100, 68, 50))
HAIR = _palette((24, 20, 20), (68, 46, 32), (132, 94, 54), (198, 166, 106), (152, 152, 152))
SHOE = _palette((26, 26, 28), (232, 232, 230), (112, 78, 52), (170, 42, 46), (52, 82, 150), (130, 130, 134))
