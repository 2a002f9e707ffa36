"""Entry point: run the command, turn every error into one line and an exit code."""

from __future__ import annotations

import io
import os
import sys
import traceback
from collections.abc import Sequence

# Before NumPy is loaded: its matrix products are small here, and threads that wait for the next one
# cost a detector half as much again. Work is shared out by processes and threads of ours.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run `cytofm`; exits."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    sys.exit(_run(words))


def _run(words: list[str]) -> int:
    from cytofm_cli.cli.app import build
    from cytofm_cli.cli.out import out, silence_broken_pipe
    from cytofm_cli.errors import CytofmError

    if isinstance(sys.stdout, io.TextIOWrapper):  # names of files may be no UTF-8: as they are
        sys.stdout.reconfigure(errors="surrogateescape")
    if "-vv" in words:
        words[words.index("-vv")] = "-v"
        out.verbose = 2
    try:
        build(words)(args=words, prog_name="cytofm")
    except SystemExit as done:
        return int(done.code or 0) if not isinstance(done.code, str) else 1
    except CytofmError as error:
        out.error(error)
        _trace(out.verbose)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        silence_broken_pipe()
        return 141
    except Exception as bug:
        print(
            f"error: {type(bug).__name__}: {bug} (a bug of cytofm). "
            "Hint: run again with -vv for the trace, and report it.",
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
