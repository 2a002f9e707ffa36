"""Samples of cytofm's own plug-ins, where they need files or networks."""
