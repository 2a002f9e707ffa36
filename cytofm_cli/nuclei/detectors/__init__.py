"""Detectors of nuclei: one module is one plug-in (`cytofm_cli.registry.detectors`)."""
