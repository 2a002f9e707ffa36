"""What the classical detector finds on every labelled set: one table a set.

    python tests/bench/detect_sets.py [cric dark crops wbc malaria blood chula simulated[:PRESET]]

cric: recall of marked nuclei (one to one within 3.75 µm), detections a field, fragments (marks
with two or more detections within 7.5 µm), marks in an outline that has no other mark nearer its
middle, and the median area of what was matched, by class.
dark: recall on the same fields as dark field would show them, bright on black: grey and inverted.
crops: crops of a cell, liquid-based (lbc_cdetector: six classes of abnormal cells) and conventional
(sipakmed), up to 40 µm wide. Nobody has outlined their nuclei: the cell's is taken as found if a
detection has its centroid in the middle half of the crop, in pieces if two have; the area is that
of the largest. One stain for the set.
wbc (wbc_jtsc): overlap (IoU) of the mask of the nucleus with the detections that have their
centroid in the cell, all together and the best alone; mean distance of the outline of the best
to that of the mask; detections a cell, and outside of it. One stain for each hundred images.
malaria (malaria_iml): boxed red cells and parasites that got a detection; red cells are no nuclei.
blood (blood_boxes): white cells found, red cells marked, and the share of detections that lie
in a white cell. Each field counts as a slide of its own.
chula (chula_rbc12): detections a field of red cells, at 0.1 µm/px (nominal) and at 0.18 µm/px,
where red cells measure their 7.5 µm.
simulated: slides of every preset and of giant nuclei (`simulated_nuclei.py`), with their outlines:
recall of the nuclei of marked cells and precision over all nuclei (one to one within 3.75 µm, as
`cytofm_cli.api.truth.judge_nuclei` counts), fragments (whole nuclei of marked cells with two or
more detections in the outline), overlap (IoU) with the best detection, and both by width.
"""

from __future__ import annotations

import csv
import itertools
import sys
import tarfile
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import numpy as np
import simulated_nuclei
from PIL import Image
from scipy.ndimage import binary_erosion, distance_transform_edt
from scipy.optimize import linear_sum_assignment
from shapely import Point as ShapelyPoint
from shapely import Polygon as ShapelyPolygon
from shapely import STRtree

from cytofm_cli.nuclei import polygons
from cytofm_cli.nuclei.detectors.classical import ClassicalDetector
from cytofm_cli.stats.matching import match_points

DATA = Path(__file__).resolve().parents[2].parent / "shared" / "data"
CRIC_MPP, MATCH_UM, NEAR_UM = 0.25, 3.75, 7.5
WBC_MPP = 0.18  # white cells of 75 px are about 13.5 µm
MALARIA_MPP = 0.12
WIDTHS_UM = (4, 6, 9, 12, 15, 18, 22, 26, 30, 40)
SIPAKMED = (
    "Superficial-Intermediate", "Parabasal", "Koilocytotic", "Metaplastic", "Dyskeratotic",
)  # fmt: skip
# Folder, name of its table and tar, µm/px, classes. The scanner of lbc_cdetector states none in the
# crops: 40× of a Pannoramic MIDI; nuclei of intermediate cells are then 8 to 9 µm wide.
CROPS = (
    ("lbc_cdetector", "crops", 0.25, ("ascus", "lsil", "asch", "hsil", "scc", "agc")),
    ("sipakmed", "cells", 0.15, SIPAKMED),
)
WIDEST_CROP_UM = 40.0
BLOOD_MPP = {"pbc": 0.106, "raabin": 0.061}  # red cells of 71 and 123 px are 7.5 µm


def rgb(path: Path | IO[bytes] | None) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"))


def rows(path: Path) -> list[dict[str, str]]:
    with path.open() as handle:
        return list(csv.DictReader(handle))


def matches(marked: np.ndarray, found: np.ndarray, reach: float) -> list[tuple[int, int]]:
    """Pair marks with detections within `reach`, one to one, at the least total distance."""
    if not len(marked) or not len(found):
        return []
    gap = np.linalg.norm(marked[:, None] - found[None], axis=2)
    i, j = linear_sum_assignment(np.where(gap <= reach, gap - 1000, 0))
    near = gap[i, j] <= reach
    return list(zip(i[near].tolist(), j[near].tolist(), strict=True))


def cric_marks() -> dict[str, list[tuple[float, float, str]]]:
    """Return x, y and class of the marks of each field."""
    marks: dict[str, list[tuple[float, float, str]]] = defaultdict(list)
    for row in rows(DATA / "cric" / "points.csv"):
        marks[row["image"]].append((float(row["x"]), float(row["y"]), row["label"]))
    return marks


