"""OSKT: one-shot knowledge transfer by weight chains, over the channel graph of any network."""

from .chain import WeightChain
from .engine import OSKTEngine
from .network import trace
from .sstudent import Refinement, SStudent

__all__ = ["OSKTEngine", "Refinement", "SStudent", "WeightChain", "trace"]
