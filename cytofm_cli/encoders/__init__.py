"""Encoders: tiles or cells in, one vector each out."""
