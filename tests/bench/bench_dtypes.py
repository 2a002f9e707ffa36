"""Compare number formats of a network on a CPU: float32, bfloat16, int8; speed and vectors.

    OMP_NUM_THREADS=1 python tests/bench/bench_dtypes.py STORE.zarr [--encoder cytofm-tiny]

Cells of one store, one thread, formats taking turns; int8 is torch's dynamic quantisation of the
linear layers. Differences are of the vectors from those of float32: root mean square over their
standard deviation, and the smallest cosine after the mean vector is taken away.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
import warnings
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from cytofm_cli.encoders.load import load_encoder
from cytofm_cli.nuclei.crops import open_cells
from cytofm_cli.store import io

BATCH = 64


def main() -> None:
    """Print one line a format."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("store", type=Path)
    parser.add_argument("--encoder", default="cytofm-tiny")
    parser.add_argument("--cells", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    encoder, store = load_encoder(arguments.encoder, device="cpu"), io.open_store(arguments.store)
    with open_cells(store, detector=None, cell_um=encoder.spec.cell_um or 20.0) as crops:
        rows = np.arange(min(arguments.cells, len(crops.xy_px0)))
        batches = [
            encoder.prepare(crops.read_many(rows[at : at + BATCH]))
            for at in range(0, len(rows), BATCH)
        ]
    plain = encoder.model
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it will move to another package
        whole = torch.ao.quantization.quantize_dynamic(
            copy.deepcopy(plain), {torch.nn.Linear}, dtype=torch.qint8
        )
    formats = {"float32": (plain, False), "bfloat16": (plain, True), "int8": (whole, False)}

    def vectors(name: str) -> NDArray[np.float32]:
        encoder.model, half = formats[name]
        with torch.autocast("cpu", dtype=torch.bfloat16) if half else nullcontext():
            return np.concatenate([encoder.encode(batch) for batch in batches])

    made = {name: vectors(name) for name in formats}
    seconds: dict[str, list[float]] = {name: [] for name in formats}
    for _ in range(arguments.rounds):
        for name in formats:
            start = time.process_time()
            vectors(name)
            seconds[name].append(time.process_time() - start)
    exact = made["float32"]
    for name, values in made.items():
        off = np.sqrt(((values - exact) ** 2).mean()) / exact.std()
        a, b = values - exact.mean(0), exact - exact.mean(0)
        cosine = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
        pairs = zip(seconds["float32"], seconds[name], strict=True)
        print(
            f"{name}: {len(rows) / statistics.median(seconds[name]):.0f} a CPU s, "
            f"{statistics.median(one / other for one, other in pairs):.2f} x; "
            f"rms {off:.4f} of the spread, cosine >= {cosine.min():.4f}"
        )


if __name__ == "__main__":
    main()
