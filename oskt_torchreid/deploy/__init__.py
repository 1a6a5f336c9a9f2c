"""Networks as they are deployed."""

from .deployment import Deployment
from .export import Exported, export
from .gallery import Ranked, lift, rank
from .latency import Latency, measure_latency
from .lifting import Lifted, lifted
from .parity import Parity
from .runtimes import ExportedNetwork, open_exported, read_metadata

__all__ = [
    "Deployment",
    "Exported",
    "ExportedNetwork",
    "Latency",
    "Lifted",
    "Parity",
    "Ranked",
    "export",
    "lift",
    "lifted",
    "measure_latency",
    "open_exported",
    "rank",
    "read_metadata",
]
