"""`cytofm quickstart`: what it refuses, and what it says at the end. `.ci/run` runs the whole."""

from __future__ import annotations

from pathlib import Path

import pytest

from cytofm_cli.cli.quickstart_report import table


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("--data", "."), 2, "--data is given without --labels"),
        (("--labels", "labels.csv"), 2, "--labels is given without --data"),
        (("--slide-mpp", 0.25), 2, "--slide-mpp is given without --data"),
        (("--data", ".", "--labels", "absent.csv"), 3, "absent.csv: no such file"),
        (("--data", "absent", "--labels", __file__), 3, "absent: no such file or folder"),
    ],
)
def test_quickstart__half_a_cohort_is_refused_before_anything_runs(
    here, tmp_path: Path, words: tuple[object, ...], code: int, said: str
) -> None:
    done = here("quickstart", "-o", tmp_path / "out", *words)
    assert done.returncode == code
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def interval(value: float) -> dict[str, float]:
    return {"value": value, "low": value - 0.1, "high": value + 0.1}


METRICS = {"abmil, cell bags": {n: interval(0.75) for n in ("auc", "accuracy", "recall")}}
TRUTH = {
    "nuclei": {
        "recall": 0.9,
        "precision": 0.5,
        "n_true": 200,
        "n_found": 400,
        "match_um": 3.75,
        "others": {"pieces of nuclei": 20, "dirt and film on glass": 180},
    },
    "probe": {"handcrafted": interval(0.8), "few": {"value": None, "low": None, "high": None}},
    "bayes_auc": 0.983,
}


def test_table__numbers_stand_beside_the_truth_and_say_what_they_are() -> None:
    lines = table(METRICS, TRUTH).splitlines()
    assert "recall 0.900 of 200 true ones, precision 0.500 of 400 detections" in lines[0]
    assert lines[2].endswith("the other 200: pieces of nuclei 10%, dirt and film on glass 90%")
    assert "handcrafted       0.800 [0.700, 0.900]" in lines
    assert "few               –" in lines
    slides = lines.index("abmil, cell bags  " + "  ".join(["0.750 [0.650, 0.850]"] * 3))
    assert lines[slides + 1] == "Bayes ceiling     0.983"
    assert "simulated" in lines[-1]


def test_table__slides_of_ones_own_have_no_truth() -> None:
    text = table(METRICS, {})
    assert "0.750 [0.650, 0.850]" in text
    assert "simulated" not in text
    assert "Bayes" not in text
