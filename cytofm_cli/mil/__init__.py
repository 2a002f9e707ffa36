"""Slide-level answers from bags of embeddings: training, scoring, comparing."""
