"""Where encoders and MIL heads look: attention on nuclei, and heat maps of slides."""
