"""Configuration in, results out: teacher, chain, students and controls, each stage kept in files and made only once."""

from .dry_run import run_dry
from .run import run
from .vkd.analysis import compare_gallery_sizes, compare_views, probe_cameras
from .vkd.heat_maps import draw_heat_maps

__all__ = [
    "compare_gallery_sizes",
    "compare_views",
    "draw_heat_maps",
    "probe_cameras",
    "run_dry",
    "run",
]
