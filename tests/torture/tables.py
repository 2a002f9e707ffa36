"""Put the tables of reports into docs/torture.md, each between its comments.

    python tests/torture/tables.py [--crashes FILE] [--kills FILE] [--mutants FILE]

What is not named stays.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).parent))

from tests.torture import crashes, long

DOC: Final = Path(__file__).resolve().parents[2] / "docs" / "torture.md"


def filled(text: str, name: str, table: str) -> str:
    """Return a text with what stands between `<!-- name -->` and `<!-- end -->` replaced.

    Raises:
        ValueError: there is no such place.
    """
    place = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end -->)", re.DOTALL)
    if not place.search(text):
        raise ValueError(f"no place for {name}")
    return place.sub(lambda match: f"{match[1]}{table}\n{match[2]}", text)


def of_kills(told: dict[str, Any]) -> str:
    """Return how many trials there were, and their table."""
    outcomes = told["outcomes"]
    done = f"{len(outcomes)} of 1 000 trials (seed {told['seed']})"
    return f"{done}; a trial often sends several signals, each counted:\n\n{long.table(outcomes)}"


def of_mutants(told: dict[str, Any]) -> str:
    """Return how many mutants there were, and their table."""
    import mutate

    done = f"{told['total']['tried']} of 10 000 mutants (seed {told['seed']})"
    return f"{done}:\n\n{mutate.table(told)}"


TABLES: Final = {"crashes": crashes.table, "kills": of_kills, "mutants": of_mutants}


def main() -> None:
    """Fill in the tables of the reports that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    for name in TABLES:
        parser.add_argument(f"--{name}", type=Path, metavar="FILE.json")
    text = DOC.read_text()
    for name, path in vars(parser.parse_args()).items():
        if path is not None:
            text = filled(text, name, TABLES[name](json.loads(path.read_text())))
    DOC.write_text(text)


if __name__ == "__main__":
    main()
