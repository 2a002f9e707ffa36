"""The steps as functions: what `import cytofm_cli` offers, and what the commands call."""
