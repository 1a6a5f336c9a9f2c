"""Calls of operators, with the table of rules that says what each does to channels; and calls of modules.

A rule is a function `rule(recording, call)`. It reads the shadows of the call's inputs (`Recording.shadow`), marks
its outputs (`Recording.mark`) and records what the operator demands of the channels (`tie`, `unite`, `fix`).
Most operators need none of their own: pass one of those in `rules` to `register_rule`::

    from oskt_torchreid import graph
    graph.register_rule("mylib::swish", graph.keep)      # each output element has the channel of its input element

An operator that receives channels and has no rule keeps them whole (`keeping.py`), which is said, or raises an error:
if it were skipped, part of a network could stay at full width while every test of the outputs passes.

Calls of modules are followed as well, to see what a module's own code does between the modules that it calls.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ConfigError, GraphError, expect
from ..networks import watched
from ..registry import remembered
from .keeping import ways_out
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


def find_rule(operator: str) -> Rule | None:
    """The rule of an operator or of its variant in place; `None` if there is none."""
    return _RULES.get(operator) or _RULES.get(operator.removesuffix("_"))


def rule_for(call: Call, module: str) -> Rule:
    """The rule of a call.

    Raises:
        GraphError: there is none; the message names the operator and the module.
    """
    rule = find_rule(call.operator)
    if rule is None:
        raise GraphError(
            f"operator '{call.operator}' in module '{module}' has no rule that says what it does to channels"
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


def nested_tensors(outputs: Any) -> Iterable[Tensor]:
    """The tensors in what a network returns: one, or lists, tuples and dictionaries of them, in order."""
    if isinstance(outputs, Tensor):
        yield outputs
    elif isinstance(outputs, dict):
        yield from nested_tensors(list(outputs.values()))
    elif isinstance(outputs, (list, tuple)):
        for output in outputs:
            yield from nested_tensors(output)


class Frames:
    """Follows the calls of modules, and records those whose own code moves channels."""

    def __init__(self, recording: Recording) -> None:
        self._recording = recording
        self._passages: dict[str, Passage | None] = {}
        self._unweighted: set[str] = set()

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
        kept = self._recording.keeping
        if name in kept.modules and kept.inside is None:
            kept.inside = kept.part(name)
            self._recording.keep_whole(kept.inside, nested_tensors([args, kwargs]))

    def _leave(self, name: str, module: nn.Module, args: tuple, output: Any) -> None:
        frame = self._recording.running.pop()
        kept = self._recording.keeping
        if kept.inside is not None and kept.inside.module == name:
            self._recording.keep_whole(kept.inside, nested_tensors(output))  # what it was given, and gives back
            kept.inside = None
        channels = self._recording.plain_channels(output)
        if self._recording.running:
            self._recording.running[-1].calls.append(frame.name)
            self._recording.running[-1].sources.append(channels)
        if frame.reductions:
            self._keep_reductions(frame)
        if frame.name in self._recording.movements:
            self._keep_passage(frame, None if channels is None else Passage.of(frame))

    def _keep_reductions(self, frame: Frame) -> None:
        """A module that reduces its input, and does nothing else with it in any pass, is weighted; no other can be."""
        (operator, ids, _), *others = frame.reductions
        found = self._recording.reductions
        known, known_ids = found.get(frame.name, (operator, ids))
        weighted = frame.reads == 1 and not others and operator == known and len(ids) == len(known_ids)
        if weighted and frame.name not in self._unweighted:
            self._recording.unite(known_ids, ids)
            found.setdefault(frame.name, (operator, ids))
            return
        self._unweighted.add(frame.name)
        earlier = [(*found.pop(frame.name), "")] if frame.name in found else []
        for reduction in (*earlier, *frame.reductions):
            self._keep_unweighted(frame.name, *reduction)

    def _keep_unweighted(self, module: str, operator: str, ids: Tensor, place: str) -> None:
        """A mean counts channels as a norm does; those that are summed keep their width."""
        if operator == "mean":
            self._recording.norms.append((module, ids.reshape(1, -1).numpy()))
            return
        keeping = self._recording.keeping
        if keeping.strict:
            raise GraphError(f"{unweighted(operator, module)} ({place}); {ways_out(module, operator, True)}")
        self._recording.fix(ids, keeping.part(module, operator, "summed over", place).reason)

    def _keep_passage(self, frame: Frame, passage: Passage | None) -> None:
        """A module that is called twice must do the same both times; the channels of the two calls are united."""
        known = self._passages.setdefault(frame.name, passage)
        if known is None or passage is None or not known.resembles(passage):
            self._passages[frame.name] = None
            return
        for first, second in zip(known.sources, passage.sources, strict=True):
            self._recording.unite(first, second)


def unweighted(operator: str, module: str) -> GraphError:
    """The error of a sum over channels that cannot be weighted."""
    return GraphError(
        f"operator '{operator}' in module '{module}' reduces over channels: merged channels would count once instead "
        "of as often as they were merged. A mean or sum is weighted where it is the one use that a module makes of its "
        "input; put it into such a module"
    )
