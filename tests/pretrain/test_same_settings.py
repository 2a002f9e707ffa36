"""A RUN of pretraining goes on however its settings are typed."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest

from cytofm_cli.config import as_record
from cytofm_cli.errors import ConfigMismatchError
from cytofm_cli.pretrain.config import PretrainConfig
from cytofm_cli.pretrain.run_folder import is_done
from cytofm_cli.runs.folder import CONFIG
from cytofm_cli.runs.record import to_text
from cytofm_cli.views.config import ViewsConfig
from cytofm_cli.views.recipes import same_views


def record(n_steps: int = 20, lr: float = 5e-4, **settings: Any) -> dict[str, dict[str, Any]]:
    views = {k: settings.pop(k) for k in list(settings) if k in ViewsConfig.__dataclass_fields__}
    return {
        "pretrain": as_record(PretrainConfig(**settings), results_only=True),
        "views": as_record(ViewsConfig(**views)),
        "dino": {"lr": lr, "decayed": "matrices"},
        "data": {"n_steps": n_steps, "detector": "classical", "unit": "tile"},
    }


def begin(folder: Path, of: dict[str, dict[str, Any]]) -> Path:
    folder.mkdir()
    (folder / CONFIG).write_text(to_text({**of, "made": {"cytofm": "0.1.0"}}))
    assert "pretrain" in tomllib.loads((folder / CONFIG).read_text())
    return folder


@pytest.mark.parametrize(
    "settings",
    [
        {"steps": 20},
        {"epochs": 3.0},  # rounds to as many steps
        {"lr": 5e-4},
        {"detector": "classical"},
        {"cell_um": 64.0},  # of --unit cell
        {"n_local": 8},  # DINO's own
        {"fill": "pixels", "keep": "subset"},  # the preset's own
    ],
)
def test_run__other_words_for_the_same_go_on(tmp_path: Path, settings: dict[str, Any]) -> None:
    run = begin(tmp_path / "run", record())
    assert not is_done(run, record(**settings), overwrite=False)  # begun, not finished


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        (record(n_steps=30, steps=30), "data.n_steps: 20 → 30"),
        (record(lr=1e-3), "dino.lr: 0.0005 → 0.001"),
        (record(n_local=2), "views.n_local: default → 2"),
        (record(seed=1), "pretrain.seed: 0 → 1"),
    ],
)
def test_run__other_settings_are_refused_by_name(
    tmp_path: Path, wanted: dict[str, dict[str, Any]], said: str
) -> None:
    run = begin(tmp_path / "run", record())
    with pytest.raises(ConfigMismatchError, match=said):
        is_done(run, wanted, overwrite=False)


def test_views__are_the_same_by_what_they_come_to() -> None:
    plain = as_record(ViewsConfig())
    assert same_views(plain, as_record(ViewsConfig(local_px=96, aspect=(0.75, 4 / 3))))
    assert not same_views(plain, as_record(ViewsConfig(local_px=112)))
    assert not same_views(plain, as_record(ViewsConfig(preset="none")))
