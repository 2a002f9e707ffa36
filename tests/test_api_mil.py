"""Training and scoring from Python give what the commands give."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import cytofm_cli as cytofm
from cytofm_cli.__main__ import main
from cytofm_cli.api.cohort import Started
from cytofm_cli.errors import (
    CytofmWarning,
    InputError,
    SomeSlidesFailedError,
    UsageError,
)
from cytofm_cli.mil.base import MilHead
from cytofm_cli.registry import Plugin, mil_methods
from cytofm_cli.work.batch import Note, Outcome


def here(*words: object) -> None:
    """Run a command that forks no children in this process."""
    with pytest.raises(SystemExit) as done:
        main([str(word) for word in words])
    assert done.value.code == 0


def write_bags(folder: Path, n: int = 12) -> Path:
    """Odd slides hold an instance that stands out; returns the table of labels."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    for i in range(n):
        x = rng.normal(size=(6, 4)).astype(np.float32)
        x[0, 0] += 8 * (i % 2)
        torch.save(torch.from_numpy(x), folder / f"s{i:02d}.pt")
    rows = [f"s{i:02d},{'malignant' if i % 2 else 'benign'},p{i // 2}" for i in range(n)]
    table = folder.parent / "labels.csv"
    table.write_text("\n".join(["slide_id,label,group", *rows]) + "\n")
    return table


QUICK = {"folds": 2, "seeds": 1, "inner_folds": 2, "epochs": 30, "lr": 0.02, "bootstrap": 100}


def test_train_and_score__equal_the_commands(tmp_path: Path) -> None:
    bags = tmp_path / "bags"
    labels = write_bags(bags)
    trained = cytofm.train(bags, str(labels), tmp_path / "run", method="max", **QUICK)
    assert trained.metrics["auc"]["value"] == 1.0
    flags = [w for key, v in QUICK.items() for w in (f"--{key.replace('_', '-')}", v)]
    here(
        *("mil", "train", "--bags", bags, "--labels", labels, "-o", tmp_path / "theirs"),
        *("--method", "max", *flags),
    )
    for name in ("predictions.csv", "config.toml", "splits.csv"):
        ours, theirs = (tmp_path / of / name for of in ("run", "theirs"))
        assert ours.read_bytes() == theirs.read_bytes(), name
    assert cytofm.train(bags, labels, tmp_path / "run", method="max", **QUICK).skipped

    scores = cytofm.score(tmp_path / "run", bags, tmp_path / "ours.csv")
    here("mil", "score", tmp_path / "theirs", bags, "-o", tmp_path / "theirs.csv")
    assert (tmp_path / "ours.csv").read_text() == (tmp_path / "theirs.csv").read_text()
    table = scores.frame()
    assert list(table.index) == [f"s{i:02d}" for i in range(12)]
    assert table["prob_malignant"][1::2].min() > table["prob_malignant"][::2].max()
    assert table.loc["s03", "prob_malignant"] == scores[3].p_C[1]


def test_score__a_bag_that_cannot_be_read_leaves_the_others_scored(tmp_path: Path) -> None:
    bags = tmp_path / "bags"
    trained = cytofm.train(bags, write_bags(bags), tmp_path / "run", method="mean", **QUICK)
    torch.save(torch.zeros(3, 5), bags / "wide.pt")
    with pytest.warns(CytofmWarning, match="wide: features are 5 wide"):
        scores = cytofm.score(trained.path, bags)
    assert (len(scores), list(scores.failures)) == (12, ["wide"])
    with pytest.raises(SomeSlidesFailedError, match="1 of 13"):
        scores.raise_failures()
    for name in ("s00", "s01", "s02"):
        (bags / f"{name}.pt").write_bytes(b"junk")
    with pytest.warns(CytofmWarning), pytest.raises(InputError, match="none of 2 slides"):
        cytofm.score(trained.path, [bags / "s00.pt", bags / "s01.pt"]).raise_failures()


def test_score__parts_have_tables_of_their_own_and_all_is_heard(tmp_path: Path) -> None:
    bags, table = tmp_path / "bags", tmp_path / "scores.csv"
    run = cytofm.train(bags, write_bags(bags), tmp_path / "run", method="mean", **QUICK).path
    heard: list[object] = []
    planned = cytofm.score(run, bags, table, shard="1/2", dry_run=True, listen=heard.append)
    (started,) = heard
    assert isinstance(started, Started)
    assert (len(planned), planned.table) == (0, tmp_path / "scores.1-of-2.csv")
    assert not planned.table.exists()
    parts = [cytofm.score(run, bags, table, shard=f"{i}/2", listen=heard.append) for i in (0, 1)]
    assert sum(isinstance(event, Outcome) for event in heard) == 12
    assert len(parts[1]) == started.n_slides
    assert sorted(score.slide_id for part in parts for score in part) == [
        f"s{i:02d}" for i in range(12)
    ]
    assert [part.table.read_text() for part in parts] == [part.csv() for part in parts]
    notes = [event.text for event in heard if isinstance(event, Note)]
    assert [text for text in notes if "slides scored" in text] == [
        f"{len(part)} slides scored by run" for part in parts
    ]
    with pytest.raises(UsageError, match="is written into stores"):
        cytofm.score(run, bags, attention=True)


def test_registry__a_head_of_the_session_trains_and_scores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plugin = mil_methods.load("max")

    class Own(plugin.make):  # type: ignore[name-defined, misc]
        """A head that is defined here."""

    assert issubclass(Own, MilHead)
    monkeypatch.setitem(
        mil_methods._added, "own", Plugin(make=Own, config=plugin.config, summary="-")
    )
    labels = write_bags(tmp_path / "bags")
    trained = cytofm.train(
        tmp_path / "bags",
        labels,
        tmp_path / "run",
        method="own",
        head_settings={"hidden": 8},
        **QUICK,
    )
    assert trained.metrics["auc"]["value"] == 1.0
    assert "own" in {row.name for row in cytofm.list_methods()}
    with pytest.raises(UsageError, match="'abmil' is there already"):
        mil_methods.add("abmil", plugin)
