"""torchreid's model factory: names, building, recognising a model."""

import functools
import io
import logging
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from .. import networks
from ..errors import ConfigError
from ..networks import DEFAULT_INPUT_SIZE, ModelSpec, register_resolver, without_memory_or_on_cpu
from ..printing import printing_to
from ..registry import nearest
from ..user_code import IMPORT_HINT
from .compat import host_table, quiet, torchreid

Builder = Callable[..., nn.Module]

logger = logging.getLogger(__name__)

LOSSES = ("softmax", "triplet")
_INPUT_SIZES = {"hacnn": (3, 160, 64)}  # its attention grids fit no other size
_WRAPPED: dict[str, str] = {}  # registered wrapper -> name of the model inside it
_FACTORY: dict[str, Builder] = host_table(torchreid.models.build_model, "__model_factory")
_OF_USERS: set[str] = set()  # names that are neither torchreid's nor this package's
_DEFINED_IN: dict[str, str] = {}  # registered name -> Python module of its model's class, if not its builder's


def model_names() -> list[str]:
    """Every name that `build` knows, registered ones included."""
    return list(_FACTORY)


def builder_of(name: str) -> Builder:
    """The function behind a name.

    Raises:
        ConfigError: unknown name; the message has the nearest ones.
    """
    if name not in _FACTORY:
        raise ConfigError(
            f"unknown model '{name}'{nearest(name, _FACTORY)} (torchreid.models.show_avai_models() lists all); name "
            f"the file that registers a network of your own: {IMPORT_HINT}"
        )
    return _FACTORY[name]


def register_model(
    name: str,
    builder: Builder,
    wraps: str = "",
    input_size: tuple[int, int, int] = DEFAULT_INPUT_SIZE,
    defined_in: str = "",
    stock: bool = True,
) -> None:
    """Adds a model name to torchreid's factory; registering an equal builder again changes nothing.

    Args:
        name: name for `torchreid.models.build_model`.
        builder: called with `num_classes`, `loss`, `pretrained` and `use_gpu`.
        wraps: name of the model that the built one contains as a child, if any; `identify` needs it.
        input_size: (channels, height, width) that the model is made for; a wrapper has that of the wrapped model.
        defined_in: Python module of the model's class, if it is not the builder's; `identify` needs it.
        stock: whether the test suite knows it; a user's network is not.

    Raises:
        ConfigError: another builder has the name.
    """
    known = _FACTORY.setdefault(name, builder)
    if known != builder:
        owner = getattr(known, "__qualname__", type(known).__qualname__)
        raise ConfigError(f"model name '{name}' belongs to {known.__module__}.{owner}; choose another name")
    if not stock:
        _OF_USERS.add(name)
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
    builder = _builder(name, loss)
    with quiet():
        return builder(num_classes=num_classes, loss=loss, pretrained=pretrained, use_gpu=use_gpu)


def _builder(name: str, loss: str) -> Builder:
    builder = builder_of(name)
    if loss not in LOSSES:
        raise ConfigError(f"loss of model '{name}' is '{loss}'; allowed: {', '.join(LOSSES)}")
    return builder


@functools.lru_cache(maxsize=128)
def skeleton(name: str, num_classes: int, loss: str = "softmax") -> nn.Module:
    """The model on the meta device: shapes without memory. Consumes no random numbers of torch.

    The result is cached and shared: copy it (`copy.deepcopy`) before changing it.
    """
    builder = _builder(name, loss)
    return without_memory(lambda: builder(num_classes=num_classes, loss=loss, pretrained=False, use_gpu=False))


def without_memory(make: Callable[[], nn.Module]) -> nn.Module:
    """The result of `make`, built on the meta device without printing. Consumes no random numbers of torch."""

    def made(device: str) -> nn.Module:
        if device == "cpu":
            return make().to("meta")
        with torch.device("meta"), _NoInitialization():
            model = make()
        if _keeps_plain_tensors(model):
            raise RuntimeError("tensors that are not in its state dict need their values")
        return model

    with torch.random.fork_rng(devices=[]), printing_to(io.StringIO()):
        return without_memory_or_on_cpu(made)


