"""A run of OSKT: its plan, its stages, its report."""
