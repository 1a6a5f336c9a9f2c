"""Experiments: comparisons, ablations, benchmarks, makers of reference pages; tools and tests alone import it."""
