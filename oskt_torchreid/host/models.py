"""torchreid's model factory: names, building, recognising a model, and its outputs."""

import contextlib
import functools
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..errors import ConfigError
from ..registry import nearest
from .compat import host_table, quiet, torchreid
from .initialization import NoInitialization

Builder = Callable[..., nn.Module]

logger = logging.getLogger(__name__)

LOSSES = ("softmax", "triplet")
_DEFAULT_INPUT = (3, 256, 128)
_INPUT_SIZES = {"hacnn": (3, 160, 64)}  # its attention grids fit no other size
_WRAPPER = "backbone."
_WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel)
_WRAPPED: dict[str, str] = {}  # registered wrapper -> name of the model inside it
_DEFINED_IN: dict[str, str] = {}  # registered name -> Python module of its model's class, where not its builder's


@dataclass(frozen=True)
class ModelSpec:
    """What rebuilds a model: arguments of `build`."""

    name: str
    num_classes: int
    loss: str


class Outputs(NamedTuple):
    """A model's outputs in one shape; one entry per branch, empty where the model gave none.

    Attributes:
        logits: tensors [batch, classes].
        features: tensors [batch, channels].
    """

    logits: tuple[Tensor, ...]
    features: tuple[Tensor, ...]


def _factory() -> dict[str, Builder]:
    return host_table(torchreid.models.build_model, "__model_factory")


def model_names() -> list[str]:
    """Every name that `build` knows, registered ones included."""
    return list(_factory())


def builder_of(name: str) -> Builder:
    """The function behind a name.

    Raises:
        ConfigError: unknown name; the message has the nearest ones.
    """
    factory = _factory()
    if name not in factory:
        hint = nearest(name, factory) or f"; known models: {', '.join(sorted(factory))}"
        raise ConfigError(f"unknown model '{name}'{hint} (torchreid.models.show_avai_models() lists all)")
    return factory[name]


def register_model(
    name: str,
    builder: Builder,
    wraps: str = "",
    input_size: tuple[int, int, int] = _DEFAULT_INPUT,
    defined_in: str = "",
) -> None:
    """Adds a model name to torchreid's factory; registering an equal builder again changes nothing.

    Args:
        name: name for `torchreid.models.build_model`.
        builder: called with `num_classes`, `loss`, `pretrained` and `use_gpu`.
        wraps: name of the model that the built one contains as a child, if any; `identify` needs it.
        input_size: (channels, height, width) that the model is made for; a wrapper has that of what it wraps.
        defined_in: Python module of the model's class, where it is not the builder's; `identify` needs it.

    Raises:
        ConfigError: another builder has the name.
    """
    known = _factory().setdefault(name, builder)
    if known != builder:
        owner = getattr(known, "__qualname__", type(known).__qualname__)
        raise ConfigError(f"model name '{name}' belongs to {known.__module__}.{owner}; choose another name")
    if defined_in:
        _DEFINED_IN[name] = defined_in
    if wraps:
        _WRAPPED[name] = wraps
    else:
        _INPUT_SIZES[name] = input_size


def build(
    name: str, num_classes: int, loss: str = "softmax", pretrained: bool = False, use_gpu: bool = False
) -> nn.Module:
    """Builds a model by name, as `torchreid.models.build_model` does.

    Raises:
        ConfigError: unknown name, or a loss that torchreid's models do not know.
    """
    builder = builder_of(name)
    if loss not in LOSSES:
        raise ConfigError(f"loss of model '{name}' is '{loss}'; allowed: {', '.join(LOSSES)}")
    with quiet():
        return builder(num_classes=num_classes, loss=loss, pretrained=pretrained, use_gpu=use_gpu)


@functools.lru_cache(maxsize=128)
def skeleton(name: str, num_classes: int, loss: str = "softmax") -> nn.Module:
    """The model on the meta device: shapes without memory. Consumes no random numbers of torch.

    The result is cached and shared: copy it (`copy.deepcopy`) before changing it.
    """
    return without_memory(lambda: build(name, num_classes, loss))


def without_memory(make: Callable[[], nn.Module]) -> nn.Module:
    """What `make` builds, on the meta device. Consumes no random numbers of torch."""
    with torch.random.fork_rng(devices=[]):
        with contextlib.suppress(NotImplementedError, RuntimeError), torch.device("meta"), NoInitialization():
            model = make()
            if not _keeps_plain_tensors(model):
                return model
        # A builder cannot run without memory that reads values of its tensors, or keeps some outside of the state dict.
        return make().to("meta")


def _keeps_plain_tensors(model: nn.Module) -> bool:
    """Whether a module has a tensor, or a list of them, as a plain attribute."""
    values = [value for module in model.modules() for value in vars(module).values()]
    items = [item for value in values for item in (value if isinstance(value, (list, tuple)) else (value,))]
    return any(torch.is_tensor(item) for item in items)


def input_size(name: str) -> tuple[int, int, int]:
    """(channels, height, width) that the model is made for."""
    builder_of(name)
    return _INPUT_SIZES.get(_WRAPPED.get(name, name), _DEFAULT_INPUT)


