"""Join a cluster of dask.distributed: one that runs already, or workers submitted for this run.

Whoever reaches the port of a scheduler without TLS runs code as its user: so TLS is the rule. A
cluster that is made here has keys of its own, made for this run and gone with it.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from cytofm_cli.errors import InputError, MissingPackageError, TryAgainError, UsageError

if TYPE_CHECKING:
    from distributed import Client, Security

# Batch systems that dask-jobqueue submits to, by the names that `--on` takes.
SUBMITTERS: Final = {
    "slurm": "SLURMCluster",
    "pbs": "PBSCluster",
    "lsf": "LSFCluster",
    "sge": "SGECluster",
    "htcondor": "HTCondorCluster",
    "oar": "OARCluster",
}
_WORKERS: Final = 4
_MEMORY: Final = "8GB"
_CONNECT_S: Final = 60.0
_SETTINGS: Final = {
    # An item whose worker died twice is the reason; and workers start children of their own.
    "distributed.scheduler.allowed-failures": 2,
    "distributed.worker.daemon": False,
    "distributed.logging.distributed": "error",
}


@contextlib.contextmanager
def join(
    where: str, *, workers: int | None, threads: int | None, warn: Callable[[str], None]
) -> Iterator[Client]:
    """Give a client of a cluster.

    Args:
        where: address of a scheduler (`tls://host:port`), its scheduler file, or one of
            `SUBMITTERS`, whose queue, memory and time stand in the site's `jobqueue.yaml`.
        workers: how many to submit; of no use for a cluster that runs already.
        threads: processors of each that is submitted; None: as the site's settings say, else 1.
        warn: told that a connection is not secret.

    Raises:
        MissingPackageError: dask.distributed, or dask-jobqueue, is not installed.
        UsageError: `where` is none of these, or a scheduler without TLS that no one has typed.
        InputError: the scheduler file cannot be read.
        TryAgainError: nobody answers there.
    """
    _require("distributed")
    import dask

    with dask.config.set(_SETTINGS), contextlib.ExitStack() as stack:
        if where in SUBMITTERS:
            yield stack.enter_context(_submitted(where, workers or _WORKERS, threads))
            return
        address = where if "://" in where else _address_of(Path(where))
        if not address.startswith("tls://"):
            _insecure(address, typed="://" in where, warn=warn)
        yield stack.enter_context(_client(address))


def check_place(where: str) -> None:
    """Refuse, before anything is read, what `join` cannot join.

    Raises:
        UsageError: it is no address, no file and no batch system.
    """
    if where in SUBMITTERS or "://" in where or Path(where).is_file():
        return
    raise UsageError(
        f"--on {where}: is no scheduler file, no address and no batch system.",
        hint=f"tls://host:port, sched.json, or {', '.join(SUBMITTERS)}",
    )


def _address_of(file: Path) -> str:
    try:
        return str(json.loads(file.read_text(encoding="utf-8"))["address"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{file}: is no scheduler file ({type(error).__name__}).",
            hint="the one that `dask scheduler --scheduler-file` writes",
        ) from error


def _insecure(address: str, *, typed: bool, warn: Callable[[str], None]) -> None:
    if not typed:
        raise UsageError(
            f"{address}: this scheduler speaks without TLS: who reaches its port runs code as you.",
            hint="start it with `--protocol tls`, or type --on and its address if nobody else can",
        )
    warn(f"{address}: without TLS: whoever reaches that port can run code as you")


@contextlib.contextmanager
def _client(address: str) -> Iterator[Client]:
    from distributed import Client

    try:
        client = Client(address, timeout=_CONNECT_S, set_as_default=False)
    except (OSError, TypeError, ValueError, TimeoutError) as error:
        raise TryAgainError(
            f"{address}: no scheduler answers ({error or type(error).__name__}).",
            hint="is it running? TLS needs DASK_DISTRIBUTED__COMM__TLS__CA_FILE and the others.",
        ) from error
    with client:
        yield client


@contextlib.contextmanager
def _submitted(where: str, workers: int, threads: int | None) -> Iterator[Client]:
    """Submit workers, give a client, and end them."""
    _require("dask_jobqueue")
    _require("cryptography")  # makes the keys
    import dask
    import dask_jobqueue
    from distributed import Client

    site = dask.config.get(f"jobqueue.{where}", {})
    cores = threads or site.get("job-cpu") or site.get("cores") or 1
    how: dict[str, Any] = {"job_cpu": cores} if where == "slurm" else {}
    with tempfile.TemporaryDirectory(prefix=".cytofm-keys-", dir=Path.home()) as keys:
        cluster = getattr(dask_jobqueue, SUBMITTERS[where])(
            cores=1,  # threads of dask: one item at a time
            processes=1,
            memory=site.get("memory") or _MEMORY,
            security=_security_in(Path(keys)),
            protocol="tls://",
            death_timeout=_CONNECT_S,
            scheduler_options={"dashboard": False},
            worker_extra_args=["--no-dashboard"],
            job_script_prologue=[
                *(site.get("job-script-prologue") or []),
                "export DASK_DISTRIBUTED__WORKER__DAEMON=False",
            ],
            **how,
        )
        with cluster, Client(cluster, timeout=_CONNECT_S, set_as_default=False) as client:
            cluster.scale(jobs=workers)
            yield client


def _security_in(folder: Path) -> Security:
    """Make keys for this run, in files that the workers read; dask's own outlive their folder."""
    from distributed import Security

    fresh = Security.temporary()
    for name, text in (("cert", fresh.tls_client_cert), ("key", fresh.tls_client_key)):
        (folder / name).touch(mode=0o600)
        (folder / name).write_text(text, encoding="ascii")
    files = {
        f"tls_{role}_{kind}": str(folder / kind)
        for role in ("scheduler", "worker", "client")
        for kind in ("cert", "key")
    }
    return Security(require_encryption=True, tls_ca_file=str(folder / "cert"), **files)


def _require(package: str) -> None:
    import importlib.util

    if importlib.util.find_spec(package) is None:
        raise MissingPackageError(
            f"--on needs the package {package.replace('_', '-')}.",
            hint="pip install 'cytofm[cluster]'",
        )
