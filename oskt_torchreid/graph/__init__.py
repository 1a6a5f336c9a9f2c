"""The channel graph of any network: the channels along every axis of every weight, and the groups they form."""

from __future__ import annotations

from . import rules  # noqa: F401  it registers the rules of operators
from .building import trace_module
from .calls import Call, register_rule
from .channel_graph import Axis, ChannelGraph, ChannelGroup, Tie
from .plans import balanced, check_plan, full_plan, ratio_plan
from .recording import spread
from .rules.elementwise import keep, spatial
from .scaling import FeaturePath, feature_path
from .surgery.rebuild import adapt_code, rebuild, register_attribute_rule
from .surgery.shell import shell
from .tracer import Tracer, check_model

__all__ = [
    "Axis",
    "Call",
    "ChannelGraph",
    "ChannelGroup",
    "FeaturePath",
    "Tie",
    "Tracer",
    "adapt_code",
    "balanced",
    "check_model",
    "check_plan",
    "feature_path",
    "full_plan",
    "keep",
    "ratio_plan",
    "rebuild",
    "register_attribute_rule",
    "register_rule",
    "shell",
    "spatial",
    "spread",
    "trace_module",
]