def cric() -> None:
    marks = cric_marks()
    counts = []
    by_class: dict[str, list[tuple[bool, int, bool, float]]] = defaultdict(list)
    for name, points in marks.items():
        table = ClassicalDetector().detect(rgb(DATA / "cric" / "images" / name), CRIC_MPP)
        counts.append(len(table))
        xy = np.array([point[:2] for point in points])
        pairs = dict(matches(xy, table.xy_px0, MATCH_UM / CRIC_MPP))
        gap = np.linalg.norm(xy[:, None] - table.xy_px0[None], axis=2)
        near = (gap <= NEAR_UM / CRIC_MPP).sum(1)
        held = in_own_outline(xy, table)
        for row, point in enumerate(points):
            area = float(table.area_um2[pairs[row]]) if row in pairs else np.nan
            by_class[point[2]].append((row in pairs, int(near[row]), bool(held[row]), area))
    every = [entry for entries in by_class.values() for entry in entries]
    print(f"cric: {len(marks)} fields, {np.mean(counts):.0f} detections a field")
    for label, entries in [*sorted(by_class.items()), ("all", every)]:
        hit, near, held, area = (np.array(column) for column in zip(*entries, strict=True))
        print(
            f"  {label:8s} {len(hit):4d} marks  recall {hit.mean():.3f}  two or more within "
            f"7.5 µm {(near >= 2).sum():4d} ({(near >= 2).mean():.3f})  three or more "
            f"{(near >= 3).mean():.3f}  in an outline of their own {held.mean():.3f}  median area "
            f"{np.nanmedian(area):.0f} µm²"
        )


def in_own_outline(xy: np.ndarray, table) -> np.ndarray:
    """Tell which marks lie in an outline of which no other mark is nearer the centroid, (n,)."""
    outlines = [ShapelyPolygon(table.polygon(i)).buffer(0) for i in range(len(table))]
    mark, outline = STRtree(outlines).query([ShapelyPoint(point) for point in xy], "within")
    gap = np.linalg.norm(xy[mark] - table.xy_px0[outline], axis=1)
    nearest = {int(outline[i]): int(mark[i]) for i in np.argsort(-gap, kind="stable")}
    held = np.zeros(len(xy), bool)
    held[list(nearest.values())] = True
    return held


def dark() -> None:
    marks, n_hit, n = cric_marks(), 0, 0
    counts = []
    for name, points in marks.items():
        grey = 255 - rgb(DATA / "cric" / "images" / name).mean(-1).round().astype(np.uint8)
        image = np.repeat(grey[..., None], 3, axis=-1)
        detector = ClassicalDetector().for_slide([image], CRIC_MPP, "dark-field")[0]
        table = detector.detect(image, CRIC_MPP)
        xy = np.array([point[:2] for point in points])
        n_hit += len(matches(xy, table.xy_px0, MATCH_UM / CRIC_MPP))
        n += len(points)
        counts.append(len(table))
    print(f"dark (cric): recall {n_hit / n:.3f} of {n}, {np.mean(counts):.0f} detections a field")


def crops() -> None:
    for folder, tar, mpp, labels in CROPS:
        of_label: dict[str, list[np.ndarray]] = defaultdict(list)
        with tarfile.open(DATA / folder / f"{tar}.tar") as archive:
            for row in rows(DATA / folder / f"{tar}.csv"):
                if row["label"] in labels:
                    image = rgb(archive.extractfile(row["file"]))
                    if max(image.shape) * mpp <= WIDEST_CROP_UM:
                        of_label[row["label"]].append(image)
        every = [image for images in of_label.values() for image in images]
        detector, facts, _ = ClassicalDetector().for_slide(every, mpp, "bright-field")
        tally = {
            label: [in_the_middle(detector, i, mpp) for i in of_label[label]] for label in labels
        }
        tally["all"] = [entry for entries in tally.values() for entry in entries]
        print(f"{folder}: {len(every)} crops, stain {facts['stain']['name']}")
        for label, entries in tally.items():
            count, area = (np.array(column) for column in zip(*entries, strict=True))
            print(
                f"  {label:16s} {len(count):4d}  nucleus found {(count > 0).mean():.3f}  in pieces "
                f"{(count > 1).mean():.3f}  median area {np.nanmedian(area):.0f} µm²"
            )


