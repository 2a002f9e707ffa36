"""The study of `studies/generate`: its settings are ones, and its tables say what its files say."""

from __future__ import annotations

import importlib
import json
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cytofm_cli.config import resolve
from cytofm_cli.generate.config import GenerateConfig, MeasureConfig

from .conftest import make_store

STUDY = Path(__file__).resolve().parents[2] / "studies" / "generate"
SET = {"precision": 0.5, "recall": 0.25, "density": 1.0, "coverage": 0.125}
FIDELITY = {"cosine": 0.75, "retrieval": 0.5, "chance": 0.005, "n": 200}


@pytest.fixture(scope="module")
def study() -> Iterator[SimpleNamespace]:
    """Give the scripts of the study."""
    names = ("grid", "report")
    before = {name: sys.modules.pop(name, None) for name in names}
    sys.path.insert(0, str(STUDY))
    try:
        yield SimpleNamespace(**{name: importlib.import_module(name) for name in names})
    finally:
        sys.path.remove(str(STUDY))
        for name in names:
            sys.modules.pop(name, None)
            if before[name] is not None:
                sys.modules[name] = before[name]


def metrics(made: float) -> dict[str, Any]:
    space = {
        "n": 200, "dim": 384, "made": {"frechet": made, **SET}, "floor": {"frechet": 3.5, **SET},
        "autoencoder": {"frechet": 8.25, **SET}, "fidelity": FIDELITY,
        "jpeg": {q: {"frechet": int(q) / 8, **SET, "fidelity": FIDELITY} for q in ("50", "95")},
        "memorisation": {
            "copies": 0.01, "nearest_made": [0, 0.9, 1], "nearest_real": [0, 0.8, 1],
        },
    }  # fmt: skip
    return {"spaces": {"cytofm-tiny": space}}


def test_settings__of_the_second_training_are_of_the_first_ones_encoders() -> None:
    first, second = (
        tomllib.loads((STUDY / f"{name}.toml").read_text())["generate"]
        for name in ("tiny", "second")
    )
    trained = resolve(GenerateConfig, "generate", second)
    assert (trained.encoder, trained.align) == (first["encoder"], first["align"])


@pytest.mark.parametrize(("preset", "n"), [("tiny", 200), ("small", 1000)])
def test_settings__are_those_of_the_commands(preset: str, n: int) -> None:
    tables = tomllib.loads((STUDY / f"{preset}.toml").read_text())
    trained = resolve(GenerateConfig, "generate", tables["generate"])
    judged = resolve(MeasureConfig, "generate_evaluate", tables["generate_evaluate"])
    assert (trained.preset, judged.n) == (preset, n)
    assert trained.encoder in judged.encoder  # or nothing would say whether it was heard


def test_page__has_each_number_in_its_place(study: SimpleNamespace) -> None:
    page = study.report.page(
        {"judged-malaria_nih": metrics(20.0), "no-vae-ema": metrics(21.0),
         "before": metrics(25.0), "guidance-2.5": metrics(22.0), "sde-10": metrics(23.0),
         "sde-5": metrics(24.0)}
    )  # fmt: skip
    where = "| malaria_nih, cytofm-tiny, n 200, 384 features |"
    overlap = "0.500 | 0.250 | 1.000 | 0.125 |"
    assert f"{where} made | 20 | {overlap}" in page
    assert f"{where} real, other slides | 3.5 | {overlap}" in page
    assert "| malaria_nih | 0.900 | 0.800 | 1.0% | 0.750 | 50.0% | 0.5% |" in page
    assert page.index("| 95 | 11.88 |") < page.index("| 50 | 6.25 |")
    assert page.index("| sde, 5 | 24 |") < page.index("| sde, 10 | 23 |")
    assert page.index("| sde, 10 | 23 |") < page.index("| sde, 50 | 20 |")  # the plain one
    assert f"| 2.5 | 22 | {overlap} 0.750 | 50.0% |" in page
    assert f"| on | 25 | {overlap} 0.750 | 50.0% |" in page
    assert f"| off | 21 | {overlap} 0.750 | 50.0% |" in page
    assert f"| once | 25 | {overlap}" in page and f"| twice | 20 | {overlap}" in page
    assert page.count("Not run yet.") == 2  # the trainings' logs


def test_losses__are_those_that_a_training_has(study: SimpleNamespace) -> None:
    log = [{"step": 10, "velocity": 1.5, "align_sit": -0.25}]
    assert study.report.losses_table({"log": log}) == (
        "| updates | velocity | alignment (SiT) |\n| --- | --- | --- |\n| 10 | 1.500 | -0.250 |\n"
    )


def test_collect__keeps_metrics_and_some_lines_of_the_log(
    study: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(study.report, "RESULTS", tmp_path / "results")
    for name, text in (
        ("judged-malaria_nih/metrics.json", json.dumps(metrics(20.0))),
        ("balance/metrics.json", '{"of": "another command"}'),
        ("balance-1/balance.json", '{"facts": 1}'),
        ("uses/uses.json", '{"strips": 2}'),
        ("run/summary.json", '{"steps": 400}'),
        ("first/summary.json", '{"steps": 3}'),
        ("first/log.jsonl", '{"step": 3}\n'),
        ("run/log.jsonl", "".join(f'{{"step": {10 * at}}}\n' for at in range(1, 41))),
    ):
        path = tmp_path / "out" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    study.report.collect(tmp_path / "out")
    train = json.loads((tmp_path / "results" / "train.json").read_text())
    assert [line["step"] for line in train["log"]] == [10, 30, 110, 210, 300, 400]
    judged = json.loads((tmp_path / "results" / "judged-malaria_nih.json").read_text())
    assert judged == metrics(20.0)
    first = json.loads((tmp_path / "results" / "first.json").read_text())
    assert first == {"summary": {"steps": 3}, "log": [{"step": 3}]}
    uses = [
        json.loads((tmp_path / "results" / f"{n}.json").read_text()) for n in ("balance-1", "uses")
    ]
    assert uses == [{"facts": 1}, {"strips": 2}]
    assert len(list((tmp_path / "results").iterdir())) == 5


def test_chosen__has_a_cell_of_every_slide_before_a_second_of_any(
    study: SimpleNamespace, tmp_path: Path
) -> None:
    for name, seeds in (("a", range(6)), ("b", range(30)), ("c", range(6))):
        make_store(tmp_path, name, seeds)
    chosen = dict(study.grid.chosen(tmp_path))
    assert chosen == dict(study.grid.chosen(tmp_path)) and set(chosen) == {"dark", "light"}
    for of_class, parity in (("dark", 0), ("light", 1)):
        slides = [Path(word.rpartition(":")[0]).stem for word in chosen[of_class]]
        numbers = [int(word.rpartition(":")[2]) for word in chosen[of_class]]
        assert len(set(chosen[of_class])) == study.grid.EACH == 10
        assert sorted(slides[:3]) == sorted(slides[3:6]) == sorted(slides[6:9]) == ["a", "b", "c"]
        assert slides[9] == "b" and {number % 2 for number in numbers} == {parity}
