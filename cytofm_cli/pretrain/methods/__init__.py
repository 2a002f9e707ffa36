"""Self-supervised methods: a module is a plug-in."""
