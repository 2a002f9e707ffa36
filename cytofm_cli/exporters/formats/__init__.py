"""Exporters: one module, one plug-in (`cytofm_cli.registry.exporters`)."""