# What `torch.nn.init` fills tensors with.
_FILLING = {"normal_", "uniform_", "fill_", "zero_", "erfinv_", "mul_", "add_", "sub_", "div_", "clamp_"}


class _NoInitialization(TorchFunctionMode):
    """While active, calls that only fill tensors on the meta device with numbers do nothing.

    Such tensors have no numbers; but torch runs each call in Python, which dominates the time of a deep network.
    """

    def __torch_function__(self, function: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        """Forwards a call of torch, or returns the tensor of a filling one."""
        if args and getattr(function, "__name__", "") in _FILLING and torch.is_tensor(args[0]) and args[0].is_meta:
            return args[0]
        return function(*args, **(kwargs or {}))


def _keeps_plain_tensors(model: nn.Module) -> bool:
    """Whether a module has a tensor, or a list of them, as a plain attribute."""
    values = [value for module in model.modules() for value in vars(module).values()]
    items = [item for value in values for item in (value if isinstance(value, (list, tuple)) else (value,))]
    return any(torch.is_tensor(item) for item in items)


def input_size(name: str) -> tuple[int, int, int]:
    """(channels, height, width) that the model is made for."""
    builder_of(name)
    return _INPUT_SIZES.get(_WRAPPED.get(name, name), DEFAULT_INPUT_SIZE)


def is_stock(name: str) -> bool:
    """Whether a model is torchreid's or this package's own, or made of one, so that the test suite knows it."""
    return _WRAPPED.get(name, name) not in _OF_USERS


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
                return ModelSpec(name, num_classes, getattr(twin, "loss", "softmax"))
            if _shapes(twin).keys() != shapes.keys() or _kernels(twin) != kernels:
                break  # another class count changes neither names nor kernels
    return None


def _candidates(model: nn.Module) -> Iterator[str]:
    """Names worth comparing with, selected by cheap checks.

    A builder is mostly defined in the module that defines its model's class. A wrapper's is not, but the wrapped model
    is among the children, with all of its own kernels.
    """
    own = type(model).__module__
    children = {type(child).__module__ for child in model.children()}
    kernels = _kernels(model)
    for name in _FACTORY:
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
    """Number of parameters of each shape with more than two axes."""
    return Counter(parameter.shape for parameter in model.parameters() if parameter.dim() > 2)


def _class_counts(model: nn.Module) -> list[int]:
    """Possible class counts: output widths of the linear layers, last first (the classifier mostly comes last)."""
    widths = [module.out_features for module in model.modules() if isinstance(module, nn.Linear)]
    return list(dict.fromkeys(reversed(widths)))


def _shapes(model: nn.Module) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in model.state_dict().items()}


def unwrapped(model: nn.Module) -> nn.Module:
    """The network inside torch's wrappers, see `networks.unwrapped`; taking one off is logged.

    Its parameters are those of the wrapper, so an optimiser of one is an optimiser of the other.
    """
    network = networks.unwrapped(model)
    if network is not model:
        logger.info(
            "%s is taken off its network: an engine runs on one device; several share batches under torchrun",
            type(model).__name__,
        )
    return network


def initialise(model: nn.Module) -> None:
    """Gives every layer fresh weights, in place: torch's own, then the model's own initialisation if it has one."""
    for method in ("reset_parameters", "_init_params"):  # the names that torch's layers and torchreid's models use
        for module in model.modules():
            if hasattr(module, method):
                getattr(module, method)()


class _Factory:
    """torchreid's factory, for the parts of this package that only know torch."""

    identify = staticmethod(identify)
    input_size = staticmethod(input_size)
    is_stock = staticmethod(is_stock)
    builder_of = staticmethod(builder_of)
    skeleton = staticmethod(skeleton)


register_resolver(_Factory())
