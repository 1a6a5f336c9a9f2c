"""VKD, views knowledge distillation (Porrello et al., ECCV 2020): sets of views, a teacher that sees many of them and a
student that sees few.
"""

from .. import needs_torchreid  # noqa: F401  so that everything is registered first, in an order that works
from .evaluate import SideFeatures, evaluate_protocols, extract_side
from .losses import distance_preservation_loss
from .model import SetModel
from .students import student_from

__all__ = [
    "SetModel",
    "SideFeatures",
    "distance_preservation_loss",
    "evaluate_protocols",
    "extract_side",
    "student_from",
]
