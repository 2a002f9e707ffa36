"""A small preset for tests of layout and files: cheap cells, every feature of a preset once."""

from __future__ import annotations

from typing import Any

from cytofm_cli.simulate.cohort import Slide, make_cohort
from cytofm_cli.simulate.config import SimulateConfig
from cytofm_cli.simulate.preset import (
    Cytoplasm,
    Diagnosis,
    Dye,
    Kind,
    Layout,
    Nucleus,
    Preset,
    Spread,
)


def kind(group: str, nucleus: float, whole: float, **more: Any) -> Kind:
    return Kind(
        group=group,
        nucleus=Nucleus(area_um2=Spread(median=nucleus), density={"blue": 1.0}),
        cytoplasm=Cytoplasm(area_um2=Spread(median=whole), density={"pink": 0.5}),
        **more,
    )


PRESET = Preset(
    summary="for tests",
    negative="normal",
    dyes={"blue": Dye(od=(0.6, 0.5, 0.2)), "pink": Dye(od=(0.1, 0.3, 0.2))},
    kinds={
        "squame": kind("NILM", 30, 1200),
        "gland": kind("NILM", 50, 120, sheet=8.0),
        "dark": kind("HSIL", 120, 250, sheet=2.0, crowding=1.2),
        "odd": kind("ASC-US", 90, 900),
        "neutrophil": kind("neutrophil", 35, 80, marked=False),
    },
    diagnoses={
        "well": Diagnosis(label="normal"),
        "high": Diagnosis(label="abnormal", weight=0.4, kinds={"dark": 0.8, "odd": 0.2}),
        "low": Diagnosis(label="abnormal", weight=0.6, share=0.5, kinds={"odd": 1.0}),
    },
    layout=Layout(
        cells_per_mm2=400,
        background={"squame": 0.9, "gland": 0.1},
        bystanders={"neutrophil": 300},
        atypical={"odd": 0.02},
    ),
)


def slides(**settings: Any) -> tuple[SimulateConfig, tuple[Slide, ...]]:
    config = SimulateConfig(**settings)
    return config, make_cohort(config, PRESET)
