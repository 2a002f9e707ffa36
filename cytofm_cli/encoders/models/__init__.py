"""Encoder plug-ins: one module, one plug-in (`cytofm_cli.registry.encoders`)."""
