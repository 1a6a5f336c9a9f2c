"""The channel graph of any network: the channels along every axis of every weight, and the groups they form."""

from __future__ import annotations

from . import rules  # noqa: F401  it registers the rules of operators
from .calls import Call, Rule, register_rule
from .channel_graph import Axis, ChannelGraph, ChannelGroup, Tie
from .plans import Width, balanced, check_plan, check_widths, full_plan, ratio_plan
from .recording import Recording
from .rules.elementwise import keep, spatial
from .scaling import FeaturePath, ScalePath, feature_path, scale_paths
from .shadows import spread
from .surgery.rebuild import adapt_code, rebuild, register_attribute_rule
from .surgery.shell import shell
from .tracer import Tracer, check_model
from .tracing import trace_module

__all__ = [
    "Axis",
    "Call",
    "ChannelGraph",
    "ChannelGroup",
    "FeaturePath",
    "Recording",
    "Rule",
    "ScalePath",
    "Tie",
    "Tracer",
    "Width",
    "adapt_code",
    "balanced",
    "check_model",
    "check_plan",
    "check_widths",
    "feature_path",
    "full_plan",
    "keep",
    "ratio_plan",
    "rebuild",
    "register_attribute_rule",
    "register_rule",
    "scale_paths",
    "shell",
    "spatial",
    "spread",
    "trace_module",
]
