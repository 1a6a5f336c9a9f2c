"""Networks as they are deployed."""

from .deployment import Deployment
from .export import Exported, export
from .latency import Latency, measure_latency
from .parity import Parity
from .runtimes import ExportedNetwork, open_exported, read_metadata

__all__ = [
    "Deployment",
    "Exported",
    "ExportedNetwork",
    "Latency",
    "Parity",
    "export",
    "measure_latency",
    "open_exported",
    "read_metadata",
]
