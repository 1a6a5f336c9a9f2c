"""Files of others: a catalogue of published weights, the authors' weight chains, and the VKD authors' networks."""

from .. import needs_torchreid  # noqa: F401  so that everything is registered first, in an order that works
from .catalogue import catalogue
from .conversion import convert
from .downloads import cache_folder, download
from .official import load_official_oskt, load_official_refinement, load_official_teacher, save_official
from .vkd_format import load_official_vkd

__all__ = [
    "cache_folder",
    "catalogue",
    "convert",
    "download",
    "load_official_oskt",
    "load_official_refinement",
    "load_official_teacher",
    "load_official_vkd",
    "save_official",
]
