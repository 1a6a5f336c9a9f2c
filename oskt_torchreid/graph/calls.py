"""Calls of operators, with the table of rules that says what each does to channels; and calls of modules.

A rule is a function `rule(recording, call)`. It reads the shadows of the call's inputs (`Recording.shadow`), marks
its outputs (`Recording.mark`) and records what the operator demands of the channels (`tie`, `unite`, `fix`).
Most operators need none of their own: pass one of those in `rules` to `register_rule`::

    from oskt_torchreid import graph
    graph.register_rule("mylib::swish", graph.keep)      # each output element has the channel of its input element

An operator that receives channels and has no rule raises an error: if it were skipped, part of a network could stay at
full width while every test of the outputs passes.

Calls of modules are followed as well, to see what a module's own code does between the modules that it calls.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ConfigError, GraphError, expect
from ..networks import watched
from ..registry import remembered
from .notes import Frame
from .recording import Recording
from .sizes import input_channels


class Call:
    """One operator call: its name, its arguments by the names of its schema, and its outputs."""

    def __init__(self, function: Any, args: tuple, kwargs: dict, output: Any) -> None:
        self.function, self.args, self.kwargs, self.output = function, args, kwargs, output
        self.operator = function._schema.name.removeprefix("aten::")

    @cached_property
    def arguments(self) -> dict[str, Any]:
        """Every argument by its schema name, defaults filled in."""
        schema = self.function._schema.arguments
        bound = {argument.name: argument.default_value for argument in schema if argument.has_default_value()}
        bound.update(zip((argument.name for argument in schema), self.args, strict=False))
        return {**bound, **self.kwargs}

    @cached_property
    def tensors(self) -> list[Tensor]:
        """All tensors among the arguments, those in lists included."""
        found: list[Tensor] = []
        for value in (*self.args, *self.kwargs.values()):
            items = value if isinstance(value, (list, tuple)) else (value,)
            found += [item for item in items if torch.is_tensor(item)]
        return found

    @property
    def outputs(self) -> list[Tensor]:
        """All output tensors, in order."""
        output = self.output if isinstance(self.output, (list, tuple)) else (self.output,)
        return [item for item in output if torch.is_tensor(item)]


Rule = Callable[[Recording, Call], None]
"""Marks the outputs of a call with their channels, and records what its operator demands of them."""
_RULES: dict[str, Rule] = {}


@remembered
def register_rule(operator: str, rule: Rule) -> None:
    """Makes `rule` the rule of `operator`: `"relu"` for ATen's, `"namespace::name"` for another library's.

    In-place variants (a trailing underscore) use the same rule.

    Raises:
        ConfigError: no name, a rule that is not a function, or an operator that has another rule.
    """
    expect(str, operator, "name of an operator", "give a text such as 'relu' or 'mylib::swish'")
    if not callable(rule):
        raise ConfigError(f"the rule of '{operator}' is {rule!r:.100}; give a function of the recording and the call")
    known = _RULES.setdefault(operator.removeprefix("aten::"), rule)
    if known is not rule:
        raise ConfigError(
            f"operator '{operator}' has a rule, {known.__name__}; rules of known operators stay as they are"
        )


def register_families(families: Mapping[Rule, str]) -> None:
    """Registers rules of many operators each, given as names with spaces between."""
    for rule, operators in families.items():
        for operator in operators.split():
            register_rule(operator, rule)


def rule_for(call: Call, module: str) -> Rule:
    """The rule of a call.

    Raises:
        GraphError: there is none; the message names the operator, the module and the hook.
    """
    rule = _RULES.get(call.operator) or _RULES.get(call.operator.removesuffix("_"))
    if rule is None:
        raise GraphError(
            f"operator '{call.operator}' in module '{module}' has no rule that says what it does to channels; add one "
            f"with oskt_torchreid.graph.register_rule('{call.operator}', rule): graph.keep where every output element "
            "has the channel of its input element, graph.spatial for pooling and the like, or your own"
        )
    return rule


# ---- modules --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Passage:
    """A call of a module whose own code took channels apart or reordered them, between the modules that it called.

    Attributes:
        module: name of the module.
        shape: shape of its input.
        dtype: type of its input.
        device: device of its input.
        calls: names of the modules that its own code called, in order, relative to its own.
        sources: ids of its input, then of the output of each call, `[channels]` each.
    """

    module: str
    shape: torch.Size
    dtype: torch.dtype
    device: torch.device
    calls: tuple[str, ...]
    sources: tuple[Tensor, ...]

    @classmethod
    def of(cls, frame: Frame) -> Passage | None:
        """The record of a finished call; `None` if any value in it was not a single tensor with known channels."""
        inside, given = f"{frame.name}.", frame.given
        sources = tuple(ids for ids in frame.sources if ids is not None)
        if given is None or len(sources) < len(frame.sources):
            return None
        if not all(call.startswith(inside) for call in frame.calls):
            return None
        calls = tuple(call.removeprefix(inside) for call in frame.calls)
        return cls(frame.name, given.shape, given.dtype, given.device, calls, sources)

    def resembles(self, other: Passage) -> bool:
        """Whether both calls called the same modules and moved the same numbers of channels."""
        lengths, others = ([len(ids) for ids in passage.sources] for passage in (self, other))
        return self.calls == other.calls and lengths == others


class Frames:
    """Follows the calls of modules, and records those whose own code moves channels."""

    def __init__(self, recording: Recording) -> None:
        self._recording = recording
        self._passages: dict[str, Passage | None] = {}

    @property
    def passages(self) -> list[Passage]:
        """Calls of modules whose own code moved channels, if all their inputs and outputs are known."""
        return [passage for passage in self._passages.values() if passage is not None]

    def watching(self, model: nn.Module) -> AbstractContextManager[None]:
        """Follows the calls of a network's modules inside a block; the network itself has no frame."""
        inside = ((name, module) for name, module in model.named_modules() if name)
        return watched(inside, self._enter, self._leave)

    def _enter(self, name: str, module: nn.Module, args: tuple, kwargs: dict) -> None:
        given = args[0] if len(args) == 1 and not kwargs and torch.is_tensor(args[0]) else None
        inputs = input_channels(self._recording, [*args, *kwargs.values()])
        self._recording.running.append(Frame(name, given, [self._recording.plain_channels(given)], inputs))

    def _leave(self, name: str, module: nn.Module, args: tuple, output: Any) -> None:
        frame = self._recording.running.pop()
        channels = self._recording.plain_channels(output)
        if self._recording.running:
            self._recording.running[-1].calls.append(frame.name)
            self._recording.running[-1].sources.append(channels)
        if frame.reduction is not None:
            self._keep_reduction(frame, *frame.reduction)
        if frame.name in self._recording.movements:
            self._keep_passage(frame, None if channels is None else Passage.of(frame))

    def _keep_reduction(self, frame: Frame, operator: str, ids: Tensor) -> None:
        """A module that does anything else with its input has no weights: its mean counts channels as a norm does."""
        reductions = self._recording.reductions
        known, known_ids = reductions.setdefault(frame.name, (operator, ids))
        if frame.reads == 1 and operator == known and len(ids) == len(known_ids):
            self._recording.unite(known_ids, ids)
            return
        del reductions[frame.name]
        for done, channels in ((known, known_ids), (operator, ids)):
            if done == "mean":
                self._recording.norms.append((frame.name, channels.reshape(1, -1).numpy()))
            else:
                self._recording.fix(channels, f"summed over in '{frame.name}'")

    def _keep_passage(self, frame: Frame, passage: Passage | None) -> None:
        """A module that is called twice must do the same both times; the channels of the two calls are united."""
        known = self._passages.setdefault(frame.name, passage)
        if known is None or passage is None or not known.resembles(passage):
            self._passages[frame.name] = None
            return
        for first, second in zip(known.sources, passage.sources, strict=True):
            self._recording.unite(first, second)
