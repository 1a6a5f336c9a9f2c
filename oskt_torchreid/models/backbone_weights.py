"""Published weights for convolutional networks: ImageNet (torchvision), MoCo and its kin (LUPerson), checkpoints.

A file is taken in full or not at all, and everything left out is reported: classifiers of other label sets and tensors
that a self-supervised program keeps besides its encoder are ignored; neck, classifier and BAM gates, which such files
do not have, keep their first values. Anything else that is missing or unknown is an error.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..errors import CheckpointError
from ..files import load_checkpoint
from ..files.weights import check_state_dict, state_dict_of
from ..networks import inner_names, is_classifier
from .vit_weights import LoadAccount

logger = logging.getLogger(__name__)

_CONTAINERS = ("model", "teacher", "student")  # where training programs keep the state dict, besides 'state_dict'
_ENCODERS = ("encoder_q.", "base_encoder.")  # the network that MoCo (v1 and v2, v3) trains; the rest of it is training
_PREFIXES = ("backbone.", "base.")
_FOREIGN = re.compile(r"(fc\d*|head|classifier|last_linear|projector|predictor|bottleneck)\.")
_REPLACEABLE = re.compile(r"(neck|classifier|fc)\.|.*\.num_batches_tracked$|(.*\.)?bam\.")


def load_backbone_weights(model: nn.Module, path: str | Path) -> LoadAccount:
    """Loads a file of weights into a network of torchreid, with or without a neck; it changes only if the file fits.

    Args:
        model: network to fill.
        path: a state dict, alone or under 'state_dict', 'model', 'teacher' or 'student', its names possibly with the
            prefix 'module.', 'encoder_q.', 'base_encoder.', 'backbone.' or 'base.'.

    Returns:
        The tensors that were taken, ignored and left; also logged.

    Raises:
        CheckpointError: unreadable file, or one that lacks tensors of the backbone, has others, or of other shapes.
    """
    file = _state(load_checkpoint(path), path)
    own = model.state_dict()
    full_names = {**{name: name for name in own}, **inner_names(own)}
    given = {full_names.get(plain, plain): name for plain, name in _plain_names(file, path).items()}
    _drop_other_classes(given, file, own)
    state = {name: file[stored] for name, stored in given.items() if name in own or not _FOREIGN.match(name)}
    initialised = sorted(name for name in own if name not in state and _REPLACEABLE.match(name))
    check_state_dict(state, own, source=f"'{path}'", target=type(model).__name__, ignore=initialised)
    model.load_state_dict({**own, **state})
    used = {given[name] for name in state}
    account = LoadAccount(tuple(sorted(state)), (), tuple(sorted(file.keys() - used)), tuple(initialised))
    logger.info("'%s': %s", path, account.summary())
    return account


def _state(content: Any, path: str | Path) -> dict[str, Tensor]:
    """The state dict in a file, its names without 'module.'."""
    if isinstance(content, Mapping) and "state_dict" not in content:
        content = next((content[key] for key in _CONTAINERS if isinstance(content.get(key), Mapping)), content)
    return state_dict_of(content, path)


def _plain_names(file: Mapping[str, Tensor], path: str | Path) -> dict[str, str]:
    """Names inside the network, without prefixes -> names in the file.

    Example: `encoder_q.conv1.weight` becomes `conv1.weight`, and `encoder_k.conv1.weight` is left out.
    """
    encoder = next((prefix for prefix in _ENCODERS if any(name.startswith(prefix) for name in file)), "")
    plain_names: dict[str, str] = {}
    for name in file:
        if not name.startswith(encoder):
            continue
        plain = name.removeprefix(encoder)
        for prefix in _PREFIXES:
            plain = plain.removeprefix(prefix)
        if plain in plain_names:
            raise CheckpointError(
                f"'{path}' has both '{plain_names[plain]}' and '{name}' for '{plain}'; keep one of them"
            )
        if not (encoder and plain.startswith("fc.")):  # MoCo's queue of features, not a layer of the network
            plain_names[plain] = name
    return plain_names


def _drop_other_classes(given: dict[str, str], file: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> None:
    """Leaves out, in place, a classifier of another label set, or one with a bias if the network has none."""
    theirs = {name: file[stored].shape for name, stored in given.items() if is_classifier(name)}
    mine = {name: tensor.shape for name, tensor in own.items() if is_classifier(name)}
    if theirs != mine:
        for name in theirs:
            del given[name]
