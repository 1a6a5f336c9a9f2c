"""The page of a run: one HTML file, made of the files in the run's folder."""

from .kept import environment, keep_ranked
from .writing import finish_page, write_comparison_page, write_run_page

__all__ = ["environment", "finish_page", "keep_ranked", "write_comparison_page", "write_run_page"]
