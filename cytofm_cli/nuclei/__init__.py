"""Nuclei: find them, stitch them over a slide, measure them, write them for QuPath."""
