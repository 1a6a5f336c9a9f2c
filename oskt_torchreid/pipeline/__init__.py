"""Configuration in, results out: teacher, chain, students and controls, each stage kept in files and made only once."""

from .ablation import ablate
from .dry_run import rehearse
from .run import run
from .set_analysis import compare_gallery_sizes, compare_views, probe_cameras
from .set_heat_maps import draw_heat_maps
from .untrained import untrained_table

__all__ = [
    "ablate",
    "compare_gallery_sizes",
    "compare_views",
    "draw_heat_maps",
    "probe_cameras",
    "rehearse",
    "run",
    "untrained_table",
]
