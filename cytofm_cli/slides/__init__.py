"""Slides: one protocol over every reader, chosen by probing the file."""