def in_the_middle(detector, image: np.ndarray, mpp: float) -> tuple[int, float]:
    """Return the number of detections in the middle half of a crop, and the largest one's area."""
    table = detector.detect(image, mpp)
    share = table.xy_px0 / np.array(image.shape[1::-1])
    middle = ((share > 0.25) & (share < 0.75)).all(1)
    return int(middle.sum()), float(table.area_um2[middle].max()) if middle.any() else np.nan


def wbc() -> None:
    together, alone, away, pieces, outside, sizes = [], [], [], [], [], []
    names = [row["file"] for row in rows(DATA / "wbc_jtsc" / "cells.csv")]
    for start in range(0, len(names), 100):
        images = [rgb(DATA / "wbc_jtsc" / "images" / name) for name in names[start : start + 100]]
        detector = ClassicalDetector().for_slide(images, WBC_MPP, "bright-field")[0]
        for name, image in zip(names[start : start + 100], images, strict=True):
            mask = np.asarray(Image.open(DATA / "wbc_jtsc" / "masks" / name).convert("L"))
            table = detector.detect(image, WBC_MPP)
            x, y = np.clip(table.xy_px0.astype(int).T, 0, np.array(mask.shape)[::-1, None] - 1)
            own = np.flatnonzero(mask[y, x] > 60)
            filled = [polygons.fill(table.polygon(i), *mask.shape) for i in own]
            nucleus = mask > 200
            pieces.append(len(own))
            outside.append(len(table) - len(own))
            if not filled:
                together.append(0.0)
                alone.append(0.0)
                continue
            ious = [iou(part, nucleus) for part in filled]
            together.append(iou(np.logical_or.reduce(filled), nucleus))
            alone.append(max(ious))
            best = filled[int(np.argmax(ious))]
            sizes.append(best.sum() / nucleus.sum())
            away.append(boundary_um(best, nucleus))
    print(
        f"wbc_jtsc: {len(names)} cells, nucleus found {np.mean(np.array(pieces) > 0):.3f}; IoU of "
        f"all detections in the cell {np.mean(together):.3f}, of the best alone "
        f"{np.mean(alone):.3f} (above 0.5: {np.mean(np.array(alone) > 0.5):.3f}); distance of "
        f"outlines {np.mean(away):.2f} µm, area {np.median(sizes):.2f} of the mask's; detections "
        f"in a cell {np.mean(pieces):.2f}, outside {np.mean(outside):.3f}"
    )


def iou(a: np.ndarray, b: np.ndarray) -> float:
    return float((a & b).sum() / max(1, (a | b).sum()))


def boundary_um(a: np.ndarray, b: np.ndarray) -> float:
    """Return the mean distance of the two boundaries, both ways."""
    edges = [mask & ~binary_erosion(mask) for mask in (a, b)]
    gaps = [distance_transform_edt(~edge)[other] for edge, other in (edges, edges[::-1])]
    return float(np.mean([gap.mean() for gap in gaps if len(gap)])) * WBC_MPP


def boxes_of(folder: str) -> dict[str, dict[str, np.ndarray]]:
    """Return (x0, y0, x1, y1) of the boxes of each field, by label."""
    found: dict[str, dict[str, list[list[float]]]] = defaultdict(lambda: defaultdict(list))
    for row in rows(DATA / folder / "boxes.csv"):
        x, y, w, h = (float(row[key]) for key in "xywh")
        found[row["image"]][row["label"]].append([x, y, x + w, y + h])
    return {
        image: {label: np.array(boxes) for label, boxes in of.items()}
        for image, of in found.items()
    }


def holds(boxes: np.ndarray, xy: np.ndarray) -> np.ndarray:
    """Tell which points (n, 2) lie in which boxes, (n_boxes, n)."""
    low, high = boxes[:, None, :2], boxes[:, None, 2:]
    return ((xy >= low) & (xy <= high)).all(2)


def boxed(folder: str, mpp_of: dict[str, float], path_of, nuclear: tuple[str, ...]) -> None:
    """Print the share of boxes of each label with a detection, and of detections that count."""
    tally: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(lambda: [0, 0]))
    inside: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for row in rows(DATA / folder / "images.csv"):
        kind = row.get("source", "all")
        table = ClassicalDetector().detect(rgb(path_of(row["image"])), mpp_of[kind])
        of = boxes_of_cache[folder].get(row["image"], {})
        for label, boxes in of.items():
            tally[kind][label][0] += int(holds(boxes, table.xy_px0).any(1).sum())
            tally[kind][label][1] += len(boxes)
        good = [holds(of[label], table.xy_px0).any(0) for label in nuclear if label in of]
        inside[kind][0] += int(np.logical_or.reduce(good).sum()) if good else 0
        inside[kind][1] += len(table)
    for kind, of in tally.items():
        shares = ", ".join(f"{label} {a / b:.3f} of {b}" for label, (a, b) in sorted(of.items()))
        good, n = inside[kind]
        print(
            f"{folder} {kind}: boxes with a detection: {shares}; {n} detections, "
            f"{good / max(1, n):.3f} of them in {' or '.join(nuclear)}"
        )


