"""Data sets that this package brings along."""
