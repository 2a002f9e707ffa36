"""Judge encoders on labelled cells and tiles."""