boxes_of_cache: dict[str, dict[str, dict[str, np.ndarray]]] = {}


def malaria() -> None:
    boxes_of_cache["malaria_iml"] = boxes_of("malaria_iml")
    parasites = ("gametocyte", "ring", "schizont", "trophozoite", "difficult")
    boxed("malaria_iml", {"all": MALARIA_MPP}, lambda n: DATA / "malaria_iml/fields" / n, parasites)


def blood() -> None:
    boxes_of_cache["blood_boxes"] = boxes_of("blood_boxes")
    boxed("blood_boxes", BLOOD_MPP, lambda n: DATA / "blood_boxes/images" / n, ("wbc",))


def chula() -> None:
    for mpp in (0.1, 0.18):
        paths = sorted((DATA / "chula_rbc12" / "Dataset").iterdir())
        counts = [len(ClassicalDetector().detect(rgb(path), mpp)) for path in paths]
        print(f"chula_rbc12: {len(counts)} fields, {np.mean(counts):.1f} a field at {mpp} µm/px")


def simulated(presets: Sequence[str] = simulated_nuclei.PRESETS) -> None:
    for preset in presets:
        n_marked = n_hit = n_found = n_correct = 0
        nuclei: list[tuple[float, int, float]] = []
        names = set()
        for slide in simulated_nuclei.slides(preset):
            detector, facts, _ = ClassicalDetector().for_slide([slide.image], slide.mpp, None)
            names.add(facts["stain"]["name"])
            table = detector.detect(slide.image, slide.mpp)
            centre = np.array([polygons.centroid(ring) for ring in slide.rings]).reshape(-1, 2)
            inside = ((centre >= 0) & (centre < slide.image.shape[1::-1])).all(1)
            pairs = match_points(centre[inside], table.xy_px0.astype(float), MATCH_UM / slide.mpp)
            n_found += len(table)
            n_correct += len(pairs)
            n_marked += int(slide.marked[inside].sum())
            n_hit += int(slide.marked[inside][pairs[:, 0]].sum())
            nuclei += whole_nuclei(slide, table)
        print(
            f"simulated {preset:12s} ({', '.join(sorted(names))}): recall {n_hit / n_marked:.3f} "
            f"of {n_marked}, precision {n_correct / max(1, n_found):.3f} of {n_found}"
        )
        width, pieces, overlap = np.array(nuclei).T
        for low, high in itertools.pairwise(WIDTHS_UM):
            own = (width >= low) & (width < high)
            if own.sum() >= 5:
                print(
                    f"    {low:2.0f} to {high:2.0f} µm wide: {own.sum():4d}, in pieces "
                    f"{(pieces[own] >= 2).mean():.3f}, none {(pieces[own] == 0).mean():.3f}, "
                    f"IoU {np.mean(overlap[own]):.3f}, above 0.5: {np.mean(overlap[own] > 0.5):.3f}"
                )


def whole_nuclei(slide, table) -> list[tuple[float, int, float]]:
    """Return width in µm, detections inside, and the best IoU, of marked nuclei off the border."""
    size = np.array(slide.image.shape[1::-1])
    found = [ShapelyPolygon(table.polygon(i)).buffer(0) for i in range(len(table))]
    tree = STRtree(found)
    nuclei = []
    for ring, marked in zip(slide.rings, slide.marked, strict=True):
        if not marked or (ring < 0).any() or (ring > size).any():
            continue
        shape = ShapelyPolygon(ring).buffer(0)
        near = tree.query(shape)
        ious = [shape.intersection(found[i]).area / shape.union(found[i]).area for i in near]
        n = sum(shape.contains(ShapelyPoint(table.xy_px0[i])) for i in near)
        nuclei.append((2 * np.sqrt(shape.area / np.pi) * slide.mpp, n, max(ious, default=0.0)))
    return nuclei


SETS = {
    "cric": cric,
    "dark": dark,
    "crops": crops,
    "wbc": wbc,
    "malaria": malaria,
    "blood": blood,
    "chula": chula,
    "simulated": simulated,
}


if __name__ == "__main__":
    for word in sys.argv[1:] or SETS:
        name, _, preset = word.partition(":")
        SETS[name](*[[preset]] if preset else [])
