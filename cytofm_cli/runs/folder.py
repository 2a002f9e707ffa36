"""The protocol of RUN folders: what lies at -o, what it was made with, whether its files are whole.

A command describes its RUNs by a `Kind`. The config.toml of a RUN says what it was made with: the
same settings again find it done, or go on; others are refused by name.
"""

from __future__ import annotations

import contextlib
import fnmatch
import json
import shutil
import tomllib
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from cytofm_cli import __version__
from cytofm_cli.errors import ConfigMismatchError, InputError, OutputError, blaming
from cytofm_cli.runs.provenance import sha256_file, utc_now
from cytofm_cli.runs.record import Record, changes, to_text
from cytofm_cli.work.claim import ClaimHeldError, claim, refuse_lost
from cytofm_cli.work.files import (
    is_partial,
    put_aside,
    put_in_place,
    read_plain,
    remove_partials,
    write_text,
)

CONFIG: Final = "config.toml"
STOPPED: Final = "stopped"  # a signal ended it: batch scripts look at this
ELSEWHERE: Final = "choose another -o"


@dataclass(frozen=True)
class RunReport:
    """A finished run.

    Attributes:
        path: the RUN folder.
        metrics: content of metrics.json.
        skipped: it was there already, made with the same settings.
    """

    path: Path
    metrics: dict[str, Any]
    skipped: bool


@dataclass(frozen=True)
class Kind:
    """What the RUN folders of one command have in common.

    Attributes:
        command: as it is typed.
        sections: of config.toml; a RUN of this command has all of them.
        beside: what a folder may hold before its config.toml without being something else.
        files: what else a RUN holds, as patterns: it is known by them when its config.toml is lost.
    """

    command: str
    sections: frozenset[str]
    beside: frozenset[str] = frozenset()
    files: frozenset[str] = frozenset()

    def former(self, out: Path, *, overwrite: bool = False) -> dict[str, dict[str, Any]] | None:
        """Read what the RUN at `out` was made with; None: there is nothing yet.

        A RUN that a killed command had moved aside is put back first.

        Args:
            out: the RUN.
            overwrite: what is left of a RUN that lost its config.toml is nothing, too.

        Raises:
            OutputError: `out` is a file.
            ConfigMismatchError: something else lies there, which `--overwrite` must not remove,
                or a RUN whose settings are lost.
            InputError: its config.toml is damaged.
        """
        restore(out)
        if not out.exists():
            return None
        if not out.is_dir():
            raise OutputError(f"{out}: is a file, no folder.", hint=ELSEWHERE)
        record: dict[str, dict[str, Any]] = {}
        names = {path.name for path in out.iterdir() if not is_partial(path.name)}
        try:
            if CONFIG in names:
                record = _read_toml(out / CONFIG)
            elif names <= self.beside:
                return None
        except ValueError as error:
            if not self._are_ours(names):
                raise InputError(f"{out / CONFIG}: damaged ({error}).", hint=ELSEWHERE) from error
        if not record and self._are_ours(names):
            if overwrite:
                return None
            raise self.lost_settings(out)
        if not self.sections <= record.keys():
            raise ConfigMismatchError(
                f"{out}: exists and is not a RUN of `{self.command}`.", hint=ELSEWHERE
            )
        return record

    def lost_settings(self, out: Path) -> ConfigMismatchError:
        """Return the error that says that nobody knows any more what a RUN was made with."""
        return ConfigMismatchError(
            f"{out}: its {CONFIG} is gone or damaged, so what it was made with is not known.",
            hint=f"`--overwrite` makes it anew; or {ELSEWHERE}",
        )

    def _are_ours(self, names: Collection[str]) -> bool:
        """Tell whether a folder of these names is a RUN: several of ours, and nothing else."""
        known = [*self.beside, *self.files]
        others = [name for name in names if name not in (CONFIG, STOPPED)]
        return len(others) > 1 and all(
            any(fnmatch.fnmatchcase(name, pattern) for pattern in known) for name in others
        )

    def is_run(self, run: Path) -> bool:
        """Tell whether a folder is a RUN, whatever of it is lost but what it was made with."""
        try:
            return self.sections <= self.read_config(run).keys()
        except InputError:
            return False

    def read_config(self, run: Path) -> dict[str, dict[str, Any]]:
        """Read config.toml of a RUN.

        Raises:
            InputError: `run` is none.
        """
        with self.reading(run, CONFIG):
            return _read_toml(run / CONFIG)

    def read_json(self, run: Path, name: str, kind: type = dict) -> Any:
        """Read a JSON file of a finished RUN.

        Args:
            run: the RUN.
            name: of the file.
            kind: what it holds, `dict` or `list`.

        Raises:
            InputError: `run` is none, or the file is damaged.
        """
        with self.reading(run, name):
            value = json.loads(read_plain(run / name))
            if not isinstance(value, kind):
                raise TypeError(f"a {type(value).__name__} where a {kind.__name__} belongs")
            return value

    def reading(self, run: Path, name: str) -> contextlib.AbstractContextManager[None]:
        """Blame what code stumbles over on the file of a RUN that it reads.

        Raises:
            InputError: names RUN and file.
        """
        return blaming(lambda error: self.unfinished(run, name, error))

    def unfinished(
        self, run: Path, name: str | None = None, error: Exception | None = None
    ) -> InputError:
        """Return the error that says that `run` is no finished RUN, and why not.

        Args:
            run: the RUN.
            name: the file that says so.
            error: what is wrong with it; None: it is not there.
        """
        why = f": it has no {name}" if name else ""
        if name and error is not None and not isinstance(error, FileNotFoundError):
            why = f": {name} is damaged ({type(error).__name__}: {error})"
        return InputError(
            f"{run}: not a finished RUN of `{self.command}`{why}.", hint="give what its -o named"
        )


