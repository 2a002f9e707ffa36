"""MIL heads: one module is one plug-in (see `cytofm_cli.mil.base`)."""
