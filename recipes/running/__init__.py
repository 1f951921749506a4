"""A run while it lasts: its stages, its processes, its cluster."""
