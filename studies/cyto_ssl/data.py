"""Part the collections by patient and make the stores; what is there stays.

    python data.py

WORK/data/pretrain/<collection>/ holds what is learnt from, without labels, WORK/data/judged/ what
judges: no patient, block or group is in both. Besides, for each judged collection, `<name>.csv`
(slide_id,x,y,label,group) and, for the bags of malaria cells, `needle<k>_bags.csv` and
`needle<k>_labels.csv`, of judged patients only, and `control<k>_bags.csv`, without parasites.
"""

from __future__ import annotations

import csv
import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Final

from places import COLLECTIONS, WORK, cytofm

from cytofm_cli.store.io import open_store

DATA: Final = WORK / "data"
PARTS: Final = ("pretrain", "judged")
MPP: Final = 0.25
TILE_PX: Final = 128  # 32 µm
# µm/px. Those of SIPaKMeD and of the liquid-based crops are estimates. Red cells are shown 2.4 ×
# too large (0.058 would be true): so one fills a view as a nucleus with its surroundings does.
MPP_OF: Final = {"malaria_nih": 0.14, "sipakmed": 0.15, "lbc_cdetector": 0.25}
# Red cells are cut out on black, which no smear is: hand-made features see little else.
FILL_OF: Final = {"malaria_nih": 235}
Row = dict[str, str]


def by_hash(names: Iterable[str], share: float) -> set[str]:
    """Choose a share of names by their SHA-256: the same ones for ever."""
    ordered = sorted(names, key=lambda name: hashlib.sha256(name.encode()).hexdigest())
    return set(ordered[: round(share * len(ordered))])


def within(rows: Sequence[Row], stratum: str, group: str, share: float) -> set[str]:
    """Choose a share of the groups of each stratum."""
    groups: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        groups[row[stratum]].add(row[group])
    return set().union(*(by_hash(names, share) for names in groups.values()))


def read(path: Path) -> list[Row]:
    """Read a table."""
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def write(path: Path, rows: Sequence[Row], columns: Sequence[str]) -> None:
    """Write some columns of a table."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)


def cells(name: str, table: str, archive: str, learnt: Callable[[list[Row]], set[str]]) -> None:
    """Make the stores of a collection of single cells, one a patient or block."""
    rows = read(COLLECTIONS / name / table)
    chosen = learnt(rows)
    for part in PARTS:
        some = [row for row in rows if (row["group"] in chosen) == (part == "pretrain")]
        for row in some:  # blocks of ten crops would count as slides
            of_class = name == "lbc_cdetector" and part == "pretrain"
            row |= {"slide_id": row["label" if of_class else "group"], "mpp": str(MPP_OF[name])}
        listed = DATA / part / f"{name}_cells.csv"
        write(listed, some, ("file", "slide_id", "label", "mpp"))
        cytofm(
            ["tile", COLLECTIONS / name / archive, "--cells", listed, "-o", DATA / part / name,
             "--mpp", MPP, "--tile-px", TILE_PX, "--cell-fill", FILL_OF.get(name, "auto"),
             "--quiet"],
            DATA / f"{name}.log",
        )  # fmt: skip
    points = [
        {"slide_id": path.stem, "x": f"{x}", "y": f"{y}", "label": label, "group": path.stem}
        for path in sorted((DATA / "judged" / name).glob("*.zarr"))
        for (x, y), label in labelled(path)
    ]
    write(DATA / "judged" / f"{name}.csv", points, ("slide_id", "x", "y", "label", "group"))


def labelled(path: Path) -> list[tuple[tuple[float, float], str]]:
    """Return the centre and class of each cell of a store."""
    nuclei = open_store(path).nuclei()
    return [
        ((float(x), float(y)), nuclei.classes[number])
        for (x, y), number in zip(nuclei.xy_px0.tolist(), nuclei.class_id.tolist(), strict=True)
    ]


def fields() -> None:
    """Make the stores of the Pap fields, with the nuclei that the detector finds."""
    rows = read(COLLECTIONS / "cric" / "images.csv")
    chosen = {"g1", "g4", "g6", "g8"}  # those that cytofm-tiny has seen
    for part in PARTS:
        images = [
            COLLECTIONS / "cric" / "images" / row["image"]
            for row in rows
            if (row["group"] in chosen) == (part == "pretrain")
        ]
        folder, log = DATA / part / "cric", DATA / "cric.log"
        cytofm(["tile", *images, "-o", folder, "--slide-mpp", MPP, "--tile-px", TILE_PX,
                "--foreground", "none", "--quiet"], log)  # fmt: skip
        cytofm(["detect", folder, "--quiet"], log)
    group_of = {row["image"]: row["group"] for row in rows}
    points = [
        {**row, "slide_id": Path(row["image"]).stem, "group": group_of[row["image"]]}
        for row in read(COLLECTIONS / "cric" / "points.csv")
        if group_of[row["image"]] not in chosen
    ]
    write(DATA / "judged" / "cric.csv", points, ("slide_id", "x", "y", "label", "group"))


def needles(patients: set[str]) -> None:
    """Write the tables of the bags of judged patients, and of their controls."""
    parasites = {
        row["file"]
        for row in read(COLLECTIONS / "malaria_nih" / "cells.csv")
        if row["label"] == "parasitized"
    }
    for k in (1, 2, 4):
        labels = read(COLLECTIONS / "malaria_nih" / f"needle{k}_labels.csv")
        labels = [row for row in labels if row["group"] in patients]
        names = {row["slide_id"] for row in labels}
        bags = read(COLLECTIONS / "malaria_nih" / f"needle{k}_bags.csv")
        bags = [row for row in bags if row["slide_id"] in names]
        write(DATA / "judged" / f"needle{k}_labels.csv", labels, ("slide_id", "label", "group"))
        write(DATA / "judged" / f"needle{k}_bags.csv", bags, ("slide_id", "file"))
        clean = [row for row in bags if row["file"] not in parasites]
        write(DATA / "judged" / f"control{k}_bags.csv", clean, ("slide_id", "file"))


def main() -> None:
    """Make everything that is not there."""
    cells("malaria_nih", "cells.csv", "cells.tar",
          lambda rows: within(rows, "patient", "group", 1 / 3))  # fmt: skip
    cells("sipakmed", "cells.csv", "cells.tar", lambda rows: within(rows, "label", "group", 1 / 2))
    cells("lbc_cdetector", "crops.csv", "crops.tar",
          lambda rows: within(rows, "label", "group", 1 / 2))  # fmt: skip
    fields()
    needles({path.stem for path in (DATA / "judged" / "malaria_nih").glob("*.zarr")})


if __name__ == "__main__":
    main()
