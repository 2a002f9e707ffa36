"""Marked regions of slides: files of other programs, and what lies inside."""
