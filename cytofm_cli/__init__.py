"""cytofm: from glass slide to slide-level answer, for cytology.

    import cytofm_cli as cytofm

    stores = cytofm.tile("slides/", "stores", tile_px=256).stores
    cytofm.detect(stores)
    cytofm.embed(stores, unit="cell")
    run = cytofm.train("stores", "labels.csv", "run", unit="cell")

What there is: `dir(cytofm)`, docs/python.md. A name is imported when it is first used, so that
importing cytofm costs nothing; `__init__.pyi` tells type checkers and editors what it is.
"""

from __future__ import annotations

import importlib

__version__ = "0.2.0"

# Where the public names are. `pretrain`, `evaluate`, `simulate` and `views` are packages of the
# tree, so the functions of these commands have longer names.
_NAMES_IN = {
    "api.attention": ("Attention", "attention"),
    "api.cells": ("Counts", "apply_cells", "count_cells", "train_cells"),
    "api.cohort": ("Started",),
    "api.detect": ("detect",),
    "api.embed": ("embed",),
    "api.export": ("export",),
    "api.gallery": ("MadeGallery", "make_gallery"),
    "api.pooling": ("Pooled", "pool_slides"),
    "api.frames": ("embeddings_frame", "nuclei_frame", "tiles_frame", "to_anndata"),
    "api.generate": ("evaluate_generator", "sample_generator", "train_generator"),
    "api.generate_uses": ("make_counterfactual", "restain_cells"),
    "api.heatmap": ("heatmap",),
    "api.opening": (
        "ImageEncoder",
        "list_detectors",
        "list_encoders",
        "list_methods",
        "load_encoder",
        "open_slide",
        "open_store",
    ),
    "api.outcomes": ("Outcomes",),
    "api.pack": ("pack",),
    "api.pretrain": ("pretrain_encoder",),
    "api.probe": ("probe",),
    "api.report": ("Report", "make_report"),
    "api.robustness": ("retention", "robustness"),
    "api.run": ("run",),
    "api.score": ("Scores", "score"),
    "api.simulate": ("simulate_slides",),
    "api.status": ("Status", "status"),
    "api.tile": ("tile",),
    "api.train": ("train",),
    "api.truth": ("judge_nuclei",),
    "api.verify": ("verify",),
    "api.view": ("export_marks", "view"),
    "api.views": ("make_views",),
    "cells.config": ("ApplyConfig", "CellsConfig", "CountConfig"),
    "encoders.config": ("EmbedConfig",),
    "errors": ("CytofmError", "CytofmWarning"),
    "evaluate.condition_config": ("RetentionConfig", "RobustnessConfig"),
    "evaluate.config": ("ProbeConfig",),
    "generate.config": ("GenerateConfig", "MeasureConfig", "SampleConfig"),
    "generate.use_config": ("CounterfactualConfig", "RestainConfig"),
    "maps.config": ("AttentionConfig", "HeatmapConfig"),
    "mil.bag": ("Bag",),
    "mil.config": ("MilConfig",),
    "nuclei.config": ("DetectConfig",),
    "pretrain.config": ("PackConfig", "PretrainConfig"),
    "report.config": ("GalleryConfig", "ReportConfig"),
    "simulate.config": ("SimulateConfig",),
    "tiles.config": ("TileConfig",),
    "views.config": ("ViewsConfig",),
    "work.batch": ("Note", "Outcome", "Progress"),
}
_MODULE_OF = {name: module for module, names in _NAMES_IN.items() for name in names}

__all__ = ["__version__", "errors"]
__all__ += list(_MODULE_OF)


def __getattr__(name: str) -> object:
    if name == "errors":
        return importlib.import_module("cytofm_cli.errors")
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
