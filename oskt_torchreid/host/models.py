"""torchreid's model factory: names, building, recognising a model."""

import contextlib
import functools
import logging
from collections import Counter
from collections.abc import Callable, Iterator

import torch
from torch import nn

from ..errors import ConfigError
from ..networks import DEFAULT_INPUT_SIZE, ModelSpec, register_resolver
from ..registry import nearest
from .compat import host_table, quiet, torchreid
from .initialization import NoInitialization

Builder = Callable[..., nn.Module]

logger = logging.getLogger(__name__)

LOSSES = ("softmax", "triplet")
_INPUT_SIZES = {"hacnn": (3, 160, 64)}  # its attention grids fit no other size
_WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel)
_WRAPPED: dict[str, str] = {}  # registered wrapper -> name of the model inside it
_DEFINED_IN: dict[str, str] = {}  # registered name -> Python module of its model's class, where not its builder's


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
    input_size: tuple[int, int, int] = DEFAULT_INPUT_SIZE,
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
    return _INPUT_SIZES.get(_WRAPPED.get(name, name), DEFAULT_INPUT_SIZE)


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
    for method in ("reset_parameters", "_init_params"):  # the names that torch's layers and torchreid's models use
        for module in model.modules():
            if hasattr(module, method):
                getattr(module, method)()


class _Factory:
    """torchreid's factory, as parts of this package see it that know torch alone."""

    identify = staticmethod(identify)
    input_size = staticmethod(input_size)
    builder_of = staticmethod(builder_of)
    skeleton = staticmethod(skeleton)


register_resolver(_Factory())
