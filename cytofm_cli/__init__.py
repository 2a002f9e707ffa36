"""cytofm: from glass slide to slide-level answer, for cytology."""

__version__ = "0.2.0"
