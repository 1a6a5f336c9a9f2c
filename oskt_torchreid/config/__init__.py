"""One configuration tree: torchreid's keys and defaults, unchanged, and the nodes of this package."""

from yacs.config import CfgNode

from .checking import check_config
from .effects import settings
from .imports import import_for_file
from .keys import Effect
from .loading import default_config, digest, get, given_keys, load_config, load_resolved, merged, save_resolved
from .shipped import config_path, shipped_configs
from .tree import leaves
from .yaml_files import read_yaml

Config = CfgNode
"""The tree of settings, or one of its nodes."""

__all__ = [
    "Config",
    "Effect",
    "check_config",
    "config_path",
    "default_config",
    "digest",
    "get",
    "given_keys",
    "import_for_file",
    "leaves",
    "load_config",
    "load_resolved",
    "merged",
    "read_yaml",
    "save_resolved",
    "settings",
    "shipped_configs",
]
