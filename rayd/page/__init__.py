"""A run as one HTML page, which needs neither a network nor scripts from elsewhere."""

from rayd.page.run import FILE, render, write

__all__ = ["FILE", "render", "write"]
