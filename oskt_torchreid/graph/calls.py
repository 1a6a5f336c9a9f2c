"""Operator calls, and the table of rules that says what each operator does to channels.

A rule is a function ``rule(recording, call)``. It reads the shadows of the call's inputs (``recording.shadow``), marks
its outputs (``recording.mark``) and records what the operator demands of the channels (``tie``, ``unite``, ``fix``).
Most operators need none of their own: pass one of those in ``rules`` to ``register_rule``::

    from oskt_torchreid import graph
    graph.register_rule("mylib::swish", graph.keep)      # each output element has the channel of its input element

An operator that meets channels and has no rule raises: silently passing it by is how half of a network once stayed
unshrunk while every output test passed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..errors import GraphError
from .recording import Recording


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
_RULES: dict[str, Rule] = {}


def register_rule(operator: str, rule: Rule) -> None:
    """Makes ``rule`` the rule of ``operator``: ``"relu"`` for ATen's, ``"namespace::name"`` for another library's.

    In-place variants (a trailing underscore) use the same rule.
    """
    _RULES[operator.removeprefix("aten::")] = rule


def register_families(families: Mapping[Rule, str]) -> None:
    """Registers rules of many operators each, given as names with spaces between."""
    for rule, operators in families.items():
        for operator in operators.split():
            register_rule(operator, rule)


def rule_for(call: Call, module: str) -> Rule:
    """The rule of a call.

    Raises:
        GraphError: there is none; names the operator, the module and the hook.
    """
    rule = _RULES.get(call.operator) or _RULES.get(call.operator.removesuffix("_"))
    if rule is None:
        raise GraphError(
            f"operator '{call.operator}' in module '{module}' has no rule that says what it does to channels; add one "
            f"with oskt_torchreid.graph.register_rule('{call.operator}', rule): graph.keep where every output element "
            "has the channel of its input element, graph.spatial for pooling and the like, or your own"
        )
    return rule
