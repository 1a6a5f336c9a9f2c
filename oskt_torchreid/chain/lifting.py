"""Which entry of a student's feature stands for each of its teacher's, see `deploy/lifting.py`."""

from __future__ import annotations

import numpy as np

from ..graph import Axis
from .layout import Layout


def lifting_of(layout: Layout) -> np.ndarray:
    """The entry of a student's feature that stands for each entry of the teacher's.

    Args:
        layout: of the student's widths.

    Returns:
        Indices `[teacher's length]`; empty where the network has several features, or none.

    Example: the feature has the channels 0..3, and a student of width 3 the slots `(0, 2)`, `(1)` and `(3)`: its
    feature `[a, b, c]` stands for `[a, b, a, c]`, by the indices `0 1 0 2`.
    """
    channels = layout.graph.feature
    moving = channels >= 0  # the others are in every student
    there = ~moving
    there[moving] = layout.occupied[channels[moving]]
    position = np.cumsum(there) - 1
    lifting = position.copy()
    if moving.any():
        axis = layout.map_of(Axis(channels[None, moving]))
        lifting[moving] = position[moving & there][axis.teacher_to_student.numpy()]
    return lifting
