"""The configurations that come with the package, which are named without a path: `oskt_osnet`."""

from __future__ import annotations

from pathlib import Path

from ..errors import ConfigError
from ..registry import nearest

SUFFIX = ".yaml"
_PACKAGE = Path(__file__).resolve().parents[1]
PLACES = (_PACKAGE / "configs", _PACKAGE.parent / "configs")
"""Where they are: inside of an installed package, or beside it in a clone."""


def shipped_configs() -> dict[str, Path]:
    """Their files by name: `oskt_osnet`, `comparison/cuhk03`, `paper/oskt/res50_chain8_market1501`."""
    folder = next((place for place in PLACES if place.is_dir()), None)
    if folder is None:
        return {}
    return {path.relative_to(folder).with_suffix("").as_posix(): path for path in sorted(folder.rglob(f"*{SUFFIX}"))}


def config_path(name: str | Path) -> Path:
    """The file of a configuration.

    Args:
        name: path of a file; or the name of one that comes with the package, unless such a file is here.

    Raises:
        ConfigError: a word that is neither.
    """
    path = Path(name)
    if path.suffix or path.is_file():
        return path
    shipped = shipped_configs()
    if str(name) not in shipped:
        hint = nearest(str(name), shipped) or f"; those that come with the package are {', '.join(shipped)}"
        raise ConfigError(f"there is no file '{name}' and no configuration of this name{hint}")
    return shipped[str(name)]
