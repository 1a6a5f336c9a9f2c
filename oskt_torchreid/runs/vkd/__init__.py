"""A run of VKD: its plan, its stages, its analyses."""
