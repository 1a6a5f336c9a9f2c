"""Weight chains: one-shot knowledge transfer over the channel graph of any network. Needs torch alone."""

from .budgets import Choice
from .chain import WeightChain
from .distance import feature_scale
from .expansion import choose_widths, expand, expand_to_plan, width_plan
from .ladder import Ladder
from .network import trace
from .recalibration import recalibrate
from .sstudent import Refinement, RefinementLosses, SStudent
from .student_file import load_student, save_plain, save_student

__all__ = [
    "Choice",
    "Ladder",
    "Refinement",
    "RefinementLosses",
    "SStudent",
    "WeightChain",
    "choose_widths",
    "expand",
    "expand_to_plan",
    "feature_scale",
    "load_student",
    "recalibrate",
    "save_plain",
    "save_student",
    "trace",
    "width_plan",
]
