"""Published weights for the vision transformers: ImageNet (timm), DINO, PASS, and checkpoints of this package.

A file is taken in full or not at all, and everything left out is reported: heads of other tasks are ignored, tensors
that the file cannot have (necks, classifier, part tokens of an ImageNet file) keep their first values, and position
embeddings of another grid are interpolated. Anything else that is missing or unknown is an error.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import CheckpointError
from ..files import load_checkpoint
from ..files.weights import check_state_dict, first_names
from .vit import VisionTransformer, resized_positions

logger = logging.getLogger(__name__)

_CONTAINERS = ("state_dict", "model", "teacher")  # where training programs keep the state dict in their files
_PREFIXES = ("module.", "backbone.", "base.")
_PARTS = r"part_token\d+|part\d+_pos"
_FOREIGN = re.compile(rf"(head|fc|head_dist|pre_logits|last_layer)\.|(dist_token|mask_token|{_PARTS})$")
_REPLACEABLE = re.compile(rf"(bottleneck(_\d+)?|classifier|dw)\.|({_PARTS})$")
_ADVICE = "give weights of the same width, depth and patch size"


@dataclass(frozen=True)
class LoadAccount:
    """The account of a loaded file of weights.

    Attributes:
        taken: the network's tensors that came from the file.
        resized: those of them that are positions interpolated from another grid.
        ignored: the file's tensors that have no place in the network.
        initialised: the network's tensors that the file does not have; they keep the values they had.
    """

    taken: tuple[str, ...]
    resized: tuple[str, ...]
    ignored: tuple[str, ...]
    initialised: tuple[str, ...]

    def summary(self) -> str:
        """One line for the log."""
        resized = f" ({', '.join(self.resized)} interpolated from another grid)" if self.resized else ""
        return (
            f"{len(self.taken)} tensors taken{resized}; {len(self.ignored)} ignored: {first_names(self.ignored)}; "
            f"{len(self.initialised)} not in the file, left as they were: {first_names(self.initialised)}"
        )


def load_vit_weights(model: VisionTransformer, path: str | Path) -> LoadAccount:
    """Loads a file of weights into a vision transformer, which changes only if the file fits.

    Args:
        model: network to fill.
        path: a state dict, alone or under 'state_dict', 'model' or 'teacher', its names possibly with the prefix
            'module.', 'backbone.' or 'base.'.

    Returns:
        The tensors that were taken, ignored and left; also logged.

    Raises:
        CheckpointError: unreadable file, missing or unknown tensors, another width, depth or patch size, or positions
            of an unknown grid.
    """
    state = _plain_state(load_checkpoint(path), path)
    own = model.state_dict()
    given, resized = _with_positions(state, model, path)
    _drop_other_classes(given, own)
    ignored = sorted(name for name in given if name not in own and _FOREIGN.match(name))
    initialised = sorted(name for name in own if name not in given and _REPLACEABLE.match(name))
    target = "this vision transformer"
    check_state_dict(given, own, f"'{path}'", target, ignore={*ignored, *initialised}, advice=_ADVICE)
    taken = {name: tensor for name, tensor in given.items() if name in own}
    ignored += sorted(state.keys() - given.keys())
    model.load_state_dict({**own, **taken})
    account = LoadAccount(tuple(sorted(taken)), resized, tuple(ignored), tuple(initialised))
    logger.info("'%s': %s", path, account.summary())
    return account


def _plain_state(content: Any, path: str | Path) -> dict[str, Tensor]:
    """The state dict in a file, its names without wrappers."""
    while isinstance(content, Mapping):
        inside = next((content[key] for key in _CONTAINERS if isinstance(content.get(key), Mapping)), None)
        if inside is None:
            break
        content = inside
    is_state = isinstance(content, Mapping) and all(isinstance(name, str) for name in content)
    if not is_state or not content or not all(map(torch.is_tensor, content.values())):
        raise CheckpointError(
            f"'{path}' holds no state dict; expected names and tensors, alone or under {', '.join(_CONTAINERS)}"
        )
    state: dict[str, Tensor] = {}
    for name, tensor in content.items():
        plain = name
        for prefix in _PREFIXES:
            plain = plain.removeprefix(prefix)
        if plain in state:
            raise CheckpointError(f"'{path}' has two tensors for '{plain}' behind different prefixes; keep one of them")
        state[plain] = tensor
    return state


def _with_positions(
    state: Mapping[str, Tensor], model: VisionTransformer, path: str | Path
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The state with positions of the class token apart and of the patches on the model's grid.

    ImageNet and DINO files keep the class token's position in front of the patches', PASS files separately.
    """
    given = dict(state)
    positions = given.get("pos_embed")
    if positions is None:
        return given, ()
    if positions.dim() != 3 or positions.shape[2] != model.pos_embed.shape[2]:
        return given, ()  # another width: reported with the other tensors that do not fit
    if "cls_pos" not in given:
        own_tokens = 2 if "dist_token" in given else 1
        given["cls_pos"] = positions[:, :1]
        positions = given["pos_embed"] = positions[:, own_tokens:]
    count = positions.shape[1]
    if count == model.pos_embed.shape[1]:
        return given, ()
    given["pos_embed"] = resized_positions(positions.float(), _grid_of(count, model.grid, path), model.grid)
    return given, ("pos_embed",)


def _grid_of(count: int, grid: tuple[int, int], path: str | Path) -> tuple[int, int]:
    """(rows, columns) of a number of patches: a square, or the model's own proportions.

    Example: 196 patches are 14 x 14; 200 patches, for a model of 16 x 8, are 20 x 10.
    """
    side = math.isqrt(count)
    if side * side == count:
        return side, side
    columns = math.isqrt(count * grid[1] // grid[0])
    if columns and columns * grid[0] % grid[1] == 0 and columns * columns * grid[0] // grid[1] == count:
        return columns * grid[0] // grid[1], columns
    raise CheckpointError(
        f"'{path}' has positions of {count} patches, which are neither a square grid nor one of the network's "
        f"proportions {grid[0]}:{grid[1]}; build the network with the image_size that they were trained at"
    )


def _drop_other_classes(given: dict[str, Tensor], own: Mapping[str, Tensor]) -> None:
    """Leaves out, in place, a classifier of another label set."""
    weight = given.get("classifier.weight")
    expected = own["classifier.weight"].shape
    if weight is not None and weight.shape != expected and weight.shape[1:] == expected[1:]:
        del given["classifier.weight"]
