"""Pages to look at: the report of RUNs, and galleries of cells."""
