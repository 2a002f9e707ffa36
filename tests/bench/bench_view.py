"""How quickly `cytofm view` answers, on loopback, from an SVS-like slide with many nuclei.

    python tests/bench/bench_view.py WORK [--size-px 16384] [--nuclei 200000] [--squares 2000]

Makes the slide, its store and its nuclei in WORK once. Starts the real command and asks it as a
browser does, over connections that stay open: the first square after the start, squares of the
slide and of the nuclei one after the other, twenty at once, and the memory of the server on the
way. CPU seconds are the server's. Nuclei are polygons of twenty points at random places.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np

import cytofm_cli as cytofm
from cytofm_cli.nuclei import geojson
from cytofm_cli.store.io import open_store
from cytofm_cli.store.tables import NucleusTable, make_table

TICK_S = 1 / os.sysconf("SC_CLK_TCK")
FEW = 200
POINTS = 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("--size-px", type=int, default=16384)
    parser.add_argument("--nuclei", type=int, default=200_000)
    parser.add_argument("--squares", type=int, default=2000)
    asked = parser.parse_args()
    for count in (FEW, asked.nuclei):
        store = prepared(asked.work, asked.size_px, count)
        print(f"\n{count} nuclei, {asked.size_px} px")
        with Server(store) as server:
            measure(server, asked.squares if count == asked.nuclei else 0)


def prepared(work: Path, size_px: int, n_nuclei: int) -> Path:
    """Return a store of a slide with so many nuclei."""
    folder = work / f"{size_px}-{n_nuclei}"
    slides = work / f"{size_px}"
    if not (slides / "labels.csv").exists():
        cytofm.simulate_slides(
            slides, patients=1, slides_per_patient=1, size_px=size_px, format="svs-like"
        )
    store = folder / "stores" / "p1_s1.zarr"
    if not store.exists():
        cytofm.tile(slides / "slides", folder / "stores", pixels="none")
        path = folder / "p1_s1.geojson"
        with path.open("wb") as handle:
            table = random_nuclei(size_px, n_nuclei, open_store(store).slide.mpp)
            geojson.write(handle, [geojson.Block(table, {})])
        cytofm.detect(store, detector="import", nuclei=path)
    return store


def random_nuclei(size_px: int, count: int, mpp: float) -> NucleusTable:
    rng = np.random.default_rng(0)
    xy = rng.uniform(60, size_px - 60, (count, 2))
    radius = rng.uniform(3, 6, count) / mpp
    angle = np.linspace(0, 2 * np.pi, POINTS, endpoint=False)
    ring = np.stack([np.cos(angle), np.sin(angle)], 1)
    polygons = list(xy[:, None] + radius[:, None, None] * ring)
    return make_table(xy, np.pi * (radius * mpp) ** 2, polygons=polygons)


class Server:
    """The running command."""

    def __init__(self, store: Path) -> None:
        command = [sys.executable, "-m", "cytofm_cli", "view", str(store), "--json", "-q"]
        started = time.perf_counter()
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        url = json.loads(self.process.stdout.readline())["url"]
        wall_s = time.perf_counter() - started
        self.host, self.base = urlsplit(url).netloc, urlsplit(url).path
        print(f"start of the command to its address: {wall_s:.2f} s ({self.cpu_s():.2f} s of CPU)")

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.wait()

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(self.host, timeout=60)

    def get(self, connection: http.client.HTTPConnection, path: str) -> tuple[float, bytes]:
        """Ask for something; return the seconds that it took, and what it is."""
        began = time.perf_counter()
        connection.request("GET", self.base + path)
        answer = connection.getresponse()
        data = answer.read()
        if answer.status != 200:
            sys.exit(f"{path}: {answer.status} {data[:200]!r}")
        return time.perf_counter() - began, data

    def cpu_s(self) -> float:
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) * TICK_S

    def memory_mb(self) -> float:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        line = next(line for line in status.splitlines() if line.startswith("RssAnon"))
        return int(line.split()[1]) / 1000


def measure(server: Server, n_squares: int) -> None:
    connection = server.connect()
    first, _ = server.get(connection, "slides/0/square/0/0/0.jpg")
    print(f"first square, asked for at once: {first:.3f} s ({server.cpu_s():.2f} s of CPU so far)")
    facts_s, data = server.get(connection, "slides/0")
    deepest = json.loads(data)["deepest"]
    nuclei_s, _ = server.get(connection, f"slides/0/layer/nuclei/{deepest}/1/1.png")
    print(f"facts {facts_s:.3f} s, first square of nuclei {nuclei_s:.3f} s")
    for name, form in (("square", "jpg"), ("layer/nuclei", "png")):
        for zoom in (deepest, deepest - 1, deepest - 2):
            paths = random_paths(name, form, zoom, 150)
            before = server.cpu_s()
            told(f"{name}, zoom {zoom - deepest}", [server.get(connection, p)[0] for p in paths])
            print(f"    {1000 * (server.cpu_s() - before) / len(paths):.1f} ms of CPU each")
    at_once(server, random_paths("square", "jpg", deepest, 400, seed=5))
    if n_squares:
        memory(server, connection, deepest, n_squares)


def random_paths(name: str, form: str, zoom: int, count: int, seed: int = 0) -> list[str]:
    """Return addresses of squares in the order of a pan: none twice while there are others."""
    side = 1 << zoom
    numbers = np.random.default_rng(seed + zoom).permutation(side * side)
    numbers = numbers[:count]
    return [f"slides/0/{name}/{zoom}/{n % side}/{n // side}.{form}" for n in numbers.tolist()]


def told(what: str, seconds: Sequence[float]) -> None:
    ms = sorted(1000 * s for s in seconds)
    p95 = ms[min(len(ms) - 1, round(0.95 * len(ms)))]
    print(f"{what}: median {statistics.median(ms):.1f} ms, p95 {p95:.1f} ms, {len(ms)} squares")


def at_once(server: Server, paths: Sequence[str], n_clients: int = 20) -> None:
    def client(number: int) -> list[float]:
        connection = server.connect()
        return [server.get(connection, path)[0] for path in paths[number::n_clients]]

    began = time.perf_counter()
    with ThreadPoolExecutor(n_clients) as pool:
        seconds = [s for some in pool.map(client, range(n_clients)) for s in some]
    rate = len(seconds) / (time.perf_counter() - began)
    told(f"{n_clients} clients at once ({rate:.0f} squares a second)", seconds)


def memory(
    server: Server, connection: http.client.HTTPConnection, deepest: int, n_squares: int
) -> None:
    paths = [
        path
        for zoom in (deepest, deepest - 1)
        for pair in zip(
            random_paths("square", "jpg", zoom, 1 << 20, seed=9),
            random_paths("layer/nuclei", "png", zoom, 1 << 20, seed=9),
            strict=True,
        )
        for path in pair
    ]
    for number in range(n_squares):
        if number % (n_squares // 4) == 0:
            print(f"memory after {number} more squares: {server.memory_mb():.0f} MB")
        server.get(connection, paths[number % len(paths)])
    print(f"memory after {n_squares} more squares: {server.memory_mb():.0f} MB")


if __name__ == "__main__":
    main()