def refuse_changes(out: Path, changed: Collection[str], *, overwrite: str) -> None:
    """Refuse to write over what was made with other settings.

    Args:
        out: the RUN.
        changed: in what the settings differ.
        overwrite: what `--overwrite` does, e.g. "begins anew".

    Raises:
        ConfigMismatchError: they differ.
    """
    if changed:
        raise ConfigMismatchError(
            f"{out}: was made with other settings: {'; '.join(changed)}.",
            hint=f"`--overwrite` {overwrite}; or {ELSEWHERE}",
        )


@contextlib.contextmanager
def holding(out: Path) -> Iterator[None]:
    """Hold a RUN for writing: one command at a time; what others left half-written there goes.

    Raises:
        TryAgainError: another command holds it.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    with claim(_claim_of(out)):
        remove_partials(out)
        yield


def restore(out: Path) -> None:
    """Put back a RUN that a killed command had moved aside, remove one that it had replaced.

    Its claim goes, too. Where a living command is at the RUN, this is its own affair.
    """
    aside = _aside_of(out)
    if not aside.exists() and not _claim_of(out).exists():
        return
    with contextlib.suppress(ClaimHeldError), holding(out):
        if out.exists():
            shutil.rmtree(aside, ignore_errors=True)
        elif aside.exists():
            aside.rename(out)


def staging_of(out: Path, record: Record) -> Path:
    """Return the hidden folder in which a RUN is made; `publish` puts it into place.

    What an interrupted command with the same settings left in it stays, anything else goes.
    """
    staging = out.parent / f".{out.name}.partial"
    if staging.exists() and not _same(staging, record):
        shutil.rmtree(staging)
    staging.mkdir(exist_ok=True)
    for part in (staging, *(path for path in staging.iterdir() if path.is_dir())):
        remove_partials(part)
    return staging


def publish(staging: Path, out: Path) -> None:
    """Put a finished RUN into its place, and what was there away.

    Raises:
        ClaimHeldError: another process has taken the RUN over meanwhile.
    """
    refuse_lost(_claim_of(out))
    put_in_place(staging, out, _aside_of(out))


def begin(out: Path, record: Record, *, overwrite: bool, **made: str) -> None:
    """Begin a RUN that is made in place and goes on there, or clear what may not stay.

    Args:
        out: the RUN; `Kind.former` has looked at it.
        record: sections of its config.toml.
        overwrite: remove what is there.
        made: versions to note beside cytofm's, in section `made`.
    """
    if overwrite:
        put_aside(out, _aside_of(out))
    out.mkdir(parents=True, exist_ok=True)
    (out / STOPPED).unlink(missing_ok=True)
    if not (out / CONFIG).is_file():
        versions = {"cytofm": __version__, **made, "utc": utc_now()}
        write_text(out / CONFIG, to_text({**record, "made": versions}))
    shutil.rmtree(_aside_of(out), ignore_errors=True)


def mark_stopped(out: Path, message: str) -> None:
    """Leave a mark that a signal ended the RUN and that the same command goes on."""
    write_text(out / STOPPED, f"{message}\n")


def forget_false_start(out: Path, empty: Collection[str] = ()) -> None:
    """Remove a RUN that holds nothing but its settings: they must not bind the next command.

    Args:
        out: the RUN.
        empty: folders without content, which do not count.
    """
    if {path.name for path in out.iterdir()} <= {CONFIG, *empty}:
        shutil.rmtree(out)


def digests(run: Path, names: Iterable[str]) -> dict[str, str]:
    """Return the SHA-256 of those of these files that are there, by name."""
    return {name: sha256_file(run / name) for name in names if (run / name).is_file()}


def exchanged(run: Path, recorded: Mapping[str, str]) -> list[str]:
    """Name the files whose content is not what was recorded, with both digests."""
    return [
        f"{name} (SHA-256 {digest[:12]}…, recorded {recorded[name][:12]}…)"
        for name, digest in digests(run, recorded).items()
        if digest != recorded[name]
    ]


def is_whole(path: Path, sha256: str | None = None) -> bool:
    """Tell whether a file is there, not empty, and what was recorded, if anything was."""
    if not path.is_file() or path.stat().st_size == 0:
        return False
    return sha256 is None or sha256_file(path) == sha256


def _claim_of(out: Path) -> Path:
    return out.parent / f".{out.name}.claim"


def _aside_of(out: Path) -> Path:
    return out.parent / f".{out.name}.replaced"


def _same(folder: Path, record: Record) -> bool:
    try:
        return not changes(_read_toml(folder / CONFIG), record)
    except (OSError, ValueError):
        return False


def _read_toml(path: Path) -> dict[str, dict[str, Any]]:
    return tomllib.loads(read_plain(path).decode("utf-8"))
