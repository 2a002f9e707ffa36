"""The Zarr store of one slide: layout, writing, reading, export."""
