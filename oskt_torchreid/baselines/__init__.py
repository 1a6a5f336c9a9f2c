"""Alternatives to a weight chain: each makes a student of a width plan, which is fine-tuned in the same way.

A method makes a student from a teacher, and may have its own engine to train it.
"""

from .. import needs_torchreid  # noqa: F401  so that everything is registered first, in an order that works
from .distillation import DistillationEngine
from .methods import BASELINES, Baseline, baseline, make_baseline, register_baseline

__all__ = ["BASELINES", "Baseline", "DistillationEngine", "baseline", "make_baseline", "register_baseline"]
