"""Drawn figures of what a model finds and why; they need the extra `viz`."""
