"""A user's network as a name in torchreid's factory, next to the stock backbones."""

from __future__ import annotations

import functools
import inspect
import logging
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from ..errors import ConfigError
from ..host.models import model_names, register_model, without_memory
from ..networks import DEFAULT_INPUT_SIZE, is_image_size
from ..registry import remembered

logger = logging.getLogger(__name__)
_WRAPPERS: dict[str, Callable[[str], None]] = {}  # prefix of names -> what registers `<prefix><backbone>`
_ARGUMENTS = {"num_classes": 2, "loss": "softmax", "pretrained": False, "use_gpu": False}


def register_wrapper(prefix: str, register: Callable[[str], None]) -> None:
    """Registers a kind of network around every backbone, those that are registered later included.

    Args:
        prefix: of the names, such as 'oskt_'.
        register: called with the name of a backbone; it registers `<prefix><name>`, or nothing where a backbone does
            not fit. Called again with the same name it must change nothing.
    """
    _WRAPPERS[prefix] = register
    for name in backbone_names():
        register(name)


def backbone_names() -> list[str]:
    """Every name of torchreid's factory that is no wrapper of another one."""
    return [name for name in model_names() if not name.startswith(tuple(_WRAPPERS))]


def bare_name(name: str) -> str:
    """The backbone's name in the name of a network around it: `oskt_osnet_x1_0` -> `osnet_x1_0`."""
    prefix = next((prefix for prefix in _WRAPPERS if name.startswith(prefix)), "")
    return name.removeprefix(prefix)


@dataclass(frozen=True)
class PlainBuilder:
    """Adapts a builder that only takes a class count to the arguments of torchreid's factory.

    Attributes:
        name: its name in the factory.
        builder: called with `num_classes`.
    """

    name: str
    builder: Callable[..., nn.Module]

    def __call__(
        self, num_classes: int, loss: str = "softmax", pretrained: bool = False, use_gpu: bool = False
    ) -> nn.Module:
        """The network of the builder, for any loss."""
        if pretrained:
            logger.warning(
                "the builder of '%s' takes no argument 'pretrained': weights are as it makes them", self.name
            )
        return self.builder(num_classes=num_classes)


@remembered
def register_backbone(
    name: str, builder: Callable[..., nn.Module], input_size: tuple[int, int, int] = DEFAULT_INPUT_SIZE
) -> None:
    """Makes a user's network a name for `torchreid.models.build_model`, and `oskt_<name>` the same with a neck.

    `vkd_<name>` is the network of sets around it.

    Chain and student files of a registered network can be loaded wherever it is registered under the same name; other
    networks need `model=` for that. Registering the same again changes nothing.

    Args:
        name: a new name.
        builder: called with `num_classes`, `loss`, `pretrained` and `use_gpu` as torchreid's own are, or with
            `num_classes` alone. It is tried once, with two classes. In torchreid's protocol a network gives features
            in evaluation; one that gives class scores in either mode is best used as `oskt_<name>`.
        input_size: (channels, height, width) that the network is made for.

    Raises:
        ConfigError: a name that is taken or no name, a builder that does not give a network, or an impossible size.
    """
    _check_name(name)
    size = _checked_size(name, input_size)
    adapted, model = _tried(name, builder)
    register_model(name, adapted, input_size=size, defined_in=type(model).__module__, stock=False)
    for register in _WRAPPERS.values():
        register(name)


def _check_name(name: str) -> None:
    if not isinstance(name, str) or not name or name != name.strip():
        raise ConfigError(f"the name of a backbone is {name!r}; give a word such as 'my_net'")
    prefix = next((prefix for prefix in _WRAPPERS if name.startswith(prefix)), None)
    if prefix:
        raise ConfigError(
            f"'{name}' cannot be the name of a backbone: "
            f"'{prefix}<name>' is a network around '<name>' and registered along with it"
        )


def _checked_size(name: str, size: Sequence[int]) -> tuple[int, int, int]:
    if not is_image_size(size):
        raise ConfigError(f"input_size of '{name}' is {size!r}; give (channels, height, width), each 1 or more")
    channels, height, width = size
    return channels, height, width


def _tried(name: str, builder: Callable[..., nn.Module]) -> tuple[Callable[..., nn.Module], nn.Module]:
    """A builder with torchreid's arguments, and the network of two classes that it gave."""
    if not callable(builder):
        raise ConfigError(
            f"the builder of '{name}' is {builder!r}; give a function of num_classes that makes a network"
        )
    plain = PlainBuilder(name, builder)
    candidates = [make for make, given in ((builder, _ARGUMENTS), (plain, ("num_classes",))) if _takes(builder, given)]
    reasons = []
    for make in candidates:
        try:
            with warnings.catch_warnings(action="ignore"):  # of arguments that turn out not to be the builder's
                return make, without_memory(functools.partial(_network, name, make))
        except ConfigError:
            raise
        except Exception as error:  # a user's code
            reasons.append(f"{type(error).__name__}: {error}")
    if not reasons:
        raise ConfigError(
            f"the builder of '{name}' takes {inspect.signature(builder)}; it is called with num_classes, loss, "
            "pretrained and use_gpu, or with num_classes alone"
        )
    raise ConfigError(f"the builder of '{name}' fails with num_classes=2: {reasons[-1]}")


def _network(name: str, make: Callable[..., Any]) -> nn.Module:
    model = make(**_ARGUMENTS)
    if not isinstance(model, nn.Module):
        raise ConfigError(f"the builder of '{name}' gave {type(model).__name__!r}, which is no torch.nn.Module")
    return model


def _takes(builder: Callable[..., Any], names: Any) -> bool:
    """Whether a function can be called with keyword arguments of these names."""
    try:
        inspect.signature(builder).bind(**dict.fromkeys(names))
    except TypeError:
        return False
    except ValueError:  # compiled code does not say
        return True
    return True
