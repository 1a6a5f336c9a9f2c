"""The channel graph of a network: of a trace, each way of understanding its code is tried until one is right.

What none makes right stays whole: the channels that code moves, of as few modules as possible, or else those modules.
"""

from __future__ import annotations

import logging

from torch import nn

from ..networks import DEFAULT_INPUT_SIZE, unwrapped
from .building import build_graph
from .channel_graph import ChannelGraph
from .keeping import Keep, Keeping, Kept, check_unknown, is_inside, modules_to_keep, recorded_keep, ways_out
from .probing import find_routes
from .sizes import readings
from .surgery.rebuild import rebuild
from .tracer import Tracer, check_model, run
from .trial import MovementError, tried

logger = logging.getLogger(__name__)
_KINDS = 4  # classes of modules, at most, that are tried one by one


def trace_module(
    model: nn.Module,
    input_size: tuple[int, ...] = DEFAULT_INPUT_SIZE,
    keep: Keep = (),
    unknown: str = "keep",
) -> ChannelGraph:
    """Follows every channel of a network through a forward pass in training and one in evaluation.

    Args:
        model: any module that maps an image batch to features or class scores; not changed.
        input_size: `(channels, height, width)` of the image to run it on; it only affects speed, unless the network is
            made for one size.
        keep: modules that stay whole, with the channels that they are given and give: modules of the network, their
            names, or patterns of names such as `"layer4.*.se"`. In a student by default those that its teacher kept.
        unknown: what becomes of channels where it cannot be followed what code does to them, as where an operator has
            no rule. `keep`: they stay whole; `refuse`: an error.

    Returns:
        The channel graph; `print(graph.summary())` shows it, and its `kept` says what stays whole.

    Raises:
        ConfigError: `keep` names what the network does not have, or an `unknown` that there is not.
        GraphError: with `unknown="refuse"` an operator without a rule, a reduction over channels, weights that are
            computed on the fly, or code that splits channels at fixed positions; in any case a network that fails, or
            whose copies would use its own weights. The message says where and what to do.
    """
    model = unwrapped(model)
    check_model(model)
    check_unknown(unknown)
    asked = modules_to_keep(model, keep) or recorded_keep(model)
    traced = _Traced(twin_of(model), input_size, asked, strict=unknown == "refuse")
    try:
        return traced.read()
    except MovementError as error:
        if unknown == "refuse":
            raise traced.refusal(error) from error
        logger.debug("channels that code moves: %s", error)
        try:
            return traced.read_with_movers_whole(error)
        except MovementError as other:
            modules = [name for name in traced.suspects if not is_inside(name, asked)]
            if not modules:
                raise error from other
            return trace_module(model, input_size, [*asked, *modules])


class _Traced:
    """A network's trace, and the ways of understanding it.

    Args:
        model: not changed.
        input_size: of the image.
        asked: names of the modules that stay whole.
        strict: whether what cannot be followed is an error.
    """

    def __init__(self, model: nn.Module, input_size: tuple[int, ...], asked: tuple[str, ...], strict: bool) -> None:
        self._model, self._size, self._asked, self._strict = model, input_size, asked, strict
        self._tracer = run_both(model, input_size, Keeping(asked, strict))
        moves = bool(self._tracer.movements)
        self._routes = find_routes(model, self._tracer.frames.passages) if moves else []

    @property
    def suspects(self) -> list[str]:
        """Modules whose own code moves channels, or, if none does, in whose code numbers of channels may stand."""
        tracer = self._tracer
        if any(tracer.moved):
            return [name for name in tracer.moved if name]
        named = [place[0] for places in (tracer.parts, tracer.splits, tracer.named_lengths) for place in places]
        named += [*(product.module for product in tracer.attentions), *tracer.reductions]
        return [name for name in dict.fromkeys(named) if name]

    def read(self) -> ChannelGraph:
        """The graph of the first way of understanding the numbers in the code that is right.

        Raises:
            MovementError: none is; what is wrong with the most likely one.
        """
        errors = []
        for reading in readings(self._tracer):
            graph = build_graph(self._model, self._tracer, self._size, self._routes, reading)
            numbers = graph.splits or graph.reductions or graph.attentions or graph.parts
            if not (self._tracer.movements or numbers):
                return graph
            try:
                return tried(self._model, graph, self._tracer.movements, self._tracer.numbers, self._follow)
            except MovementError as error:
                errors.append(error)
        raise errors[0]

    def _follow(self, other: nn.Module) -> tuple[ChannelGraph, dict[str, list[float]]]:
        recording = run_both(other, self._size, Keeping(self._asked, self._strict))
        return build_graph(other, recording, self._size), recording.numbers

    def read_with_movers_whole(self, error: MovementError) -> ChannelGraph:
        """The graph in which channels that code moves stay whole, of as few modules as possible.

        Modules of one class move channels alike. Those of each class alone are tried first, then all whose code no
        index buffers can stand in for, then all.

        Raises:
            MovementError: none is right; `error` if no code moves channels.
        """
        tracer = self._tracer
        kinds: dict[type, list[str]] = {}
        for name in tracer.moved:
            kinds.setdefault(type(self._model.get_submodule(name)), []).append(name)
        alone = list(kinds.values()) if 1 < len(kinds) <= _KINDS else []
        routed = {route.module for route in self._routes}
        unrouted = [name for name in tracer.moved if name not in routed]
        for movers in filter(None, (*alone, unrouted, list(tracer.moved))):
            before, parts = tracer.lengths_now(), dict(tracer.keeping.parts)
            tracer.keep_movements(movers)
            try:
                return self.read()
            except MovementError as other:
                logger.debug("%s whole is not enough: %s", movers, other)
                error = other
                tracer.take_back(before)
                tracer.keeping.parts = parts
        raise error

    def refusal(self, error: MovementError) -> MovementError:
        """The error of `read`, with the place of the code and what can be done."""
        part = next((part for part, _ in self._tracer.moved.values()), Kept(next(iter(self.suspects), "")))
        place = f" ({part.place})" if part.place else ""
        return MovementError(f"{error}{place}; {ways_out(part.module, part.operator, True)}")


def twin_of(model: nn.Module) -> nn.Module:
    """A copy that shares a network's parameters: whatever its code changes while it runs, the network stays as it is.

    Raises:
        GraphError: a module that keeps something which cannot be copied.
    """
    own = {name: tensor.detach().clone() for name, tensor in model.named_buffers()}
    state = model.state_dict(keep_vars=True)
    return rebuild(model, {name: own[name] if name in own else tensor.detach() for name, tensor in state.items()})


def run_both(model: nn.Module, input_size: tuple[int, ...], keeping: Keeping | None = None) -> Tracer:
    """Traces a pass in training and one in evaluation: parts of a network that run in one mode alone are seen too."""
    return run(model, input_size, run(model, input_size, Tracer(model, keeping)), training=False)
