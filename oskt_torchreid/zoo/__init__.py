"""Files of others: the authors' weight chains."""

from .official import load_official_oskt, load_official_refinement, load_official_teacher, save_official

__all__ = ["load_official_oskt", "load_official_refinement", "load_official_teacher", "save_official"]
