"""A batch norm neck (BNNeck) on any backbone, and a last stride of 1 on any backbone that has one to remove."""

import copy
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from ..errors import ConfigError
from ..host.models import LOSSES, build, builder_of, input_size, register_model, skeleton
from ..networks import DEFAULT_INPUT_SIZE, linear_of, parse_outputs, watched, without_memory_or_on_cpu

PREFIX, NECK_PREFIX = "oskt_", "neck_"
# Re-identification networks keep a map of 1/16 of the input's height; classification networks end at 1/32.
LAST_REDUCTION = 16
Result = TypeVar("Result")


class NeckModel(nn.Module):
    """Backbone, batch norm neck, bias-free classifier; follows torchreid's forward protocol.

    The triplet loss works on the feature before the neck, the classifier on the feature after it.

    Args:
        backbone: torchreid model with one classifier. It changes: the classifier becomes an identity.
        num_classes: training identities.
        loss: 'softmax' (training gives logits) or 'triplet' (logits and features before the neck).
        feature: which feature evaluation gives, 'after' or 'before' the neck.
        input_size: (channels, height, width) at which the backbone runs once, without memory, to find its classifier.
        classifier: name of the backbone's classifier if known; empty: find it.

    Raises:
        ConfigError: no or several classifiers, or an unknown `loss` or `feature`.
    """

    has_neck = True
    head_modules: tuple[str, ...] = ("neck", "classifier")

    def __init__(
        self,
        backbone: nn.Module,
        num_classes: int,
        loss: str = "softmax",
        feature: str = "after",
        input_size: tuple[int, int, int] = DEFAULT_INPUT_SIZE,
        classifier: str = "",
    ) -> None:
        super().__init__()
        _check_choice("loss", loss, LOSSES)
        _check_choice("feature", feature, ("after", "before"))
        name = classifier or find_classifier(backbone, input_size)
        self.loss = loss
        self.feature = feature
        self.feature_dim = linear_of(backbone, name).in_features
        backbone.set_submodule(name, nn.Identity())
        self.replaced = name
        self.backbone = backbone
        self.neck = nn.BatchNorm1d(self.feature_dim)
        self.neck.bias.requires_grad_(False)  # keeps the neck's features centred, as its authors do
        self.classifier = nn.Linear(self.feature_dim, num_classes, bias=False)
        nn.init.normal_(self.classifier.weight, std=0.001)

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Feature [batch, feature_dim] in evaluation; in training logits [batch, classes], with features for triplet.

        The mode of this module alone decides, whatever the modes of its children: with the classifier replaced, the
        backbone gives its feature in either mode.
        """
        outputs = self.backbone(images)
        before = outputs if torch.is_tensor(outputs) else outputs[0]
        if not self.training and self.feature == "before":
            return before
        after = self.neck(before)
        if not self.training:
            return after
        logits = self.classifier(after)
        return (logits, before) if self.loss == "triplet" else logits


def find_classifier(backbone: nn.Module, input_size: tuple[int, int, int] = DEFAULT_INPUT_SIZE) -> str:
    """Name of the linear layer whose output the backbone returns as its logits in training.

    Raises:
        ConfigError: there is none, or one per branch.
    """
    return _classifier_of(backbone, *_dry_run(backbone, input_size))


def set_last_stride(
    model: nn.Module, stride: int = 1, input_size: tuple[int, int, int] = DEFAULT_INPUT_SIZE
) -> tuple[str, ...]:
    """Sets the stride of the convolutions that downsample last, those that see the smallest map.

    A network whose last map is 1/16 of the input or larger has no such stage and is not changed.

    Args:
        model: network to change.
        stride: new stride.
        input_size: (channels, height, width) at which the network runs once, without memory.

    Returns:
        Names of the changed convolutions.

    Raises:
        ConfigError: a pooling layer, or a convolution that would change the map's size at stride 1, downsamples last.
    """
    calls, _ = _dry_run(model, input_size)
    names = _last_strided(model, calls, input_size)
    _set_strides(model, names, stride)
    return names


@dataclass(frozen=True)
class NeckBuilder:
    """Builds `oskt_<backbone>`, a neck on the backbone with last stride 1 if it allows that; or `neck_<backbone>`.

    Attributes:
        backbone: registered name.
        keeps_stride: whether the backbone's own last stride is kept.
    """

    backbone: str
    keeps_stride: bool = False
    has_neck: ClassVar[bool] = True

    def __call__(
        self, num_classes: int, loss: str = "softmax", pretrained: bool = True, use_gpu: bool = True
    ) -> NeckModel:
        """Arguments as every builder of torchreid's factory."""
        if self.keeps_stride:
            backbone = build(self.backbone, num_classes, loss, pretrained, use_gpu)
            return NeckModel(backbone, num_classes, loss, classifier=_layout(self.backbone).classifier)
        backbone, classifier = build_for_neck(self.backbone, num_classes, loss, pretrained, use_gpu)
        return NeckModel(backbone, num_classes, loss, classifier=classifier)


def register_neck_model(name: str) -> None:
    """Registers `oskt_<name>` for a backbone without a neck; doing it again changes nothing."""
    if not getattr(builder_of(name), "has_neck", False):
        register_model(PREFIX + name, NeckBuilder(name), wraps=name)


def register_neck_alone(name: str) -> None:
    """Registers `neck_<name>`, the backbone with a neck and its own last stride; doing it again changes nothing."""
    if not getattr(builder_of(name), "has_neck", False):
        register_model(NECK_PREFIX + name, NeckBuilder(name, keeps_stride=True), wraps=name)


