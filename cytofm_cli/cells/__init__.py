"""Classes of cells: learnt from labelled points, written for every nucleus, counted by slide."""
