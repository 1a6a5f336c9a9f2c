"""Parts of a network that stay whole: modules that a user names, and operators without a rule.

What such a part reads keeps its channels, and its parameters keep their shapes. What it gives is to the rest of the
network what an image is: of a width that no student changes. A layer that reads it begins anew, and so everything
before and behind the part is compressed, and the part itself runs in a student as it does in the teacher.

Example: in `second(odd(first(images)))` the rows of `first` and the columns of `second` are whole; the columns of
`first`, if they are no image's, and the rows of `second` are not.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from types import FrameType, TracebackType

import torch
from torch import Tensor, nn

from ..errors import ConfigError, GraphError
from ..registry import nearest

KEPT = "kept whole: "
"""How the reason begins why a channel of a part that stays whole keeps its width, where no rule says another."""
_NAMED = 4  # modules of one kind, at most, that a message names
UNKNOWN = ("keep", "refuse")
"""What may be done with an operator without a rule."""
Keep = Iterable[nn.Module | str] | nn.Module | str
"""Modules of a network, their names, or patterns of names."""


@dataclass(frozen=True)
class Kept:
    """A part that stays whole.

    Attributes:
        module: name of the module; empty for the network itself.
        operator: what its code does that no rule says anything about; empty where the module was asked for.
        place: file and line of the code; empty where the module was asked for, and in a graph that was read from a
            file.
        why: what is done to its channels, where a rule says so.
    """

    module: str
    operator: str = ""
    place: str = ""
    why: str = ""

    @property
    def reason(self) -> str:
        """Why channels keep their width."""
        where = f"'{self.module}'" if self.module else "the network itself"
        if self.why:
            return f"{self.why} in '{self.module or 'the network itself'}'"
        return f"{KEPT}'{self.operator}' in {where}" if self.operator else f"{KEPT}{where}"

    def __str__(self) -> str:
        return replace(self, why="").reason.removeprefix(KEPT) + (f" ({self.place})" if self.place else "")


def in_words(parts: Sequence[Kept], most: int = 5) -> str:
    """Parts that stay whole, as text: those of one line of code together, and so many at most."""
    alike: dict[tuple[str, str], list[Kept]] = {}
    for part in parts:
        alike.setdefault((part.operator, part.place or part.module), []).append(part)
    words = [f"{first}{f' and {len(others)} modules like it' if others else ''}" for first, *others in alike.values()]
    more = f" and {len(words) - most} more" if len(words) > most else ""
    return ", ".join(words[:most]) + more


class NoRemedyError(GraphError):
    """A network or a rule at fault in a way that keeping a part whole does not help."""


class Keeping:
    """What stays whole while a network is traced.

    Args:
        modules: names of the modules that were asked for.
        strict: whether an operator without a rule is an error.

    Attributes:
        modules: see above.
        strict: see above.
        parts: what was found, in order.
        tensors: why a tensor of the state dict keeps its shape, by name.
        inside: the module asked for that is running.
    """

    def __init__(self, modules: Iterable[str] = (), strict: bool = False) -> None:
        self.modules = frozenset(modules)
        self.strict = strict
        self.parts: dict[tuple[str, str, str], Kept] = {}
        self.tensors: dict[str, str] = {}
        self.inside: Kept | None = None
        self._given: dict[int, Kept] = {}
        self._alive: list[Tensor] = []  # memory that is in use is not allocated again

    def part(self, module: str, operator: str = "", why: str = "", place: str = "") -> Kept:
        """A part that stays whole from here on; `place` is that of the running code if it is not given."""
        key = module, operator, why
        if key not in self.parts:
            self.parts[key] = Kept(module, operator, place or users_line() if operator else "", why)
        return self.parts[key]

    def has(self, part: Kept) -> bool:
        """Whether a part stays whole already."""
        return (part.module, part.operator, part.why) in self.parts

    def note(self, part: Kept, reader: str) -> None:
        """Adds a part that module `reader` reads; raises `GraphError` if it was not asked for and may not be kept."""
        if self.strict and part.operator and not self.has(part):
            copies = part.operator.startswith("copy")
            does = "copies channels into a part of another tensor" if copies else f"mixes numbers by '{part.operator}'"
            advice = "; write it with torch.cat or torch.stack" if copies else ""
            raise GraphError(
                f"module '{part.module}' {does}, which cannot be followed, and '{reader}' takes them as its input"
                f"{advice}"
            )
        self.parts.setdefault((part.module, part.operator, part.why), part)

    def give(self, tensor: Tensor, part: Kept) -> None:
        """Says that a part has written into this memory."""
        self._alive.append(tensor)
        self._given[memory(tensor)] = part

    def giver(self, tensor: Tensor) -> Kept | None:
        """The part that wrote into a tensor's memory, or into its source."""
        return self._given.get(memory(tensor)) if self._given else None

    def givers(self, tensors: Iterable[Tensor]) -> Kept | None:
        """The first part that one of several tensors comes from."""
        return next(filter(None, map(self.giver, tensors)), None) if self._given else None

    def names_inside(self, names: Iterable[str]) -> dict[str, str]:
        """Why each of a state dict's tensors keeps its shape, of those that do."""
        reasons = dict(self.tensors)
        for name in names:
            for owner in (owner for owner in self.modules if is_inside(name, (owner,))):
                reasons.setdefault(name, Kept(owner).reason)
        return reasons


def is_inside(name: str, modules: Iterable[str]) -> bool:
    """Whether a module or a tensor of this name is one of some modules, or inside of one."""
    return any(name == module or name.startswith(f"{module}.") for module in modules)


def memory(tensor: Tensor) -> int:
    """What identifies the memory of a tensor and of its views, on the meta device as well."""
    return tensor.untyped_storage()._cdata


