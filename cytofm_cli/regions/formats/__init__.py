"""Files of regions: a format is a file."""
