"""Entry point: run the command, turn every error into one line and an exit code."""

from __future__ import annotations

import io
import os
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress

# Before NumPy is loaded: its matrix products are small here, and threads that wait for the next one
# cost a detector half as much again. Work is shared out by processes and threads of ours.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run `cytofm`; exits."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    _open_streams()
    sys.exit(_run(words))


def _open_streams() -> None:
    """Give standard streams that the caller has closed somewhere to go.

    Else the first file that is opened gets the number of one, and what a library prints.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: PTH123, SIM115 - until the end


def _run(words: list[str]) -> int:
    from cytofm_cli.cli.app import build
    from cytofm_cli.cli.out import OutputClosedError, out, silence_stdout
    from cytofm_cli.errors import CytofmError, visible, without_secrets

    if isinstance(sys.stdout, io.TextIOWrapper):  # names of files may be no UTF-8: as they are
        sys.stdout.reconfigure(errors="surrogateescape")
    if "-vv" in words:
        words[words.index("-vv")] = "-v"
        out.verbose = 2
    try:
        build(words)(args=words, prog_name="cytofm")
    except SystemExit as done:
        if not isinstance(sys.stdout, io.TextIOBase):  # typer met a closed pipe, as in `--help`
            sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__
            silence_stdout()
            return 141
        return int(done.code or 0) if not isinstance(done.code, str) else 1
    except CytofmError as error:
        with suppress(OSError, OutputClosedError):
            out.error(error)
        _trace(out.verbose)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except OutputClosedError:
        silence_stdout()
        return 141
    except Exception as bug:
        from cytofm_cli.work.files import known_error

        if (known := known_error(bug)) is not None:
            silence_stdout()
            with suppress(OSError, OutputClosedError):  # stderr may be what is full
                out.error(known)
            _trace(out.verbose)
            return known.exit_code
        print(
            visible(without_secrets(f"error: {type(bug).__name__}: {bug} (a bug of cytofm). "))
            + "Hint: run again with -vv for the trace, and report it.",
            file=sys.stderr,
        )
        _trace(out.verbose)
        return 1
    return 0


def _trace(verbose: int) -> None:
    if verbose > 1:
        traceback.print_exc()


if __name__ == "__main__":
    main()
