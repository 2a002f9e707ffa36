"""The scripts for QuPath name files as `detect --nuclei` and `export` do."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from cytofm_cli.nuclei.files import match_files

EXAMPLES = Path(__file__).resolve().parents[1] / "examples" / "qupath"


def regex(script: str, call: str) -> str:
    """Return the pattern that a script gives to a call, from its source."""
    found = re.search(rf"{call}\(/(.*?)/,", (EXAMPLES / script).read_text())
    assert found
    return found[1].replace(r"\/", "/")


@pytest.mark.parametrize(
    ("image", "slide_id"),
    [("a.svs", "a"), ("a.b.ome.tiff", "a.b"), ("c.mrxs", "c"), ("plain", "plain"), ("v.1", "v.1")],
)
def test_import__looks_for_the_file_that_export_writes(image: str, slide_id: str) -> None:
    assert re.sub(regex("import_folder.groovy", "replaceFirst"), "", image) == slide_id


@pytest.mark.parametrize("image", ["a.svs", "a.ome.tif", "a.scn - image 2", "a"])
def test_export__writes_files_that_are_matched_to_their_slide(image: str, tmp_path: Path) -> None:
    name = re.sub(regex("export_nuclei.groovy", "replaceAll"), "_", image) + ".geojson"
    (tmp_path / name).touch()
    assert match_files(tmp_path, ["a", "b"]).of_slide == {"a": tmp_path / name}
