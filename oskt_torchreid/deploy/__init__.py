"""Networks as they are deployed."""

from .deployment import Deployment
from .eight_bits import EightBits, LayerError
from .export import Exported, export
from .gallery import Ranked, lift, rank
from .latency import Latency, measure_latency
from .lifting import Lifted, lifted
from .parity import Parity
from .runtimes import ExportedNetwork, open_exported, read_metadata
from .threshold import Calibration, Threshold, calibrate, calibrate_threshold

__all__ = [
    "Calibration",
    "Deployment",
    "EightBits",
    "Exported",
    "ExportedNetwork",
    "Latency",
    "LayerError",
    "Lifted",
    "Parity",
    "Ranked",
    "Threshold",
    "calibrate",
    "calibrate_threshold",
    "export",
    "lift",
    "lifted",
    "measure_latency",
    "open_exported",
    "rank",
    "read_metadata",
]
