"""Dry runs: everything that a configuration asks for is built, and nothing is trained but one step."""
