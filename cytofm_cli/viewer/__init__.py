"""The viewer: slides and what stores hold of them, in a browser on this machine."""
