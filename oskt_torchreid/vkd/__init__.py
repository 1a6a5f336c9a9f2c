"""VKD, views knowledge distillation (Porrello et al., ECCV 2020): sets of views, a teacher that sees many of them and a
student that sees few.
"""

from .losses import distance_preservation_loss
from .model import SetModel
from .students import student_from

__all__ = ["SetModel", "distance_preservation_loss", "student_from"]
