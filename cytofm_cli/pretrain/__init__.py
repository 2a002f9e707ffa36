"""Self-supervised pretraining: methods, backbones, data, the loop."""
