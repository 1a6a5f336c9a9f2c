"""The chain against its alternatives: the same teacher, the same epochs, several seeds, one report."""

from .comparison import compare
from .jobs import Job, seed_jobs
from .tuning import further_jobs, tuning_jobs

__all__ = ["Job", "compare", "further_jobs", "seed_jobs", "tuning_jobs"]
