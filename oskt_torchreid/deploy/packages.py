"""Packages that only deployment needs, that may not be installed, and that talk too much."""

from __future__ import annotations

import contextlib
import functools
import io
import logging
import warnings
from collections.abc import Iterator
from importlib import import_module
from types import ModuleType
from typing import Any

from ..errors import ConfigError
from ..printing import printing_to

EXTRA = "pip install 'oskt_torchreid[export]'"
NEEDS = {
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "onnxruntime": ("onnx", "onnxscript", "onnxruntime"),
    "openvino": ("onnx", "onnxscript", "openvino"),
}


def require(what: str, purpose: str, *more: str) -> None:
    """Raises `ConfigError` unless the packages that something needs can be imported.

    Args:
        what: a format or backend; one that is not in `NEEDS` needs none.
        purpose: purpose of the packages, as the message begins: `"backend 'openvino'"`.
        more: further packages.
    """
    for name in (*NEEDS.get(what, ()), *more):
        package(name, purpose)


def package(name: str, purpose: str) -> ModuleType:
    """An optional package; if it is missing, raises a `ConfigError` that says what to install."""
    try:
        return import_module(name)
    except ImportError as error:
        missing = error.name or name
        raise ConfigError(f"{purpose} needs the package '{missing}'; install the extra: {EXTRA}") from error


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Hides progress messages of exporters, on stdout and elsewhere, from the user."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir", "onnxruntime")]
    levels = [each.level for each in loggers]
    for each in loggers:
        each.setLevel(logging.ERROR)
    try:
        with printing_to(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for each, level in zip(loggers, levels, strict=True):
            each.setLevel(level)


@functools.cache
def openvino_core() -> Any:
    """OpenVINO's core, one for as long as the process lives.

    Each core gives the thread another stack for signals, and takes the one before it back when it ends. Of two that end
    in the order in which they began, the second takes back what the first has freed: then Ctrl-C, or the end of a
    worker process, is a segmentation fault.
    """
    return package("openvino", "OpenVINO").Core()
