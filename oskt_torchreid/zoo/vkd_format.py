"""The VKD authors' checkpoint folders: `params/hparams.json` and state dicts in `chk/`.

`hparams.json` names the backbone and the number of classes. A state dict holds `backbone.features_layers.<number>`,
the parts of torchvision's network of that backbone in order, `classifier.bottleneck` (the neck) and
`classifier.classifier.weight`. Two of their networks are not quite torchreid's: their ResNets lose every ReLU of the
last block, whose three share one module, and their MobileNet does not expand in its first block.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from torch import nn

from .. import files
from ..errors import ZooError
from ..files.weights import state_dict_of
from ..models.neck import build_for_neck
from ..networks import compare
from ..vkd.model import SetModel, last_relu_of
from .account import StateReader

SETTINGS = Path("params") / "hparams.json"
CHECKPOINTS = "chk"
BACKBONE_NAMES = {
    "resnet18": "resnet18",
    "resnet34": "resnet34",
    "resnet50": "resnet50",
    "resnet101": "resnet101",
    "resnet50bam": "resnet50_bam",
    "resnet101bam": "resnet101_bam",
    "densenet121": "densenet121",
    "mobilenet": "mobilenetv2_x1_0",
}
"""The authors' names and torchreid's."""

_NOTHING = re.compile(r"(?!)")  # no tensor of these files is scratch
_HEAD = {"neck": "classifier.bottleneck", "classifier": "classifier.classifier"}
_STEM = {"conv1": "0.0", "bn1": "0.1"}
_CHANNEL_GATE = {"0": "gate_c_fc_0", "1": "gate_c_bn_1", "3": "gate_c_fc_final"}
_SPATIAL_GATE = {
    "0": "gate_s_conv_reduce0",
    "1": "gate_s_bn_reduce0",
    "3": "gate_s_conv_di_0",
    "4": "gate_s_bn_di_0",
    "6": "gate_s_conv_di_1",
    "7": "gate_s_bn_di_1",
    "9": "gate_s_conv_final",
}
_EXPANSION = "conv2.0.conv1"  # in the first block of torchreid's MobileNet, but not in theirs
_FIRST_STAGE, _LAST_STAGE = 2, 9  # MobileNet's stages in torchreid: `conv2`, ..., `conv9`


def load_official_vkd(folder: str | Path, checkpoint: str = "", loss: str = "triplet") -> SetModel:
    """Reads a network of sets that the VKD authors' program trained. No code from the file is run.

    Args:
        folder: with `params/hparams.json` and the state dicts in `chk/`.
        checkpoint: name of the state dict, such as `chk_end` or `chk_di_1`; only needed if there are several.
        loss: `softmax` or `triplet`, for training on; it changes nothing in evaluation.

    Returns:
        `vkd_<backbone>` as the authors compute it, in evaluation mode.

    Raises:
        ZooError: files that are missing, damaged or of an unknown backbone, and tensors that are missing, unexpected or
            of another shape.
    """
    folder = Path(folder)
    backbone_type, num_classes = _settings(folder / SETTINGS)
    path = _checkpoint_path(folder / CHECKPOINTS, checkpoint)
    state = state_dict_of(files.load_checkpoint(path, ZooError), path)
    reader = StateReader(state, path, _NOTHING)
    if (found := reader.rows(f"{_HEAD['classifier']}.weight", 2)) != num_classes:
        settings = folder / SETTINGS
        raise ZooError(f"'{path}' has {found} classes, '{settings}' says {num_classes}; the two do not belong together")
    model = make_network(backbone_type, num_classes, loss)
    own = model.state_dict()
    named = {name: official_name(name, model) for name in own}
    tensors = {name: reader.take(theirs, tuple(own[name].shape)) for name, theirs in named.items() if theirs}
    reader.close()
    for name, fault in compare(tensors, own).unusable.items():
        raise reader.error(named[name], fault)
    model.load_state_dict({**own, **tensors})
    return model.eval()


def make_network(backbone_type: str, num_classes: int, loss: str) -> SetModel:
    """`vkd_<backbone>` as the authors compute it, with fresh weights."""
    name = BACKBONE_NAMES[backbone_type]
    backbone, classifier = build_for_neck(name, num_classes, loss)
    if backbone_type == "mobilenet":
        backbone.set_submodule(_EXPANSION, nn.Identity())
    last_relu = last_relu_of(name)
    return SetModel(backbone, num_classes, loss, classifier=classifier, last_relu=last_relu, whole_block=True)


def _settings(path: Path) -> tuple[str, int]:
    settings = files.read_json(path, ZooError)
    kind, classes = (
        settings.get(key) if isinstance(settings, dict) else None for key in ("backbone_type", "num_classes")
    )
    if kind not in BACKBONE_NAMES:
        raise ZooError(f"'{path}' has the backbone_type {kind!r}; known: {', '.join(BACKBONE_NAMES)}")
    if type(classes) is not int or classes < 1:
        raise ZooError(f"'{path}' has num_classes {classes!r}; it must be a number of at least 1")
    return kind, classes


def _checkpoint_path(folder: Path, checkpoint: str) -> Path:
    if checkpoint:
        return folder / checkpoint
    found = sorted(path for path in folder.iterdir() if path.is_file()) if folder.is_dir() else []
    if len(found) != 1:
        has = ", ".join(path.name for path in found) or "no file"
        raise ZooError(
            f"'{folder}' must have one state dict; it has {has}" + ("; name one with checkpoint=..." if found else "")
        )
    return found[0]


# ---- names -----------------------------------------------------------------------------------------------------------


def official_name(name: str, model: SetModel) -> str:
    """The authors' name of a tensor of `vkd_<backbone>`; empty for one that they have no place for.

    Args:
        name: in the state dict.
        model: the network; its structure shows the family.
    """
    module, _, tensor = name.rpartition(".")
    if module in _HEAD:
        return f"{_HEAD[module]}.{tensor}"
    inner = module.removeprefix("backbone.").split(".")
    if module == "" or not module.startswith("backbone."):
        return ""
    if inner[0] == "features":
        place = _dense_place(inner[1:], model.get_submodule("backbone.features"))
    elif hasattr(model.backbone, "layer1"):
        place = _residual_place(inner)
    else:
        place = _mobile_place(inner, model.backbone)
    return f"backbone.features_layers.{place}.{tensor}"


def _residual_place(inner: Sequence[str]) -> str:
    """`layer2.0.conv1` -> `2.0.0.conv1`: a stage is wrapped once more, and the stem is number 0."""
    if inner[0] in _STEM:
        return _STEM[inner[0]]
    stage, block, *rest = inner
    if block == "bam":
        gate, number = rest
        kind, names = ("channel", _CHANNEL_GATE) if gate == "channel_gate" else ("spatial", _SPATIAL_GATE)
        rest = [f"{kind}_att", f"gate_{kind[0]}", names[number]]
    return ".".join([stage.removeprefix("layer"), "0", block, *rest])


def _dense_place(inner: Sequence[str], features: nn.Module) -> str:
    """`denseblock1.denselayer1.conv1` -> `4.denselayer1.conv1`: the parts of `features` are numbered."""
    numbers = {name: str(number) for number, (name, _) in enumerate(features.named_children())}
    return ".".join([numbers[inner[0]], *inner[1:]])


def _mobile_place(inner: Sequence[str], backbone: nn.Module) -> str:
    """`conv3.1.dwconv2.bn` -> `3.conv.1.1`: blocks are numbered through, convolution and norm are 0 and 1."""
    part = {"conv": "0", "bn": "1"}
    if inner[0] == "conv1":
        return f"0.{part[inner[1]]}"
    if inner[0] == f"conv{_LAST_STAGE}":
        return f"{1 + _blocks_before(_LAST_STAGE, backbone)}.{part[inner[1]]}"
    stage, block, layer, inside = int(inner[0].removeprefix("conv")), int(inner[1]), inner[2], inner[3]
    place = f"{1 + _blocks_before(stage, backbone) + block}.conv"
    expands = 0 if stage == _FIRST_STAGE and block == 0 else 1
    if layer == "conv1":
        return f"{place}.0.{part[inside]}"
    if layer == "dwconv2":
        return f"{place}.{expands}.{part[inside]}"
    return f"{place}.{expands + 1 + int(inside)}"


def _blocks_before(stage: int, backbone: nn.Module) -> int:
    return sum(len(getattr(backbone, f"conv{number}")) for number in range(_FIRST_STAGE, stage))
