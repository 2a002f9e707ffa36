"""Where the cells are: foreground, grid, focus, choice of tiles, and the preview picture."""
