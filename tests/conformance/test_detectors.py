"""What the suite of detectors does not ask: the samples are true, and files that are not."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from cytofm_cli.errors import InputError
from cytofm_cli.nuclei import cellvit_net
from cytofm_cli.nuclei.base import NucleusSource
from cytofm_cli.registry import Sample, detectors
from cytofm_cli.testing import detectors as suite
from cytofm_cli.testing.samples import detectors as samples


def test_cellvit__layers_left_out_give_zeros(tmp_path, monkeypatch):
    image, _ = suite.field(SimpleNamespace(sample=Sample()), width=96, height=96)
    network = samples.dark_cellvit()
    monkeypatch.setitem(cellvit_net.SIZES, "CellViT-256", network.size)
    samples.write_cellvit(tmp_path / "file.pth", network)
    plugin = detectors.load("cellvit")
    whole = plugin.make(plugin.config(weights=tmp_path / "file.pth", device="cpu"))
    expected = whole.detect(image, suite.MPP)
    assert len(expected) == 1
    samples.skip_zeros(whole.file.network)
    found = whole.detect(image, suite.MPP)
    np.testing.assert_array_equal(found.contour_px0, expected.contour_px0)


@pytest.fixture(params=[".csv", ".png", ".geojson"])
def suffix(request) -> str:
    return request.param


def source_of(path: Path) -> NucleusSource:
    plugin = detectors.load("imported")
    return plugin.make(plugin.config(nuclei=path))


def test_source__order_of_the_file_does_not_matter(suffix, tmp_path):
    one, other = (
        source_of(samples.write_nuclei(tmp_path / f"{name}{suffix}", points)).read(suite.MPP)
        for name, points in (("as", samples.POINTS), ("reversed", samples.POINTS[::-1]))
    )
    np.testing.assert_array_equal(one.xy_px0, other.xy_px0)


def test_source__no_nuclei_is_an_empty_table(suffix, tmp_path):
    table = (
        source_of(samples.write_nuclei(tmp_path / f"none{suffix}", [])).read(suite.MPP).validate()
    )
    assert len(table) == 0


def test_source__damaged_file_is_refused_by_name(suffix, tmp_path):
    path = tmp_path / f"damaged{suffix}"
    path.write_bytes(b"\x00\xff\x13 no nuclei")
    with pytest.raises(InputError, match="damaged"):
        source_of(path).read(suite.MPP)