# ---- what a user asks for --------------------------------------------------------------------------------------------


def modules_to_keep(model: nn.Module, keep: Keep) -> tuple[str, ...]:
    """Names of the modules that a user asks to keep whole, in the network's order.

    Args:
        model: the network.
        keep: modules of it, their names, or patterns of names such as `"layer4.*.se"`; one, or several.

    Raises:
        ConfigError: anything else, the network itself, or a name, pattern or module that the network does not have.
    """
    asked = [keep] if isinstance(keep, (str, nn.Module)) else keep
    if not isinstance(asked, Iterable):
        raise ConfigError(f"keep is {keep!r:.100}; give modules of the network, their names, or patterns of names")
    modules = dict(model.named_modules())
    found = {name for entry in asked for name in _matches(model, modules, entry)}
    return tuple(name for name in modules if name in found)


def _matches(model: nn.Module, modules: dict[str, nn.Module], entry: object) -> list[str]:
    if isinstance(entry, nn.Module):
        names = [name for name, module in modules.items() if module is entry]
        shown = f"a {type(entry).__name__} that is not in this {type(model).__name__}"
    elif isinstance(entry, str):
        aliases = dict(model.named_modules(remove_duplicate=False))  # a shared module has several names
        matched = [module for name, module in aliases.items() if name and (name == entry or fnmatchcase(name, entry))]
        names = [name for name, module in modules.items() if any(module is other for other in matched)]
        shown = f"'{entry}', and {type(model).__name__} has no such module{nearest(entry, filter(None, modules))}"
    else:
        raise ConfigError(f"keep has {entry!r:.100}; give modules of the network, their names, or patterns of names")
    if not names:
        raise ConfigError(f"keep has {shown}; give names as in model.named_modules(), or patterns of them")
    if "" in names:
        raise ConfigError(
            "keep has the network itself, of which nothing would be compressed; give modules inside of it"
        )
    return names


def recorded_keep(model: nn.Module) -> tuple[str, ...]:
    """Names of the modules that stay whole in a student, as its record says; none in any other network."""
    known = dict(model.named_modules())
    return tuple(name for name in getattr(vars(model).get("student_record"), "keep", ()) if name in known)


def check_unknown(unknown: str) -> None:
    """Raises `ConfigError` for anything but one of `UNKNOWN`."""
    if unknown not in UNKNOWN:
        raise ConfigError(
            f"unknown is {unknown!r:.100}; allowed: keep (an operator without a rule keeps its channels whole) and "
            "refuse (it is an error)"
        )


def what_to_keep(model: nn.Module, name: str) -> list[str]:
    """What to keep where a module's code does not follow its width: it, and all of its kind.

    Classes of torch are used in many ways; one of a user does the same everywhere. Example: for `blocks.3.se`, where
    `blocks.5.se` is of the same class, the pattern `*.se`; for `blocks.0`, where `blocks.2` is, both names.
    """
    kind = type(model.get_submodule(name))
    alike = [other for other, module in model.named_modules() if type(module) is kind]
    leaf = name.rpartition(".")[2]
    if kind.__module__.partition(".")[0] == torch.__name__ or len(alike) == 1:
        return [name]
    if all(other.endswith(f".{leaf}") for other in alike):
        return [f"*.{leaf}"]
    return alike if len(alike) <= _NAMED else [name]


# ---- messages --------------------------------------------------------------------------------------------------------

_TORCH = f"{Path(torch.__file__).parent}{os.sep}"
_HERE = f"{Path(__file__).parent}{os.sep}"


def users_line() -> str:
    """File and line of the network's code that is running: the innermost that is not torch's own."""
    frames: list[tuple[str, int]] = []
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and not (frame.f_code.co_name == "_traced" and frame.f_code.co_filename.startswith(_HERE)):
        frames.append((frame.f_code.co_filename, frame.f_lineno))
        frame = frame.f_back
    return _innermost(frames)


def line_of(traceback: TracebackType | None) -> str:
    """File and line of the network's code that raised an error; see `users_line`."""
    frames: list[tuple[str, int]] = []
    while traceback is not None:
        frames.insert(0, (traceback.tb_frame.f_code.co_filename, traceback.tb_lineno))
        traceback = traceback.tb_next
    return _innermost(frames)


def _innermost(frames: list[tuple[str, int]]) -> str:
    """Of frames from the innermost to the outermost; torch's own where there is no other, as in a Sequential."""
    others = [(name, line) for name, line in frames if not name.startswith((_HERE, "<"))]
    of_network = [frame for frame in others if not frame[0].startswith(_TORCH)]
    layers = [frame for frame in others if not frame[0].endswith(("module.py", "_ops.py"))]
    name, line = next(iter(of_network or layers or others), ("", 0))
    return f"{name}:{line}" if name else ""


_HOOK = "oskt_torchreid.graph.register_rule"


def ways_out(module: str, operator: str, has_rule: bool = False) -> str:
    """What to do about an operator that cannot be followed, as part of a message; one with a rule gets no other."""
    own = "in a module of its own keep=[module] keeps it whole"
    own = f"keep=['{module}'] keeps this module whole" if module else own
    what = f"or put the code into an operator of its own and say what that does to channels: {_HOOK}('mylib::name'"
    what = what if has_rule else f"or say what it does to channels: {_HOOK}('{operator}'"
    return (
        f"{own} and compresses the rest, unknown='keep' does so for every such operator; {what}, rule), with "
        "graph.keep where every output element has the channel of its input element, graph.spatial for pooling and the "
        "like, or a rule of your own; numbers of channels that a module keeps are corrected by "
        "oskt_torchreid.graph.register_attribute_rule(kind, rule)"
    )
