"""Packages that only deployment needs, and that may not be installed."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

from ..errors import ConfigError

EXTRA = "pip install 'oskt_torchreid[export]'"
NEEDS = {
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "onnxruntime": ("onnx", "onnxscript", "onnxruntime"),
    "openvino": ("onnx", "onnxscript", "openvino"),
}


def require(what: str, purpose: str, *more: str) -> None:
    """Raises ``ConfigError`` unless the packages that something needs can be imported.

    Args:
        what: a format or backend; one that is not in ``NEEDS`` needs none.
        purpose: what they are needed for, as the message begins: ``"backend 'openvino'"``.
        more: further packages.
    """
    for name in (*NEEDS.get(what, ()), *more):
        package(name, purpose)


def package(name: str, purpose: str) -> ModuleType:
    """An optional package; a missing one raises ``ConfigError``, which says what to install."""
    try:
        return import_module(name)
    except ImportError as error:
        missing = error.name or name
        raise ConfigError(f"{purpose} needs the package '{missing}'; install the extra: {EXTRA}") from error
