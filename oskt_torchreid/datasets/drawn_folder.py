"""A folder that is drawn on first use, whole or not at all, and only read after that.

The pictures go into a temporary folder next to the final one, which takes its name when the last file, the manifest, is
written. A manifest that fits says that the folder is whole; anything else at its place is looked through: pictures that
this module would have drawn are replaced, and any other file stops it.
"""

import contextlib
import logging
import secrets
import shutil
import time
from pathlib import Path

from tqdm.auto import tqdm

from ..errors import DataError
from ..files import read_json, write_json
from .market_layout import MARKET, FolderLayout, PictureFile
from .synthetic import Renderer, SyntheticSettings

MANIFEST = "manifest.json"
_LEFTOVER_SECONDS = 3600

logger = logging.getLogger(__name__)


def drawn_folder(root: str | Path, name: str, settings: SyntheticSettings, layout: FolderLayout = MARKET) -> Path:
    """The folder of a set below `root`, drawn first if it is missing, incomplete or of other settings.

    A whole folder is only read. The name of the folder holds `name`, the picture size and the digest of the settings,
    so sets of other sizes or seeds lie side by side.

    Args:
        root: Folder of all data sets; made if it is missing.
        name: Name of the variant, such as "synthped".
        settings: What to draw.
        layout: How the files are named.

    Raises:
        DataError: `root` cannot be written, or there are other files in the set's folder.
    """
    root = Path(root).expanduser().absolute()
    folder = root / f"{name}_{settings.height}x{settings.width}_{settings.digest()}"
    if is_whole(folder, settings, layout):
        return folder
    files = list(layout.picture_files(settings))
    if folder.exists():
        logger.warning("%s is not whole; its pictures are drawn again", folder)
        _check_ours(folder, files, layout)
    try:
        root.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(folder)
        _draw(folder, settings, files, layout)
    except OSError as reason:
        raise DataError(
            f"{name} cannot be drawn in '{root}' ({reason.strerror or reason}); choose a root that can be written, "
            f"with room for {len(files)} pictures, by --root (data.root)"
        ) from reason
    return folder


def is_whole(folder: Path, settings: SyntheticSettings, layout: FolderLayout = MARKET) -> bool:
    """Whether a folder holds every picture of these settings, by its manifest and the files' number and bytes."""
    manifest_path = folder / MANIFEST
    if not manifest_path.is_file():
        return False
    try:
        manifest = read_json(manifest_path, DataError)
    except DataError:
        return False
    return manifest == _manifest(folder, settings, layout)


def _manifest(folder: Path, settings: SyntheticSettings, layout: FolderLayout) -> dict:
    """The content of a folder's manifest, counted from its files."""
    counts = {}
    for part in layout.folders:
        sizes = [path.stat().st_size for path in (folder / part).rglob("*.jpg")]
        counts[part] = {"files": len(sizes), "bytes": sum(sizes)}
    return {"digest": settings.digest(), "settings": settings.as_dict(), "pictures": counts}


def _draw(folder: Path, settings: SyntheticSettings, files: list[PictureFile], layout: FolderLayout) -> None:
    """Draws all files next to `folder`, then moves them there."""
    drawing = folder.with_name(f"{_drawing_prefix(folder)}{secrets.token_hex(4)}")
    try:
        for part in {file.folder: None for file in files}:
            (drawing / part).mkdir(parents=True)
        renderer = Renderer(settings)
        # disable=None: no bar where stderr is no terminal.
        for file in tqdm(files, desc=f"drawing {folder.name}", unit=" pictures", disable=None, leave=False):
            picture = renderer.encoded(file.split, file.identity, file.camera, file.walk, file.frame)
            (drawing / file.folder / file.name).write_bytes(picture)
        write_json(drawing / MANIFEST, _manifest(drawing, settings, layout))
        if folder.exists():
            if is_whole(folder, settings, layout):
                return  # another process was faster
            _check_ours(folder, files, layout)
            shutil.rmtree(folder)
        _rename(drawing, folder, settings, layout)
    finally:
        shutil.rmtree(drawing, ignore_errors=True)
    logger.info("drew %d pictures into %s", len(files), folder)


def _rename(drawing: Path, folder: Path, settings: SyntheticSettings, layout: FolderLayout) -> None:
    """Renames the drawn folder, unless another process made the same one in the meantime."""
    try:
        drawing.rename(folder)
    except OSError:
        if not is_whole(folder, settings, layout):
            raise


def _check_ours(folder: Path, files: list[PictureFile], layout: FolderLayout) -> None:
    """Raises DataError if anything below `folder` is not a file or folder that `_draw` makes."""
    folders = {*map(Path, layout.folders), *(Path(file.folder) for file in files)}
    ours = {Path(MANIFEST), *folders, *(Path(file.folder, file.name) for file in files)}
    for path in [folder] if not folder.is_dir() or folder.is_symlink() else folder.rglob("*"):
        inside = path.relative_to(folder)
        if inside not in ours or path.is_symlink() or path.is_dir() != (inside in folders):
            raise DataError(
                f"'{folder}' should hold pictures drawn by this package alone, but '{path}' is not one of them; "
                "nothing was removed: move it away, or choose another root by --root (data.root)"
            )


def _drawing_prefix(folder: Path) -> str:
    return f".{folder.name}.drawing-"


def _remove_leftovers(folder: Path) -> None:
    """Removes what killed processes left of the same set; a folder that still grows is not touched."""
    for leftover in folder.parent.glob(f"{_drawing_prefix(folder)}*"):
        # It may be renamed or removed by its own process at any moment.
        with contextlib.suppress(FileNotFoundError):
            newest = max(path.stat().st_mtime for path in (leftover, *leftover.iterdir()))
            if time.time() - newest > _LEFTOVER_SECONDS:
                shutil.rmtree(leftover, ignore_errors=True)
