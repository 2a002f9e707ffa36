"""Nuclei-centred, perturbed multi-scale views: the one implementation that training calls."""
