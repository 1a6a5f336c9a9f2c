"""OSKT: one-shot knowledge transfer by weight chains, over the channel graph of any network."""

from .chain import WeightChain
from .network import trace
from .sstudent import Refinement, SStudent

__all__ = ["Refinement", "SStudent", "WeightChain", "trace"]
