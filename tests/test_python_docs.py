"""docs/python.md and the notebooks do what they say."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "examples" / "notebooks").glob("*.ipynb"))


def draw_field(radius_px: float, seed: int) -> np.ndarray:
    """Three cells with a dark nucleus each, on bright ground: uint8 (320, 320, 3)."""
    y, x = np.mgrid[:320, :320] + 0.5
    picture = np.full((320, 320, 3), (243.0, 240.0, 236.0))
    for centre in ((70, 80), (220, 100), (150, 240)):
        distance = np.hypot(x - centre[0], y - centre[1])
        for radius, colour in ((40, (196, 205, 226)), (radius_px, (84, 62, 128))):
            picture[distance < radius] = colour
    noise = np.random.default_rng(seed).normal(0, 3, picture.shape)
    return (picture + noise).clip(0, 255).astype(np.uint8)


@pytest.mark.slow
def test_python_page__every_snippet_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = ["slide_id,label,group"]
    (tmp_path / "slides").mkdir()
    for i in range(12):
        field = draw_field(12 + 6 * (i % 2), seed=i)  # the same pixels twice would be copies
        Image.fromarray(field).save(tmp_path / "slides" / f"s{i:02d}.png")
        rows.append(f"s{i:02d},{'large' if i % 2 else 'small'},p{i // 2}")
    (tmp_path / "labels.csv").write_text("\n".join(rows) + "\n")
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    snippets = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert len(snippets) == text.count("```python")
    names: dict[str, object] = {}
    for snippet in snippets:
        exec(compile(snippet, "docs/python.md", "exec"), names)
    assert names["run"].metrics["auc"]["value"] == 1.0
    assert len(names["nuclei"]) == 3
    assert names["first"].shape == (256, 256, 3)


def test_notebooks__are_kept_without_outputs() -> None:
    nbformat = pytest.importorskip("nbformat")
    assert {path.stem for path in NOTEBOOKS} == {"first_slide", "own_mil_head"}
    for path in NOTEBOOKS:
        notebook = nbformat.read(path, as_version=4)
        nbformat.validate(notebook)
        for cell in notebook.cells:
            assert not cell.get("outputs")
            assert cell.get("execution_count") is None


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=[path.stem for path in NOTEBOOKS])
def test_notebook__runs_from_top_to_bottom(path: Path, tmp_path: Path) -> None:
    nbclient = pytest.importorskip("nbclient")
    import nbformat

    notebook = nbformat.read(path, as_version=4)
    client = nbclient.NotebookClient(
        notebook, timeout=240, resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    said = "".join(output.get("text", "") for output in outputs if output.output_type == "stream")
    assert not [o for o in outputs if o.output_type == "stream" and o.name == "stderr"], said
    if path.stem == "first_slide":
        assert any("image/png" in output.get("data", {}) for output in outputs)
        hit, total = map(int, re.findall(r"(\d+) of (\d+) nuclei found", said)[0])
        assert 10 < 0.9 * total <= hit <= total
    else:
        aucs = dict(re.findall(r"(\w+): AUC ([\d.]+)", said))
        assert aucs.keys() == {"abmil", "peak"}
        assert min(map(float, aucs.values())) > 0.8
