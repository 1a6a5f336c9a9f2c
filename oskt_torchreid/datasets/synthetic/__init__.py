"""Procedural pedestrians: a fair re-identification test that needs no download.

An identity is drawn from clothes, carried things, body shape and gait; a camera from a scene, a response and an optics;
a walk from a direction, a light and an occluder. The frames of a walk are one movement. Every picture depends only on
its own random streams, so it is the same whatever was drawn before it.
"""

from .renderer import Renderer
from .settings import PRESETS, SyntheticSettings, preset
from .video import VIDEO_PRESETS, VideoSettings, video_preset

__all__ = ["PRESETS", "VIDEO_PRESETS", "Renderer", "SyntheticSettings", "VideoSettings", "preset", "video_preset"]
