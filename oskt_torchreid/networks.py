"""Common properties of networks for re-identification that only need torch: outputs, classifiers, names.

Names of models are resolved by whoever knows a factory: `host` registers torchreid's, when a name is first asked for at
the latest.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, Protocol, TypeGuard, TypeVar, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.hooks import RemovableHandle

from .errors import ConfigError, MissingTorchreidError
from .on_demand import integrate

DEFAULT_INPUT_SIZE = (3, 256, 128)
_WRAPPER = "backbone."
Result = TypeVar("Result")


@dataclass(frozen=True)
class ModelSpec:
    """The arguments of a builder that rebuild a model."""

    name: str
    num_classes: int
    loss: str


class Outputs(NamedTuple):
    """A model's outputs in one shape; one entry per branch, empty if the model returned none.

    Attributes:
        logits: tensors [batch, classes].
        features: tensors [batch, channels].
    """

    logits: tuple[Tensor, ...]
    features: tuple[Tensor, ...]


def parse_outputs(outputs: Any, training: bool, loss: str = "") -> Outputs:
    """Brings the outputs of any torchreid model into one shape.

    In evaluation models give features; in training logits (softmax) or a pair of logits and features (triplet); each
    may be a list of branches.

    Args:
        outputs: what the model returned.
        training: whether it was in training mode.
        loss: 'softmax' or 'triplet', as the model was built; empty: inferred from the structure.

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
    branches = (outputs,) if torch.is_tensor(outputs) else outputs
    if not isinstance(branches, (tuple, list)) or not all(map(torch.is_tensor, branches)):
        raise ConfigError(
            f"the network returned {describe_outputs(outputs)}; torchreid's protocol has a tensor, or a list of one "
            "per branch: let it return that"
        )
    return tuple(branches)


def describe_outputs(outputs: Any) -> str:
    """What a network returned, in words: `a dict of 'map' [2, 8, 4, 4] and 'scores' [2, 5]`."""
    if torch.is_tensor(outputs):
        return f"a tensor {list(outputs.shape)}"
    if isinstance(outputs, Mapping):
        parts = [f"'{name}' {_shape(value)}" for name, value in outputs.items()]
    elif isinstance(outputs, (tuple, list)):
        parts = [_shape(value) for value in outputs]
    else:
        return f"a {type(outputs).__name__}"
    return f"a {type(outputs).__name__} of {' and '.join(parts) or 'nothing'}"


def _shape(value: Any) -> str:
    return str(list(value.shape)) if torch.is_tensor(value) else type(value).__name__


def inner_names(names: Iterable[str]) -> dict[str, str]:
    """Names of the network inside a wrapper of this package -> full names; of a bare network all names, unchanged."""
    names = list(names)
    inner = {name.removeprefix(_WRAPPER): name for name in names if name.startswith(_WRAPPER)}
    return inner or {name: name for name in names}


def unwrapped(model: Any) -> Any:
    """The network inside torch's wrappers (`torch.compile`, DataParallel, DistributedDataParallel); all else unchanged.

    A wrapper holds the parameters of its network, and names them differently.
    """
    while (attribute := wrapper_attribute(model)) is not None:
        model = getattr(model, attribute)
    return model


def wrapper_attribute(model: object) -> str | None:
    """Where a wrapper of torch holds its network; `None` for anything else."""
    if isinstance(model, (nn.DataParallel, DistributedDataParallel)):
        return "module"
    compiler = sys.modules.get("torch._dynamo.eval_frame")  # its import takes longer than a trace
    return "_orig_mod" if compiler is not None and isinstance(model, compiler.OptimizedModule) else None


def is_classifier(name: str) -> bool:
    """Whether a tensor belongs to the classifier of torchreid's models."""
    return name.startswith("classifier")


def is_foreign_classifier(name: str) -> bool:
    """Whether a tensor belongs to a classifier as other programs name it (torchvision, timm).

    torchreid's own `fc.0.weight`, a layer that makes a shorter feature, does not.
    """
    return name in ("fc.weight", "fc.bias", "head.weight", "head.bias")


@runtime_checkable
class _HasFeatureDim(Protocol):
    feature_dim: int


def set_feature_dim(model: nn.Module, feature_dim: int) -> None:
    """Corrects, in place, the attribute that holds the feature's length in torchreid's models, where there is one."""
    if isinstance(model, _HasFeatureDim) and isinstance(model.feature_dim, int):
        model.feature_dim = feature_dim


def linear_of(model: nn.Module, name: str) -> nn.Linear:
    """The linear layer of a name, such as a network's classifier.

    Raises:
        ConfigError: the module of this name is another one.
    """
    module = model.get_submodule(name)
    if not isinstance(module, nn.Linear):
        raise ConfigError(
            f"'{name}' of {type(model).__name__} is a {type(module).__name__}; give the name of a linear layer"
        )
    return module


# ---- running ---------------------------------------------------------------------------------------------------------


def number_type(model: nn.Module) -> torch.dtype:
    """The type of a network's numbers, in which it takes images: that of its first floating-point parameter."""
    types = (parameter.dtype for parameter in model.parameters() if parameter.is_floating_point())
    return next(types, torch.get_default_dtype())


def is_image_size(size: object) -> TypeGuard[tuple[int, int, int]]:
    """Whether a value is `(channels, height, width)`, each 1 or more."""
    return isinstance(size, (tuple, list)) and len(size) == 3 and all(type(n) is int and n > 0 for n in size)


Enter = Callable[[str, nn.Module, tuple, dict], None]
Leave = Callable[[str, nn.Module, tuple, Any], Any]


