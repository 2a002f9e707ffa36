"""Small whole files of every kind, from which mutants are made; see `CASES` of `mutants.py`."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any, Final

PRETRAIN: Final = (
    "--encoder sr-vit-nano --method dino --global-px 32 --local-px 16 --n-local 2 --batch 4"
    " --steps 3 --save-every 1 --log-every 1 --device cpu --threads 1"
    " --set prototypes=16 --set hidden=8 --set bottleneck=8"
)


def _do(ground: Path, words: str) -> None:
    pid = os.fork()
    if pid == 0:
        from cytofm_cli.__main__ import main

        os.chdir(ground)
        try:
            main(words.split())
        except SystemExit as done:
            os._exit(int(done.code or 0))
    if os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]):
        raise SystemExit(f"cannot make the ground: {words}")


def make_ground(ground: Path, shared: Path | None, *, short: bool) -> None:
    """Make small whole files of every kind, see `CASES`; short: no RUNs, no bags, no weights."""
    ground.mkdir(parents=True)
    for folder in ("bags", "nuclei", "weights", "crops", "real"):
        (ground / folder).mkdir()
    _write_slides(ground / "seeds")
    _write_regions(ground)
    _do(ground, "simulate -o cohort --patients 8 --slides-per-patient 1 --size-px 400"
        " --abnormal-share 0.4 --format jpeg -q")  # fmt: skip
    _do(ground, "tile cohort/slides -o stores --tile-px 200 --foreground none --workers 1 -q")
    _write_tables(ground)
    if short:
        return
    _do(ground, "detect stores --workers 1 -q")
    for unit in ("tile", "cell"):
        _do(ground, f"embed stores --encoder handcrafted --unit {unit} -q")
    _do(ground, "mil train --bags stores --labels cohort/labels.csv -o run --folds 2 --seeds 1"
        " --epochs 2 --bootstrap 100 --workers 1 --unit cell -q")  # fmt: skip
    _do(ground, "export stores -o exported --to h5,pt,geojson,csv -q")
    _do(ground, "cells train stores --labels points.csv --groups labels.csv --encoder handcrafted"
        " --task abnormal -o cells -q")  # fmt: skip
    _do(ground, f"pretrain stores -o pretrained {PRETRAIN.replace('--steps 3', '--steps 2')} -q")
    _gather(ground)
    if shared is not None:
        _copy_real(shared / "data", ground / "real")


def _write_tables(ground: Path) -> None:
    from cytofm_cli.simulate.nuclei import points_table, read_nuclei

    cohort = ground / "cohort"
    shutil.copy(cohort / "labels.csv", ground)
    (ground / "points.csv").write_text(points_table(read_nuclei(cohort)))
    slides = sorted((cohort / "slides").iterdir())
    rows = "".join(f"{path.stem},{path},0.25\n" for path in slides)
    (ground / "manifest.csv").write_text("slide_id,path,mpp\n" + rows)


def _gather(ground: Path) -> None:
    import torch
    from safetensors.torch import load_file

    for path in sorted((ground / "exported").rglob("p1*")):
        if path.suffix in (".h5", ".pt") and "patches" not in path.name:
            shutil.copy(path, ground / "bags")
        elif path.suffix == ".geojson":
            shutil.copy(path, ground / "nuclei" / "p2_s1.geojson")
        elif path.suffix == ".csv":
            shutil.copy(path, ground / "nuclei" / "p2_s1.csv")
    for path in sorted((ground / "pretrained").rglob("*")):
        if path.suffix in (".safetensors", ".pt", ".pth") and path.stat().st_size < 4 << 20:
            shutil.copy(path, ground / "weights")
    described = ground / "pretrained" / "encoder.safetensors"
    shutil.copy(described, ground / "encoder.safetensors")
    torch.save(load_file(described), ground / "weights" / "state.pt")


def _write_slides(folder: Path) -> None:
    import numpy as np
    import tifffile
    from PIL import Image

    folder.mkdir()
    rng = np.random.default_rng(0)
    pixels = rng.integers(60, 200, (32, 32, 3), np.uint8).repeat(16, 0).repeat(16, 1)
    image = Image.fromarray(pixels[:300, :400])
    image.save(folder / "field.jpg", quality=80, dpi=(101600, 101600))
    image.save(folder / "field.png")
    for number in range(4):
        image.crop((0, 0, 64, 64)).save(folder.parent / "crops" / f"c{number}.png")
    names = "".join(f"c{number}.png,s{number % 2},x\n" for number in range(4))
    (folder.parent / "crops.csv").write_text("file,slide_id,label\n" + names)
    common: dict[str, Any] = {"photometric": "rgb", "metadata": None}
    scale = {"resolution": (40_000, 40_000), "resolutionunit": "CENTIMETER"}
    tiled = {"tile": (128, 128), "compression": "jpeg"}
    for name, big in (("tiled.tif", False), ("big.tif", True)):
        with tifffile.TiffWriter(folder / name, bigtiff=big) as tif:
            for level in (1, 2, 4):
                tif.write(pixels[::level, ::level], **common, **scale, **tiled)
    tifffile.imwrite(folder / "strips.tif", pixels, **common, **scale, compression="deflate")
    tifffile.imwrite(
        folder / "aperio.svs", pixels, **common, **tiled,
        description="Aperio Image Library v10\n512x512 [0,0 512x512] (128x128) JPEG/RGB Q=80"
        "|AppMag = 40|MPP = 0.25",
    )  # fmt: skip
    facts = {"axes": "ZYXS", "PhysicalSizeX": 0.25, "PhysicalSizeY": 0.25, "PhysicalSizeZ": 1.0}
    tifffile.imwrite(
        folder / "planes.ome.tif", np.stack([pixels, pixels[::-1]]), ome=True, photometric="rgb",
        tile=(128, 128), compression="deflate", metadata=facts,
    )  # fmt: skip


def _write_regions(ground: Path) -> None:
    folder = ground / "regions"
    folder.mkdir()
    ring = [[20, 20], [300, 30], [280, 310], [30, 290], [20, 20]]
    feature = {
        "type": "Feature",
        "geometry": {"type": "Polygon", "coordinates": [ring]},
        "properties": {"classification": {"name": "Tumor"}, "objectType": "annotation"},
    }
    collection = {"type": "FeatureCollection", "features": [feature, feature]}
    (folder / "p2_s1.geojson").write_text(json.dumps(collection))
    corners = "".join(f'<Coordinate Order="{i}" X="{x}" Y="{y}"/>' for i, (x, y) in enumerate(ring))
    (folder / "asap.xml").write_text(
        '<?xml version="1.0"?><ASAP_Annotations><Annotations><Annotation Name="A" Type="Polygon"'
        f' PartOfGroup="Tumor"><Coordinates>{corners}</Coordinates></Annotation></Annotations>'
        '<AnnotationGroups><Group Name="Tumor"/></AnnotationGroups></ASAP_Annotations>'
    )
    corners = "".join(f'<Vertex X="{x}" Y="{y}" Z="0"/>' for x, y in ring)
    (folder / "aperio.xml").write_text(
        '<Annotations MicronsPerPixel="0.25"><Annotation Id="1" Name="Tumor"><Regions>'
        f'<Region Id="1" Type="0"><Vertices>{corners}</Vertices></Region></Regions></Annotation>'
        "</Annotations>"
    )


def _copy_real(data: Path, folder: Path) -> None:
    for name in ("wsi", "wsi_extra", "broken"):
        for path in sorted((data / name).rglob("*")):
            if path.is_file() and path.suffix != ".md" and path.stat().st_size < 4 << 20:
                shutil.copy(path, folder / f"{name}_{path.name.encode('ascii', 'ignore').decode()}")
