"""What `--on` asks of a cluster, told without one."""

from __future__ import annotations

import stat
from importlib.util import find_spec
from pathlib import Path

import pytest

import cytofm_cli as cytofm
from cytofm_cli.api import cohort
from cytofm_cli.api.cohort import Manner
from cytofm_cli.errors import UsageError
from cytofm_cli.work import joining


def test_dry_run__asks_no_cluster(
    simulated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cohort, "join", lambda *_, **__: pytest.fail("a cluster was asked"))
    slide = sorted((simulated / "slides").iterdir())[0]
    (outcome,) = cytofm.tile(
        [slide], out=tmp_path / "out", slide_mpp=0.25, on="slurm", workers=64, dry_run=True
    )
    assert outcome.status == "done"
    assert outcome.facts["n_tiles"] > 0
    assert not list(tmp_path.iterdir())


def test_manner__of_a_dry_run_has_no_workers_of_a_cluster() -> None:
    dry, real = (Manner(on="slurm", workers=64, dry_run=dry_run) for dry_run in (True, False))
    assert (dry.on, dry.workers) == (None, None)
    assert (real.on, real.workers) == ("slurm", 64)
    with pytest.raises(UsageError, match="no batch system"):
        Manner(on="nowhere", dry_run=True)


def test_manner__what_only_reads_is_done_on_a_cluster_and_keeps_no_list() -> None:
    reads = Manner(on="slurm", only_reads=True)
    assert (reads.on, reads.keeps_list) == ("slurm", False)
    assert [Manner(dry_run=dry).keeps_list for dry in (True, False)] == [False, True]


@pytest.mark.skipif(
    not (find_spec("distributed") and find_spec("cryptography")),
    reason="no dask.distributed here: pip install 'cytofm[cluster]'",
)
def test_keys__are_files_of_ones_own_that_every_role_is_given(tmp_path: Path) -> None:
    security = joining._security_in(tmp_path)
    for name in ("cert", "key"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600
    assert "BEGIN CERTIFICATE" in (tmp_path / "cert").read_text()
    for role in ("scheduler", "worker", "client"):
        told = security.get_tls_config_for_role(role)
        assert told["ca_file"] == told["cert"] == str(tmp_path / "cert")
        assert told["key"] == str(tmp_path / "key")
        assert security.get_connection_args(role)["require_encryption"] is True
