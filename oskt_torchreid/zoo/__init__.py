"""Files of others: the authors' weight chains, and the VKD authors' networks."""

from .official import load_official_oskt, load_official_refinement, load_official_teacher, save_official
from .vkd_format import load_official_vkd

__all__ = [
    "load_official_oskt",
    "load_official_refinement",
    "load_official_teacher",
    "load_official_vkd",
    "save_official",
]
