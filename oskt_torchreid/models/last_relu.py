"""The last ReLU of any backbone: found by running it, and passed by without touching its other ones.

Blocks often share one ReLU module among several places, and some networks apply ReLU in their own code. So nothing is
replaced by name: a trial run finds the module whose code calls the last ReLU and how many it calls before, and
from then on that module lets this one value through.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from ..made_classes import made_kind
from ..networks import DEFAULT_INPUT_SIZE, parse_outputs, watched
from .neck import run_on_meta

YES, NO, NONE = "yes", "no", "none"
_RELUS = {functional.relu, functional.relu6, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_}
_BOUNDED = {functional.hardtanh, functional.hardtanh_}  # the function that ReLU6 modules call
_RELU_MODULES = (nn.ReLU, nn.Hardtanh)


class LastRelu(NamedTuple):
    """The place where a network's feature passes its last ReLU.

    Attributes:
        removable: `yes`; `no`: the feature passes ReLUs in several places at once, or by a module that is called
            more than once; `none`: the feature passes no ReLU.
        owner: name of the module whose code calls the last ReLU.
        place: how many ReLUs come before it in a call of that module, those of its children included.
        shared: places of all ReLUs in that call that one ReLU module computes, the last included.
    """

    removable: str
    owner: str = ""
    place: int = 0
    shared: tuple[int, ...] = ()


def find_last_relu(model: nn.Module, input_size: tuple[int, int, int] = DEFAULT_INPUT_SIZE) -> LastRelu:
    """Finds the last ReLU before a network's feature, where nothing but pooling and the like comes after it.

    A feature that depends on the weights through one ReLU alone has its last ReLU there; if it depends on them
    through several at once, such as branches that are joined after their ReLUs, it has none that could be removed.

    Args:
        model: any network of torchreid's protocol; not changed.
        input_size: `(channels, height, width)` at which copies of it run.

    Raises:
        ConfigError: it does not run on such an image.
    """
    events, behind_relus = run_on_meta(model, input_size, functools.partial(_run, cut=None))
    if not events or not behind_relus:
        return LastRelu(NONE)
    _, alone = run_on_meta(model, input_size, functools.partial(_run, cut=len(events) - 1))
    last = events[-1]
    owner, place = last.owner, last.place
    calls = [event for event in events if event.owner == owner and event.place == place]
    if not alone or len(calls) > 1:
        return LastRelu(NO)
    same = [e.place for e in events if e.owner == owner and e.by == last.by]
    return LastRelu(YES, owner, place, tuple(same) if last.by else (place,))


def remove_last_relu(model: nn.Module, last: LastRelu, shared: bool = False) -> None:
    """Removes the last ReLU, in place; if that is not possible, nothing changes.

    Args:
        model: the network that `last` was found in, or one of the same structure.
        last: see `find_last_relu`.
        shared: remove every use of the same ReLU module in that call of the block.
    """
    if last.removable != YES:
        return
    owner = model.get_submodule(last.owner)
    owner.__class__ = _passing_class(type(owner), frozenset(last.shared if shared else (last.place,)))


def _passing_class(kind: type[nn.Module], passed: frozenset[int]) -> type[nn.Module]:
    """The same module, which lets the ReLUs of some places in a call through.

    A class, so that copies, state dicts and printed structures are those of the module.
    """

    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        with _ReluMode(lambda place, value, compute: value if place in passed else compute()):
            return kind.forward(self, *args, **kwargs)

    about = {"__module__": kind.__module__, "__doc__": kind.__doc__, "made_by": (_passing_class, (kind, passed))}
    return made_kind(kind)(kind.__name__, (kind,), {"forward": forward, **about})


class _ReluMode(TorchFunctionMode):
    """Counts the ReLUs inside its block, and lets `decide` replace each.

    Args:
        decide: called with the place of one, its input, and the function that computes its output; its result is used.
    """

    def __init__(self, decide: Callable[[int, Tensor, Callable[[], Tensor]], Tensor]) -> None:
        super().__init__()
        self._decide = decide
        self._count = 0

    def __torch_function__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if not _is_relu(function, args, kwargs):
            return function(*args, **kwargs)
        place, self._count = self._count, self._count + 1
        value = args[0] if args else kwargs["input"]
        return self._decide(place, value, lambda: function(*args, **kwargs))


def _is_relu(function: Any, args: tuple, kwargs: dict) -> bool:
    if function in _RELUS:
        return True
    return function in _BOUNDED and (args[1] if len(args) > 1 else kwargs.get("min_val", -1.0)) == 0


# ---- the dry run -----------------------------------------------------------------------------------------------------


class _Event(NamedTuple):
    """One ReLU: the module that called it, its place in that call, and the ReLU module that computed it."""

    owner: str
    place: int
    by: str


class _Frame:
    """A running call of a module, and how many ReLUs it has seen."""

    def __init__(self, name: str, module: nn.Module) -> None:
        self.name, self.module, self.count = name, module, 0


def _run(model: nn.Module, images: Tensor, cut: int | None) -> tuple[list[_Event], bool]:
    """Runs a network; its ReLUs in order, and whether its features need the weights only through those cut.

    Args:
        model: may be changed.
        images: `[1, channels, height, width]`.
        cut: place of the ReLU that blocks the gradient; `None`: none of them does.
    """
    events: list[_Event] = []
    model.eval().requires_grad_(True)

    def decide(place: int, _: Tensor, compute: Callable[[], Tensor]) -> Tensor:
        events.append(_event(frames))
        return compute().detach() if cut in (None, place) else compute()

    with _frames(model) as frames, torch.enable_grad(), _ReluMode(decide):
        features = parse_outputs(model(images), training=False).features
    return events, not any(feature.requires_grad for feature in features)


def _event(frames: list[_Frame]) -> _Event:
    by = frames[-1].name if isinstance(frames[-1].module, _RELU_MODULES) and len(frames) > 1 else ""
    owner = frames[-2] if by else frames[-1]
    event = _Event(owner.name, owner.count, by)
    for frame in frames:
        frame.count += 1
    return event


@contextmanager
def _frames(model: nn.Module) -> Iterator[list[_Frame]]:
    """The stack of running modules, outermost first, kept up to date while the block runs the model."""
    frames: list[_Frame] = []

    def enter(name: str, module: nn.Module, *_: object) -> None:
        frames.append(_Frame(name, module))

    def leave(*_: object) -> None:
        frames.pop()

    with watched(model.named_modules(), enter, leave):
        yield frames
