"""The chain against its alternatives: the same teacher, the same epochs, several seeds, one report."""

from .comparison import run_comparison
from .jobs import seed_jobs
from .parts import Job
from .tuning import further_jobs, tuning_jobs

__all__ = ["Job", "run_comparison", "further_jobs", "seed_jobs", "tuning_jobs"]
