"""The results of a run: results.json, tables and the plot of size against mAP."""

from .plots import size_vs_map
from .results import Results, Row, read_results, write_results
from .tables import markdown_table, text_table, write_markdown

__all__ = [
    "Results",
    "Row",
    "markdown_table",
    "read_results",
    "size_vs_map",
    "text_table",
    "write_markdown",
    "write_results",
]
