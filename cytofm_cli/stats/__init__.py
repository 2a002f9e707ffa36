"""Numbers and folds: metrics, intervals, tests, folds, classes. Knows no model."""
