"""Every command that writes, on what `make_ground` makes."""

from __future__ import annotations

from .ground import TILE, TRAIN

OWN = ("--encoder", "handcrafted")
PRETRAIN = (
    "--encoder", "sr-vit-nano",
    "--method", "dino", "--global-px", 32, "--local-px", 16, "--n-local", 2, "--batch", 4,
    "--steps", 2, "--save-every", 1, "--log-every", 1, "--device", "cpu", "--threads", 1,
    "--set", "prototypes=16", "--set", "hidden=8", "--set", "bottleneck=8",
)  # fmt: skip
BAGS = ("--bags", "stores", "--labels", "cohort/labels.csv")
POINTS = ("--labels", "cohort/points.csv", "--groups", "cohort/labels.csv", *OWN)
PROBED = (
    "--points", "cohort/points.csv", "--groups", "cohort/labels.csv", *OWN, "--task", "abnormal",
)  # fmt: skip
PROBE = (*PROBED, "--replicates", 100)
GENERATE = (
    "--align", "none", "--condition", "none", "--cell-um", 16, "--batch", 4, "--steps", 2,
    "--save-every", 1, "--device", "cpu", "--threads", 1,
    "--size-px", 32, "--vae-base", 8, "--vae-blocks", 1, "--depth", 1, "--width", 16,
    "--heads", 2, "--patch", 1, "--aligned-depth", 1, "--projector", 16,
)  # fmt: skip
SAMPLED = ("--sampler", "euler", "--steps", 2, "--device", "cpu")
CELL = ("--like", "whole/p1_s1.zarr:0")
CASES: dict[str, tuple[object, ...]] = {
    "tile": ("tile", "one", "-o", "new", *TILE, "--preview", "shown"),
    "tile --overwrite": ("tile", "one", "-o", "whole", *TILE, "--stride-px", 64, "--overwrite"),
    "detect": ("detect", "bare"),
    "detect --overwrite": ("detect", "whole", "--overwrite", "--set", "min_probability=0.6"),
    "embed": ("embed", "bare", *OWN),
    "embed --overwrite": (
        *("embed", "whole", *OWN, "--unit", "cell", "--dtype", "float16", "--overwrite"),
    ),
    "run": ("run", "one", "-o", "new", *OWN, "--model", "run", "--to", "h5", *TILE),
    "views": ("views", "found", "-o", "new"),
    "pack": ("pack", "found", "-o", "new.pack"),
    "pretrain": ("pretrain", "stores", "-o", "new", *PRETRAIN),
    "mil train": ("mil", "train", *BAGS, "-o", "new", *TRAIN),
    "mil train --overwrite": (
        *("mil", "train", *BAGS, "-o", "run", *TRAIN, "--seed", 5, "--overwrite"),
    ),
    "mil benchmark": ("mil", "benchmark", *BAGS, "-o", "new", *TRAIN, "--method", "mean"),
    "mil score": ("mil", "score", "run", "whole", "-o", "new.csv"),
    "cells train": ("cells", "train", "stores", *POINTS, "-o", "new", "--task", "abnormal"),
    "cells train --overwrite": (
        *("cells", "train", "stores", *POINTS, "-o", "cells", "--task", "abnormal"),
        *("--seed", 5, "--overwrite"),
    ),
    "cells apply": ("cells", "apply", "cells", "found"),
    "cells count": ("cells", "count", "found", "-o", "new.csv"),
    "evaluate probe": ("evaluate", "probe", "stores", *PROBE, "-o", "new"),
    "evaluate robustness": (
        *("evaluate", "robustness", "whole", "-o", "new", *OWN, "--max-places", 12),
        *("--perturb", "jpeg:50"),
    ),
    "evaluate retention": (
        *("evaluate", "retention", "stores", *PROBED, "-o", "new", "--perturb", "jpeg:50"),
    ),
    "report": ("report", "run", "whole", "-o", "new.html"),
    "generate train": ("generate", "train", "stores", "-o", "new", *GENERATE),
    "generate sample": ("generate", "sample", "new", "-o", "images", "-n", 2, *SAMPLED),
    "generate evaluate": (
        *("generate", "evaluate", "new", "stores", "-o", "judged", *OWN, "--n", 8, *SAMPLED),
    ),
    "generate counterfactual": (
        *("generate", "counterfactual", "new", "--score", "cells", *CELL, "-o", "strips"),
        *SAMPLED,
    ),
    "generate restain": (
        *("generate", "restain", "new", *CELL, "--stain", "stores/p2_s1.zarr", "-o", "images"),
        *SAMPLED,
    ),
    "gallery": ("gallery", "stores", "-o", "new", "--by", "area_um2"),
    "attention": (
        *("attention", "whole", "-o", "new", "--encoder", "cytofm-tiny", "--images", 2),
        *("--replicates", 100, "--device", "cpu"),
    ),
    "heatmap": ("heatmap", "run", "whole", "-o", "new"),
    "export": ("export", "whole", "-o", "new", "--to", "h5,geojson,csv,h5ad"),
    "simulate": (
        *("simulate", "-o", "new", "--patients", 2, "--slides-per-patient", 1, "--size-px", 200),
        *("--format", "jpeg"),
    ),
}
# What is done before a case, beyond the ground.
_TOLD = (*CASES["generate train"], "--condition", "encoder", *OWN)
BEFORE = {
    "generate sample": CASES["generate train"],
    "generate evaluate": CASES["generate train"],
    "generate counterfactual": _TOLD,
    "generate restain": _TOLD,
    "cells count": CASES["cells apply"],
}
# Made once, then made anew with --overwrite and other settings.
AGAIN: dict[str, tuple[object, ...]] = {
    "pretrain": ("--seed", 5),
    "evaluate probe": ("--seed", 5),
    "report": ("--cells", 3),
    "gallery": ("--top", 3),
    "export": ("--layout", "clam"),
    "views": ("--seed", 5),
    "simulate": ("--seed", 5),
    "generate train": ("--seed", 5),
}


def words_of(name: str) -> tuple[tuple[object, ...], tuple[object, ...] | None]:
    """Return the words of a case, and of the command before it."""
    if not name.startswith("again: "):
        return CASES[name], BEFORE.get(name)
    name = name.removeprefix("again: ")
    return (*CASES[name], *AGAIN[name], "--overwrite"), CASES[name]