@contextlib.contextmanager
def watched(
    modules: Iterable[tuple[str, nn.Module]], enter: Enter | None = None, leave: Leave | None = None
) -> Iterator[None]:
    """Follows every call of some modules inside the block.

    Args:
        modules: names and modules, such as `named_modules()` of a network gives.
        enter: called before each call, with the name, the module, and the arguments without and with names.
        leave: called after it, with the name, the module, its arguments without names and its output; its result
            replaces the output, unless it is `None`.
    """
    handles: list[RemovableHandle] = []
    try:
        for name, module in modules:
            if enter is not None:
                before = partial(enter, name)
                handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
            if leave is not None:
                handles.append(module.register_forward_hook(partial(leave, name)))
        yield
    finally:
        for handle in handles:
            handle.remove()


def without_memory_or_on_cpu(run: Callable[[str], Result]) -> Result:
    """The result of `run` on the device `meta`; on the CPU if a network's code cannot run without memory."""
    try:
        return run("meta")
    except (RuntimeError, AssertionError, TypeError, ValueError):  # it reads values, or keeps its own tensors
        return run("cpu")


# ---- tensors ---------------------------------------------------------------------------------------------------------


class Comparison(NamedTuple):
    """How tensors that were read differ from those of a network; everything is empty if they do not.

    Attributes:
        missing: names of the network's tensors that were not read, in order.
        unexpected: names that the network does not have.
        misshaped: names of tensors of another shape.
        unusable: why a tensor of the right shape cannot be used, by name.
    """

    missing: list[str]
    unexpected: list[str]
    misshaped: list[str]
    unusable: dict[str, str]


def compare(
    tensors: Mapping[str, Tensor],
    expected: Mapping[str, Tensor],
    ignore: Collection[str] = (),
    shape: Callable[[Tensor], object] = lambda tensor: tensor.shape,
) -> Comparison:
    """Compares names, shapes, kinds of numbers and values (which must be finite) of tensors with those of a network.

    Args:
        tensors: as they were read.
        expected: of the network; they may have no memory.
        ignore: names that may be missing, unexpected or of another shape.
        shape: the part of a tensor's shape that must agree.
    """
    shared = [name for name in expected if name in tensors]
    misshaped = dict.fromkeys(name for name in shared if shape(tensors[name]) != shape(expected[name]))
    faults = {name: _fault_of(tensors[name], expected[name]) for name in shared if name not in misshaped}
    return Comparison(
        [name for name in expected if name not in tensors and name not in ignore],
        [name for name in tensors if name not in expected and name not in ignore],
        [name for name in misshaped if name not in ignore],
        {name: fault for name, fault in faults.items() if fault},
    )


def _fault_of(tensor: Tensor, expected: Tensor) -> str:
    """Why a tensor that was read cannot replace a network's; empty if it can.

    Args:
        tensor: as it was read.
        expected: of the network, possibly without memory; its shape is not compared.
    """
    if _kind(tensor) != _kind(expected):
        return f"is {tensor.dtype} ({tensor.layout}) instead of {expected.dtype} ({expected.layout})"
    if tensor.is_floating_point() and not torch.isfinite(tensor).all():
        return "has values that are NaN or infinite"
    return ""


def _kind(tensor: Tensor) -> tuple:
    """The kind of number, without the precision of a file."""
    return tensor.layout, tensor.is_floating_point(), tensor.is_complex(), tensor.dtype == torch.bool


# ---- names of models -------------------------------------------------------------------------------------------------


class Resolver(Protocol):
    """A factory that knows the names of models."""

    def identify(self, model: nn.Module) -> ModelSpec | None:
        """The specification that rebuilds a model; `None` if no name does."""

    def input_size(self, name: str) -> tuple[int, int, int]:
        """`(channels, height, width)` that a model is made for."""

    def is_stock(self, name: str) -> bool:
        """Whether a model is one of the factory's own, or of this package's, which their tests know."""

    def builder_of(self, name: str) -> Callable[..., nn.Module]:
        """The builder of a model; raises `ConfigError` for an unknown name."""

    def skeleton(self, name: str, num_classes: int, loss: str = "softmax") -> nn.Module:
        """The model on the meta device, shared: copy it before changing it."""


class _NoNames:
    """Used until a factory is registered, which asking for a name does if torchreid is installed.

    No network is one of the factory's before that, for building one registers the factory.
    """

    def identify(self, model: nn.Module) -> ModelSpec | None:
        return None

    def input_size(self, name: str) -> tuple[int, int, int]:
        return self._factory(name).input_size(name)

    def is_stock(self, name: str) -> bool:
        return False

    def builder_of(self, name: str) -> Callable[..., nn.Module]:
        return self._factory(name).builder_of(name)

    def skeleton(self, name: str, num_classes: int, loss: str = "softmax") -> nn.Module:
        return self._factory(name).skeleton(name, num_classes, loss)

    def _factory(self, name: str) -> Resolver:
        try:
            integrate()
        except MissingTorchreidError as reason:
            raise ConfigError(
                f"the model '{name}' is asked for by name, which torchreid resolves: {reason}"
            ) from reason
        return resolver()


_RESOLVERS: list[Resolver] = [_NoNames()]


def register_resolver(resolver: Resolver) -> None:
    """From here on, names of models are resolved by this one."""
    _RESOLVERS.append(resolver)


def resolver() -> Resolver:
    """The factory that currently resolves names of models."""
    return _RESOLVERS[-1]
