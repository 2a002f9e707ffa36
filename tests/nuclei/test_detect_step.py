"""The detect step on stores: nothing found, too little memory, a resolution far off."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cytofm_cli.errors import InputError, OutOfMemoryError
from cytofm_cli.nuclei.config import DetectConfig
from cytofm_cli.nuclei.detectors.classical import ClassicalDetector
from cytofm_cli.nuclei.run import Detection, DetectJob, read_nuclei
from cytofm_cli.store.io import open_store


def slide(path: Path, *, nuclei: bool) -> None:
    rng = np.random.default_rng(0)
    image = rng.normal(228, 1, (512, 1024, 3))
    if nuclei:
        yy, xx = np.mgrid[:512, :1024]
        for x in range(0, 1024, 128):  # the first and the last lie on the border
            soft = 1 / (1 + np.exp(np.minimum(np.hypot(xx - x, yy - 256) - 13, 60) / 1.2))
            image += soft[..., None] * (np.array([80, 60, 120]) - image)
    Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(path)


@pytest.fixture(scope="module")
def stores(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("detect")
    (folder / "images").mkdir()
    slide(folder / "images" / "full.png", nuclei=True)
    slide(folder / "images" / "bare.png", nuclei=False)
    for mpp, name in ((0.25, "stores"), (2.0, "coarse")):
        words = ["tile", folder / "images", "-o", folder / name, "--mpp", mpp, "--tile-px", 512]
        command = [sys.executable, "-m", "cytofm_cli", *map(str, words), "--foreground", "none"]
        subprocess.run(command, check=True, capture_output=True)
    return folder


def detect(store: Path):
    notes: list[str] = []
    job = DetectJob(slide_id=store.stem, path=str(store), config=DetectConfig(), overwrite=True)
    status, facts = Detection().detect(job, lambda *_: None, notes.append)
    return status, facts, notes


def test_no_nuclei__is_done_with_none_and_said(stores):
    store = stores / "stores" / "bare.zarr"
    status, facts, notes = detect(store)
    assert (status, facts["n"]) == ("done", 0)
    assert notes == ["warning: bare: no nuclei found"]
    assert len(read_nuclei(open_store(store), None)[1]) == 0


def test_nuclei_on_the_border__are_found_once(stores):
    store = stores / "stores" / "full.zarr"
    _, facts, notes = detect(store)
    xy = read_nuclei(open_store(store), None)[1].xy_px0
    assert facts["n"] == 8 and not notes and "n_quartered" not in facts
    # 512 is the seam of two tiles; of the first nucleus only the right half is on the slide.
    np.testing.assert_allclose(np.sort(xy[:, 0])[1:], np.arange(128, 1024, 128) + 0.5, atol=1.5)


def test_too_little_memory__is_quartered_counted_and_the_same(stores, monkeypatch):
    store = stores / "stores" / "full.zarr"
    detect(store)
    expected = read_nuclei(open_store(store), None)[1].xy_px0
    plain = ClassicalDetector.detect

    def small(self, image, mpp):
        if image.shape[0] * image.shape[1] > 250_000:  # a tile with its halo has 327 680
            raise OutOfMemoryError("too little memory")
        return plain(self, image, mpp)

    monkeypatch.setattr(ClassicalDetector, "detect", small)
    _, facts, notes = detect(store)
    assert facts["n_quartered"] == 2
    assert notes == ["warning: full: too little memory; 2 tiles quartered"]
    assert open_store(store).steps["nuclei/classical"]["n_quartered"] == 2
    found = read_nuclei(open_store(store), None)[1].xy_px0
    np.testing.assert_allclose(found, expected, atol=0.01)


def test_resolution__far_from_the_detectors_is_refused_and_nothing_is_left(stores):
    store = stores / "coarse" / "full.zarr"
    with pytest.raises(InputError, match=r"0\.05 to 1\.05 µm/px; these pixels are 2 µm"):
        detect(store)
    assert not any(step.startswith("nuclei/") for step in open_store(store).steps)
