"""Published files in this package's own forms: chains as chain files, weights as plain state dicts of torchreid."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn

from .. import files
from ..chain.student_file import save_plain
from ..errors import ZooError
from ..host import models
from ..models.building import load_weights
from .archives import unpack
from .catalogue import Entry, entry_named
from .downloads import by_hand, cache_folder, place_of, verify
from .official import load_official_oskt
from .vkd_format import SETTINGS, load_official_vkd

IMAGENET_CLASSES = 1000
UNPACKED = ".unpacked"  # folder in the cache


def convert(name: str | Entry, output: str | Path, part: str = "", folder: str | Path = "") -> Path:
    """Writes a published file that is in the cache in this package's own form.

    Args:
        name: of the entry.
        output: file to write, whole or not at all: a chain file for `chains`, else `{"state_dict": ...}`.
        part: of several, which: `8/Market1501` of the chains; of the sets an archive and the folder in it, such as
            `distilled.zip/distilled_public/mars/selfdistill/distill_mars_resnet50`, and possibly, at its end, the
            checkpoint, `:chk_di_1`.
        folder: cache, see `cache_folder`.

    Returns:
        `output`.

    Raises:
        ZooError: not in the cache, another content, or a part that is not there, with those that are.
        CheckpointError: weights that are not of the entry's network.
    """
    entry = name if isinstance(name, Entry) else entry_named(name)
    place = place_of(entry, folder)
    if not place.exists():
        raise ZooError(f"'{entry.name}' is not in the cache: `oskt zoo download {entry.name}` fetches it. "
                       f"{by_hand(entry, folder)}")  # fmt: skip
    verify(entry, place, cache_folder(folder))
    output = Path(output)
    if entry.kind == "chains":
        load_official_oskt(_part(place, part, "gene_matcher.json")).save(output)
    elif entry.kind == "sets":
        save_plain(_set_network(place, part), output)
    else:
        save_plain(_network(entry, place), output)
    return output


def _network(entry: Entry, path: Path) -> nn.Module:
    """The entry's network with the file's weights, and as many classes as these have."""
    content = files.load_checkpoint(path, ZooError)
    model = models.build(entry.model, _class_count(content), "softmax")
    load_weights(model, path)
    return model.eval()


def _class_count(content: object) -> int:
    """Rows of the classifier in a checkpoint of torchreid."""
    state = content.get("state_dict", content) if isinstance(content, dict) else {}
    heads = [tensor for name, tensor in state.items() if str(name).removeprefix("module.") == "classifier.weight"]
    is_head = heads and isinstance(heads[0], Tensor) and heads[0].dim() == 2 and len(heads[0]) > 0
    return len(heads[0]) if is_head else IMAGENET_CLASSES


def _part(place: Path, part: str, needed: str) -> Path:
    """A folder inside another one that holds a file."""
    found = {path.parent.relative_to(place).as_posix(): path.parent for path in place.rglob(needed)}
    if part not in found:
        names = ", ".join(sorted(found)) or "none"
        raise ZooError(f"'{place}' has no part '{part}'; its parts: {names}")
    return found[part]


def _set_network(place: Path, part: str) -> nn.Module:
    inside, _, checkpoint = part.partition(":")
    archive, _, inner = inside.partition("/")
    archives = sorted(path.name for path in place.glob("*.zip"))
    if archive not in archives:
        raise ZooError(f"'{place}' has no archive '{archive}'; give one of {', '.join(archives)}, and the folder in it")
    unpacked = place.parent / UNPACKED / place.name / Path(archive).stem
    if not unpacked.is_dir():
        unpack(place / archive, unpacked)
    settings = SETTINGS.as_posix()
    roots = {path.parents[1].relative_to(unpacked).as_posix(): path.parents[1] for path in unpacked.rglob(settings)}
    if inner not in roots:
        raise ZooError(f"'{place / archive}' has no part '{inner}'; its parts: {', '.join(sorted(roots)) or 'none'}")
    return load_official_vkd(roots[inner], checkpoint)
