"""Running many items safely: batches, pools, signals, claims, processors, devices, files."""
