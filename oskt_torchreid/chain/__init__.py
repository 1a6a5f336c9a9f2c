"""Weight chains: one-shot knowledge transfer over the channel graph of any network. Needs torch alone."""

from .budgets import Choice
from .chain import WeightChain
from .clustering import Clustering
from .contributions import Contributions, measure_contributions
from .distance import feature_scale
from .expansion import Measure, choose_widths, expand, expand_to_plan, width_plan
from .ladder import Ladder
from .likeness import Like
from .measured import MeasuredTable
from .network import prove, trace
from .proof import Proof
from .recalibration import recalibrate
from .sstudent import Criterion, Refinement, RefinementLosses, SStudent
from .student_file import save_plain, save_student
from .student_reading import load_student
from .trimming import trimmed

__all__ = [
    "Choice",
    "Clustering",
    "Contributions",
    "Criterion",
    "Ladder",
    "Like",
    "Measure",
    "MeasuredTable",
    "Proof",
    "Refinement",
    "RefinementLosses",
    "SStudent",
    "WeightChain",
    "choose_widths",
    "expand",
    "expand_to_plan",
    "feature_scale",
    "load_student",
    "measure_contributions",
    "prove",
    "recalibrate",
    "save_plain",
    "save_student",
    "trace",
    "trimmed",
    "width_plan",
]
