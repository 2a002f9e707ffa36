"""Put the tables of the three reports into docs/torture.md, each between its comments.

python tests/torture/tables.py crashes.json kills.json mutants.json
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Final

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


def main() -> None:
    """Fill in the tables of the reports that the command line names."""
    import mutate

    told = [json.loads(Path(name).read_text()) for name in sys.argv[1:4]]
    outcomes, mutants = told[1]["outcomes"], told[2]
    done = f"{len(outcomes)} of 1 000 trials (seed {told[1]['seed']}); "
    of_kills = f"{done}a trial often sends several signals, each counted:\n\n{long.table(outcomes)}"
    done = f"{mutants['total']['tried']} of 10 000 mutants (seed {mutants['seed']}):\n\n"
    text = filled(DOC.read_text(), "crashes", crashes.table(told[0]))
    text = filled(filled(text, "kills", of_kills), "mutants", done + mutate.table(mutants))
    DOC.write_text(text)


if __name__ == "__main__":
    main()
