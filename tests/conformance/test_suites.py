"""Every plug-in passes the conformance suite of its kind; one without a sample would not."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from cytofm_cli import registry
from cytofm_cli.testing import KINDS, suite
from cytofm_cli.testing.suite import Case, Check, run_check

# By hand, so that a folder that is not found does not pass for one without plug-ins.
OURS = {
    "reader": {
        "czi", "fastslide", "isyntax", "kfb", "ndpi", "ngff", "openslide", "sdpc", "tifffile",
        "tiffslide", "tmap", "vips", "wsidicom",
    },
    "detector": {"cellpose", "cellvit", "classical", "imported", "instanseg"},
    "encoder": {"handcrafted", "sr_vit", "timm"},
    "pretraining method": {
        "byol", "dino", "dinov2", "distill", "distill_dino", "distill_relations", "distill_tokens",
        "ibot", "moco", "simclr",
    },
    "MIL method": {
        "abmil", "clam_mb", "clam_sb", "count", "dsmil", "dtfd", "less", "max", "max_score",
        "mean", "transmil",
    },
    "exporter": {"csv", "geojson", "h5", "h5ad", "pt", "spatialdata"},
}  # fmt: skip
# A third of the suite's time; what they share with others those try.
HEAVY = {"cellvit", "distill_dino", "distill_relations", "distill_tokens"}
EVERY = [
    pytest.param(
        *(kind, name, check),
        id=f"{kind} {name}: {check.__name__}",
        marks=pytest.mark.slow if name in HEAVY else (),
    )
    for kind in KINDS
    for name in suite(kind).registry.names()
    for check in suite(kind).checks
]


Cases = Callable[[str, str], list[Case]]


@pytest.mark.parametrize(("kind", "name", "check"), EVERY)
def test_plugin__does_what_its_kind_must(cases: Cases, kind: str, name: str, check: Check) -> None:
    for case in cases(kind, name):
        run_check(check, case)


def test_suites__are_of_every_kind_and_every_plugin_has_a_sample() -> None:
    assert [kind.kind for kind in registry.ALL] == list(KINDS)
    for kind in registry.ALL:
        assert set(kind.names()) >= OURS[kind.kind]
        for name in kind.names():
            assert kind.find(name).sample is not None, name
