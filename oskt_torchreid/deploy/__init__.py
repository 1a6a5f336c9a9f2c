"""Networks as they are deployed."""

from .latency import Latency, measure_latency

__all__ = ["Latency", "measure_latency"]
