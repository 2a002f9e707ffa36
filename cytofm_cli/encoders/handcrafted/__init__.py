"""Colour, texture and dark-blob statistics of images: the floor for learned encoders."""
