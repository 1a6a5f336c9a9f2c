"""One configuration tree: torchreid's keys and defaults, unchanged, and the nodes of this package."""

from .loading import check_config, default_config, digest, get, load_config, merged, save_resolved

__all__ = ["check_config", "default_config", "digest", "get", "load_config", "merged", "save_resolved"]
