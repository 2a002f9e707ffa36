"""Slides of simulated cells whose truth is known: presets, cohort, layout, cells, glass, optics."""
