"""Compare embedding with the encoder's forward pass alone, in CPU seconds of one process.

    OMP_NUM_THREADS=1 python tests/bench/bench_embed.py STORES [--encoder timm/vit_tiny_patch16_224]

STORES holds tiled slides; the encoder has random weights. Reading, decoding and resizing run in a
thread beside the forward pass, so on a machine with two free processors they cost no wall time.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import numpy as np
import torch

from cytofm_cli.api.inputs import find_stores
from cytofm_cli.encoders.batches import embed_tiles
from cytofm_cli.encoders.load import load_encoder
from cytofm_cli.store import io
from cytofm_cli.tiles.source import open_tiles

BATCH = 16


def main() -> None:
    """Print CPU and wall seconds of both, and their ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stores", type=Path)
    parser.add_argument("--encoder", default="timm/vit_tiny_patch16_224")
    parser.add_argument("--slides", type=int, default=8)
    parser.add_argument("--runs", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    encoder = load_encoder(arguments.encoder, random_weights=True, device="cpu")
    paths = find_stores([str(arguments.stores)])[: arguments.slides]
    alone: list[tuple[float, float]] = []
    embed: list[tuple[float, float]] = []
    for path in [path for path in paths for _ in range(arguments.runs)]:
        with open_tiles(io.open_store(path)) as tiles:
            before = time.monotonic(), time.process_time()
            embed_tiles(tiles, encoder, batch_size=BATCH, threads=1, report=lambda *_: None)
            embed.append((time.monotonic() - before[0], time.process_time() - before[1]))
            pixels = [tiles.read(index) for index in range(len(tiles.xy_px0))]
        prepared = [
            encoder.prepare(np.stack(pixels[at : at + BATCH]))
            for at in range(0, len(pixels), BATCH)
        ]
        before = time.monotonic(), time.process_time()
        for batch in prepared:
            encoder.encode(batch)
        alone.append((time.monotonic() - before[0], time.process_time() - before[1]))
    for place, name in enumerate(("wall", "CPU")):
        ratios = [a[place] / e[place] for a, e in zip(alone, embed, strict=True)]
        print(
            f"{name}: forward alone {statistics.median(a[place] for a in alone):.2f} s, "
            f"embed {statistics.median(e[place] for e in embed):.2f} s a slide; "
            f"alone / embed {statistics.median(ratios):.2f}"
        )


if __name__ == "__main__":
    main()