def identify(model: nn.Module) -> ModelSpec | None:
    """Which registered name builds this model: same modules, same tensor names and shapes; None if none does.

    Where two names build the same network, the first registered is given.
    """
    loss = getattr(model, "loss", "softmax")
    shapes, kernels = _shapes(model), _kernels(model)
    for name in _candidates(model):
        for num_classes in _class_counts(model):
            twin = skeleton(name, num_classes, loss if loss in LOSSES else "softmax")
            if _shapes(twin) == shapes and str(twin) == str(model):
                return ModelSpec(name, num_classes, twin.loss if hasattr(twin, "loss") else "softmax")
            if _shapes(twin).keys() != shapes.keys() or _kernels(twin) != kernels:
                break  # another class count changes neither names nor kernels
    return None


def _candidates(model: nn.Module) -> Iterator[str]:
    """Names worth comparing with, told by cheap facts.

    A builder is mostly defined in the module that defines its model's class. A wrapper's is not, but the wrapped model
    is among the children, with every kernel of its own.
    """
    own = type(model).__module__
    children = {type(child).__module__ for child in model.children()}
    kernels = _kernels(model)
    for name in _factory():
        wraps = _WRAPPED.get(name)
        if wraps:
            fits = _defined_in(wraps) in children and _kernels(skeleton(wraps, 2)) <= kernels
        else:
            fits = _defined_in(name) == own
        if fits:
            yield name


def _defined_in(name: str) -> str:
    return _DEFINED_IN.get(name, builder_of(name).__module__)


def _kernels(model: nn.Module) -> Counter[torch.Size]:
    """How many parameters of each shape with more than two axes a model has."""
    return Counter(parameter.shape for parameter in model.parameters() if parameter.dim() > 2)


def _class_counts(model: nn.Module) -> list[int]:
    """Possible class counts: output widths of the linear layers, last first (the classifier mostly comes last)."""
    widths = [module.out_features for module in model.modules() if isinstance(module, nn.Linear)]
    return list(dict.fromkeys(reversed(widths)))


def _shapes(model: nn.Module) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in model.state_dict().items()}


def inner_names(names: Iterable[str]) -> dict[str, str]:
    """Names of the network inside a wrapper of this package -> full names; of a bare network all names, unchanged."""
    names = list(names)
    inner = {name.removeprefix(_WRAPPER): name for name in names if name.startswith(_WRAPPER)}
    return inner or {name: name for name in names}


def is_classifier(name: str) -> bool:
    """Whether a tensor belongs to the classifier of torchreid's models."""
    return name.startswith("classifier")


def is_foreign_classifier(name: str) -> bool:
    """Whether a tensor belongs to a classifier as other programs name it (torchvision, timm).

    torchreid's own ``fc.0.weight``, a layer that makes a shorter feature, does not.
    """
    return name in ("fc.weight", "fc.bias", "head.weight", "head.bias")


def set_feature_dim(model: nn.Module, feature_dim: int) -> None:
    """Corrects, in place, the attribute that holds the feature's length in torchreid's models, where there is one."""
    if isinstance(getattr(model, "feature_dim", None), int):
        model.feature_dim = feature_dim


def unwrapped(model: nn.Module) -> nn.Module:
    """The network inside of torch's wrappers for several devices; any other network as it is.

    Its parameters are those of the wrapper, so that an optimiser of the one is an optimiser of the other.
    """
    wrapped = model
    while isinstance(model, _WRAPPERS):
        model = model.module
    if model is not wrapped:
        logger.info(
            "%s is taken off its network: an engine runs on one device; several share batches under torchrun",
            type(wrapped).__name__,
        )
    return model


def initialise(model: nn.Module) -> None:
    """Gives every layer fresh weights, in place: torch's own, then the model's own initialisation where it has one."""
    for module in model.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    for module in model.modules():
        if hasattr(module, "_init_params"):  # the name that torchreid's models use
            module._init_params()


def parse_outputs(outputs: Any, training: bool, loss: str = "") -> Outputs:
    """Brings the outputs of any torchreid model into one shape.

    In evaluation models give features; in training logits (softmax) or a pair of logits and features (triplet); each
    may be a list of branches.

    Args:
        outputs: what the model returned.
        training: whether it was in training mode.
        loss: 'softmax' or 'triplet', as the model was built; empty: told from the structure.

    Raises:
        ConfigError: a pair of equally wide tensors without `loss`: two branches' logits or logits and features.
    """
    if not training:
        return Outputs((), _branches(outputs))
    if loss != "softmax" and isinstance(outputs, (tuple, list)) and len(outputs) == 2:
        logits, features = _branches(outputs[0]), _branches(outputs[1])
        nested = not (torch.is_tensor(outputs[0]) and torch.is_tensor(outputs[1]))
        if loss == "triplet" or nested or logits[0].shape[1] != features[0].shape[1]:
            return Outputs(logits, features)
        raise ConfigError(
            f"the model returned two tensors of shape {tuple(logits[0].shape)}: logits and features, or logits of two "
            "branches; pass loss='triplet' or loss='softmax' to parse_outputs"
        )
    return Outputs(_branches(outputs), ())


def _branches(outputs: Tensor | Sequence[Tensor]) -> tuple[Tensor, ...]:
    return (outputs,) if torch.is_tensor(outputs) else tuple(outputs)