def build_for_neck(
    name: str, num_classes: int, loss: str, pretrained: bool = False, use_gpu: bool = False
) -> tuple[nn.Module, str]:
    """A registered backbone, with last stride 1 if it allows that, and the name of its classifier.

    Raises:
        ConfigError: no or several classifiers.
    """
    layout = _layout(name)
    backbone = build(name, num_classes, loss, pretrained, use_gpu)
    _set_strides(backbone, layout.last_strided, 1)
    return backbone, layout.classifier


def last_strided(name: str) -> tuple[str, ...]:
    """Convolutions of a registered backbone whose stride a neck model sets to 1; errors of `build_for_neck`."""
    return _layout(name).last_strided


class _Layout(NamedTuple):
    """A registered backbone's classifier and its last downsampling convolutions (none: nothing to set)."""

    classifier: str
    last_strided: tuple[str, ...]


@functools.lru_cache(maxsize=128)
def _layout(name: str) -> _Layout:
    size = input_size(name)
    try:
        model = skeleton(name, num_classes=2)
        calls, outputs = _dry_run(model, size)
    except ConfigError:
        # Some operators fail without memory (a sampling grid of HACNN): run the network itself.
        model = build(name, num_classes=2)
        calls, outputs = _dry_run(model, size)
    classifier = _classifier_of(model, calls, outputs)
    try:
        return _Layout(classifier, _last_strided(model, calls, size))
    except ConfigError:
        return _Layout(classifier, ())  # such a backbone keeps its stride


class _Call(NamedTuple):
    """One call of a module: its name, the module, its input and its output."""

    name: str
    module: nn.Module
    input: Tensor
    output: Tensor


def _classifier_of(model: nn.Module, calls: list[_Call], outputs: Any) -> str:
    logits = parse_outputs(outputs, training=True, loss=getattr(model, "loss", "")).logits
    linear = [call for call in calls if isinstance(call.module, nn.Linear)]
    names = [call.name for call in linear if any(call.output is branch for branch in logits)]
    if len(names) == 1 and len(logits) == 1:
        return names[0]
    found = f"{len(names)} ({', '.join(names)})" if names else "none"
    raise ConfigError(
        f"a neck goes before one linear classifier; {type(model).__name__} gives {len(logits)} logits from {found}: "
        "use a backbone with a single one, or this backbone without a neck"
    )


def _last_strided(model: nn.Module, calls: list[_Call], size: tuple[int, int, int]) -> tuple[str, ...]:
    pooling = (nn.MaxPool2d, nn.AvgPool2d)
    strided = [
        call
        for call in calls
        if isinstance(call.module, (nn.Conv2d, *pooling))
        and call.module.stride not in (1, (1, 1), [1, 1])
        and call.output.shape[2:].numel() > 1  # global pooling reads the last map, it does not make one
    ]
    smallest = min((call.input.shape[2:].numel() for call in strided), default=0)
    last = [call for call in strided if call.input.shape[2:].numel() == smallest]
    if all(call.output.shape[2] * LAST_REDUCTION >= size[1] for call in last):
        return ()
    obstacles = [f"{call.name} ({type(call.module).__name__})" for call in last if not _keeps_size(call.module)]
    if obstacles:
        raise ConfigError(
            f"the last stride of {type(model).__name__} cannot be set: {', '.join(obstacles)} downsamples last and "
            "does not keep the map's size at stride 1; keep this backbone's stride (model.last_stride 0)"
        )
    return tuple(call.name for call in last)


def _dry_run(model: nn.Module, size: tuple[int, int, int]) -> tuple[list[_Call], Any]:
    """Runs a copy of the model once: calls of its leaf modules in order, and the root's training outputs.

    Only the root is in training mode, so that classifiers run and no statistics change.
    """
    return run_on_meta(model, size, _recorded_run)


def run_on_meta(model: nn.Module, size: tuple[int, int, int], run: Callable[[nn.Module, Tensor], Result]) -> Result:
    """The result of `run` for a copy of the model and an image of that size.

    Both are without memory if the model's operators allow it, else on the CPU.

    Raises:
        ConfigError: the model cannot run on such an image.
    """

    def attempt(device: str) -> Result:
        return run(copy.deepcopy(model).to(device), torch.zeros(1, *size, device=device))

    has_memory = not any(parameter.is_meta for parameter in model.parameters())
    try:
        return without_memory_or_on_cpu(attempt) if has_memory else attempt("meta")
    except (RuntimeError, AssertionError, TypeError, ValueError) as reason:
        raise ConfigError(
            f"{type(model).__name__} cannot run on an input of size {size} ({reason}); give the size it is made for"
        ) from reason


def _recorded_run(model: nn.Module, images: Tensor) -> tuple[list[_Call], Any]:
    calls: list[_Call] = []

    def leave(name: str, module: nn.Module, args: tuple, output: Tensor) -> None:
        calls.append(_Call(name, module, args[0], output))

    leaves = ((name, module) for name, module in model.named_modules() if not list(module.children()))
    model.eval()
    model.training = True
    with torch.no_grad(), watched(leaves, leave=leave):
        return calls, model(images)


def _set_strides(model: nn.Module, convolutions: Sequence[str], stride: int) -> None:
    for name, module in model.named_modules():
        if name in convolutions and isinstance(module, nn.Conv2d):
            module.stride = (stride, stride)


def _keeps_size(module: nn.Module) -> bool:
    """Whether the output map is as large as the input map at stride 1."""
    if not isinstance(module, nn.Conv2d) or isinstance(module.padding, str):
        return False
    settings = zip(module.padding, module.dilation, module.kernel_size, strict=True)
    return all(2 * padding == dilation * (kernel - 1) for padding, dilation, kernel in settings)


def _check_choice(what: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ConfigError(f"{what} of the neck model is '{value}'; allowed: {', '.join(allowed)}")
