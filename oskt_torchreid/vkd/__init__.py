"""VKD, views knowledge distillation (Porrello et al., ECCV 2020): sets of views, a teacher that sees many of them and a
student that sees few.
"""

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
