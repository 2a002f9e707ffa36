"""Slide readers: one module here is one plug-in."""
