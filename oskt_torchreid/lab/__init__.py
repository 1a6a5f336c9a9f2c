"""Experiments: comparisons, ablations, benchmarks, makers of reference pages; imported by tools and tests only."""
