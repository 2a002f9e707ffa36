"""Tiles, orders and batches of pretraining: pure functions of the seed and the step."""

from __future__ import annotations

import gc
import threading
import time
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cytofm_cli.errors import InputError, StoreError, UsageError
from cytofm_cli.pretrain import data
from cytofm_cli.pretrain.data import Batches, Schedule, open_index
from cytofm_cli.pretrain.indexed import Sources
from cytofm_cli.views.config import ViewsConfig
from cytofm_cli.views.make import make_views
from cytofm_cli.views.ncp import PRESETS, NcpConfig
from cytofm_cli.views.recipes import recipe_of

RECIPE = recipe_of(ViewsConfig(global_px=32, local_px=16, n_local=1))
NCP = PRESETS["safe"]
SIZES = st.lists(st.integers(1, 9), min_size=1, max_size=5)


def schedule(sizes=(5, 3, 4), seed=0, balance="slides"):
    return Schedule([f"s{i}" for i in range(len(sizes))], sizes, seed, balance)


def slide_of(tiles, sizes):
    return np.searchsorted(np.cumsum(sizes), tiles, side="right")


@settings(max_examples=40, deadline=None)
@given(SIZES, st.integers(0, 3), st.integers(0, 3))
def test_order_tiles__each_epoch_is_a_permutation(sizes, seed, epoch):
    order = schedule(sizes, seed, "tiles").order(epoch)
    assert sorted(order.tolist()) == list(range(sum(sizes)))


@settings(max_examples=40, deadline=None)
@given(SIZES, st.integers(0, 3), st.integers(1, 40))
def test_order_slides__every_run_of_slides_holds_each_once_and_tiles_come_in_turn(sizes, seed, n):
    many = len(sizes)
    tiles, _ = schedule(sizes, seed).at(np.arange(n * many))
    slides = slide_of(tiles, sizes).reshape(n, many)
    assert (np.sort(slides, axis=1) == np.arange(many)).all()
    first = np.cumsum([0, *sizes])
    for slide, size in enumerate(sizes):  # full permutations, one after the other
        own = tiles[slides.ravel() == slide]
        for start in range(0, n - size + 1, size):
            assert sorted(own[start : start + size].tolist()) == list(
                range(first[slide], first[slide] + size)
            )


def test_orders__differ_between_epochs_seeds_and_balances():
    drawn = [
        schedule((30, 30), seed, balance).order(epoch).tolist()
        for seed in (0, 1) for epoch in (0, 1) for balance in ("slides", "tiles")
    ]  # fmt: skip
    assert all(a != b for i, a in enumerate(drawn) for b in drawn[:i])


def test_order_slides__slides_do_not_keep_their_places():
    tiles, _ = schedule((50, 50, 50)).at(np.arange(150))
    places = slide_of(tiles, (50, 50, 50)).reshape(50, 3)
    assert len({tuple(row) for row in places.tolist()}) == 6  # all orders of three occur


def test_order_slides__a_slide_keeps_its_order_when_others_come_and_go():
    # s0's tiles follow one another alike, whatever slides lie beside it
    alone = Schedule(["s0"], [7], 3, "slides").at(np.arange(7))[0]
    both, _ = Schedule(["a", "s0"], [4, 7], 3, "slides").at(np.arange(14))
    assert (both[both >= 4] - 4).tolist() == alone.tolist()


@settings(max_examples=40, deadline=None)
@given(SIZES, st.sampled_from(["slides", "tiles"]))
def test_keys__never_repeat(sizes, balance):
    _, keys = schedule(sizes, 0, balance).at(np.arange(60))
    assert len(np.unique(keys)) == 60


def test_keys__of_a_tile_and_visit_do_not_depend_on_other_slides():
    alone = Schedule(["s0"], [5], 3, "tiles")
    both = Schedule(["a", "s0"], [4, 5], 3, "tiles")
    of_one = dict(zip(alone.order(2).tolist(), alone.at(np.arange(10, 15))[1], strict=True))
    of_both = dict(zip(both.order(2).tolist(), both.at(np.arange(18, 27))[1], strict=True))
    assert {tile + 4: key for tile, key in of_one.items()}.items() <= of_both.items()


@pytest.mark.parametrize("balance", ["slides", "tiles"])
@pytest.mark.parametrize("step", [0, 1, 7])
def test_share__of_all_processes_in_turn_is_the_batch_of_one(balance, step):
    whole, keys = schedule(balance=balance).share(step, batch=12)
    for world in (2, 3, 4):
        parts = [
            schedule(balance=balance).share(step, batch=12, rank=rank, world=world)
            for rank in range(world)
        ]
        assert np.array_equal(np.concatenate([tiles for tiles, _ in parts]), whole)
        assert np.array_equal(np.concatenate([k for _, k in parts]), keys)


def test_share__steps_follow_one_another_without_gap_over_epochs():
    plan = schedule(balance="tiles")
    taken = np.concatenate([plan.share(step, batch=5)[0] for step in range(12)])
    assert Counter(taken.tolist()) == dict.fromkeys(range(12), 5)
    assert np.array_equal(taken[12:24], plan.order(1))


def test_share__that_does_not_divide_is_refused():
    with pytest.raises(UsageError, match="does not divide by 3"):
        schedule().share(0, batch=8, world=3)


def test_index__counts_tiles_and_those_without_nuclei(make_store):
    paths = [make_store("b", 3, nuclei=[(10, 10), (20, 20), (140, 5)]), make_store("a", 4)]
    index = open_index(paths, None)
    assert [slide.slide_id for slide in index.slides] == ["a", "b"]
    assert (index.n_tiles, index.n_without_nuclei, index.tile_px) == (7, 1, 64)
    assert index.mpp == 0.5 and index.detector == "test"
    assert index.locate(3) == (0, 3) and index.locate(4) == (1, 0) and index.locate(6) == (1, 2)
    assert index.notes == ("1 of 7 tiles have no nuclei: plain views",)
    batch = index.read([6, 4, 0], NCP)
    # 64 px and a margin of 16 on every side; a tile's first pixel holds its number.
    assert batch.margin_px == 16 and batch.tile_BCHW.shape == (3, 3, 96, 96)
    assert batch.tile_BCHW[:, 0, 16, 16].tolist() == [2, 0, 0]
    assert batch.valid_BM.sum(1).tolist() == [1, 2, 1]
    assert index.read([5], NCP).valid_BM.sum() == 1  # none of its own, 140 lies in its margin
    assert batch.xy_BM2[0, 0].tolist() == [140 - 128 - 0.5 + 16, 4.5 + 16]


def test_index__facts_change_with_the_data_only(make_store):
    paths = [make_store("a", 3), make_store("b", 2)]
    one, two = open_index(paths, None).facts(), open_index(paths[::-1], "test").facts()
    assert one == two and one["n_slides"] == 2
    assert open_index(paths[:1], None).facts()["digest"] != one["digest"]


def test_index__without_nuclei_needs_none(make_store):
    index = open_index([make_store("a", 3, nuclei=None)], None, need_nuclei=False)
    assert (index.n_tiles, index.n_without_nuclei, index.detector) == (3, 0, None)
    assert any("one slide only (a)" in note for note in index.notes)


def test_index__notes_a_slide_that_is_seen_too_often(make_store):
    index = open_index([make_store("a", 1), make_store("b", 39)], None)
    assert index.notes == (
        "slide a has 1 tiles: balanced over slides, each is seen 20 times an epoch",
    )


def refused(paths, *, match, hint, detector=None, error=InputError):
    with pytest.raises(error, match=match) as found:
        open_index(paths, detector)
    assert hint in found.value.hint


def test_index__refuses_what_does_not_go_together(make_store):
    a = make_store("a", 2)
    refused([a, make_store("n", 2, nuclei=None)], match="n.zarr: holds no nuclei",
            hint="cytofm detect", error=StoreError)  # fmt: skip
    refused([a, make_store("p", 2, side=48)], match=r"64 px in .*a.zarr and of 48 px in .*p.zarr",
            hint="--tile-px")  # fmt: skip
    refused([a, make_store("m", 2, mpp=0.25)], match=r"0.25 µm/px in .*m.zarr and at 0.5 in .*a",
            hint="--mpp")  # fmt: skip
    refused([a, make_store("d", 2, detector="other")], match="'test' in .*'other' in",
            hint="--detector test")  # fmt: skip
    refused([a, make_store("a", 2, folder="twice")], match="two stores of slide a", hint="one")
    refused([], match="no tiles", hint="cytofm tile")
    refused([make_store("e", 0)], match="no tiles", hint="cytofm tile")


def batches(index, *, seed=0, balance="slides", **more):
    options = {"recipe": RECIPE, "ncp": NCP, "batch": 6, "stop": 4, "threads": 2} | more
    return Batches(index, index.schedule(seed, balance), **options)


def same(one, two):
    return np.array_equal(one.keys_B, two.keys_B) and all(
        torch.equal(a, b) for a, b in zip(one.views, two.views, strict=True)
    )


@pytest.fixture
def index(make_store):
    opened = open_index([make_store("a", 5), make_store("b", 4), make_store("c", 3)], None)
    yield opened
    opened.close()


def test_batches__hold_the_views_of_their_tiles_and_keys(index):
    plan = index.schedule(0, "slides")
    with batches(index) as made:
        for step, batch in enumerate(made):
            tiles, keys = plan.share(step, batch=6)
            read = index.read(tiles.tolist(), NCP)
            expected = make_views(
                read.tile_BCHW, read.xy_BM2, read.valid_BM, recipe=RECIPE, ncp=NCP, mpp=0.5,
                keys_B=keys, label_BHW=read.label_BHW, margin_px=16,
            )  # fmt: skip
            assert np.array_equal(batch.keys_B, keys) and batch.n_global == 2
            assert [v.shape for v in batch.views] == [(6, 3, 32, 32)] * 2 + [(6, 3, 16, 16)]
            assert all(map(torch.equal, batch.views, expected.views))
    assert step == 3


def test_batches__resume_at_any_step_with_any_number_of_threads(index):
    with batches(index) as made:
        whole = list(made)
    for start, threads in ((1, 1), (3, 4)):
        with batches(index, start=start, threads=threads) as made:
            assert all(map(same, list(made), whole[start:]))


def test_batches__parts_and_processes_make_up_the_batch(index):
    with batches(index, stop=1) as made:
        whole = next(made)
    found = []
    for rank in (0, 1):
        with batches(index, stop=1, parts=3, rank=rank, world=2) as made:
            found += list(made)
    assert [len(part.keys_B) for part in found] == [1] * 6
    assert np.array_equal(np.concatenate([p.keys_B for p in found]), whole.keys_B)
    for number, view in enumerate(whole.views):
        assert torch.equal(torch.cat([part.views[number] for part in found]), view)


def test_batches__mixed_outlines_and_points(make_store):
    paths = [make_store("a", 3, polygons=True), make_store("b", 3)]
    index = open_index(paths, None)
    batch = index.read(list(range(6)), NCP)
    # Outlines are squares of 8 px; a point of 16 µm² is a disk of 64 px at 0.5 µm/px.
    assert (batch.label_BHW[:3] == 1).sum((1, 2)).tolist() == [64] * 3
    assert (batch.label_BHW[3:] == 1).sum((1, 2)).numpy() == pytest.approx([64] * 3, abs=8)
    with batches(index, stop=1, balance="tiles") as made:
        both = next(made)
    points = open_index(paths[1:], None)
    plan = index.schedule(0, "tiles")
    tiles, keys = plan.share(0, batch=6)
    rows = np.flatnonzero(tiles >= 3)
    read = points.read((tiles[rows] - 3).tolist(), NCP)
    alone = make_views(
        read.tile_BCHW, read.xy_BM2, read.valid_BM, recipe=RECIPE, ncp=NCP, mpp=0.5,
        keys_B=keys[rows], label_BHW=read.label_BHW, margin_px=16,
    )  # fmt: skip
    for a, b in zip(both.views, alone.views, strict=True):
        assert torch.equal(a[rows], b)


def test_batches__counts_tiles_without_nuclei(make_store):
    index = open_index([make_store("a", 4, nuclei=[(10, 10)])], None)
    with batches(index, batch=4, stop=2) as made:
        next(made)
        assert made.n_without_nuclei == 3
        next(made)
        assert made.n_without_nuclei == 6


def test_batches__refuse_what_cannot_be(index):
    with pytest.raises(UsageError, match="does not divide into 4 shares") as found:
        batches(index, parts=2, world=2)
    assert found.value.hint == "--batch 4"
    with pytest.raises(UsageError, match="cannot be left out"):
        batches(index, ncp=NcpConfig(without_nuclei="drop"))
    with pytest.raises(StoreError, match=r"a.zarr: --region boundary needs outlines"):
        batches(index, ncp=NcpConfig(region="boundary"))


def cytofm_threads():
    return [t for t in threading.enumerate() if t.name.startswith("cytofm")]


def test_batches__a_damaged_tile_comes_up_in_next_and_no_thread_is_left(index, monkeypatch):
    read, bad = type(index).read, []

    def damaged(self, tiles, ncp):
        if len(bad) == 1:
            raise StoreError("tile 7 is damaged")
        return read(self, tiles, ncp)

    monkeypatch.setattr(type(index), "read", damaged)
    with batches(index, stop=None) as made:
        next(made)
        bad.append(1)
        with pytest.raises(StoreError, match="tile 7 is damaged"):
            for _ in range(5):
                next(made)
    assert not cytofm_threads()


def test_batches__close_stops_at_once_and_a_forgotten_one_goes_away(index):
    made = batches(index, stop=None)
    next(made)
    made.close()
    assert not cytofm_threads()
    forgotten = batches(index, stop=None)
    next(forgotten)
    del forgotten
    gc.collect()
    for _ in range(6000):
        if not cytofm_threads():
            break
        time.sleep(0.05)
    assert not cytofm_threads()


def test_batches__leave_the_caller_its_torch_threads(index):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    seen = []
    try:
        with batches(index, stop=1) as made:
            next(made)
            assert torch.get_num_threads() == 2
            later = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
            later.start()
            later.join()
    finally:
        torch.set_num_threads(before)
    assert seen == [2]


def test_batches__add_up_what_next_had_to_wait(index, monkeypatch):
    clock = iter([10.0, 13.0, 20.0, 20.5])
    with batches(index, stop=2) as made:
        monkeypatch.setattr(data, "time", SimpleNamespace(monotonic=lambda: next(clock)))
        next(made)
        assert made.waited_s == 3.0
        next(made)
        assert made.waited_s == 3.5


def test_sources__close_what_was_unused_longest(make_store):
    slides = open_index([make_store(name, 1) for name in "abc"]).slides
    pool = Sources(slides, None)
    pool._most = 2
    with pool.use(0) as held:
        for number in (1, 2, 1):
            with pool.use(number):
                pass
        assert held.read(0).shape == (64, 64, 3)  # in use: still open
        assert list(pool._open) == [0, 1]
    pool.close()
    assert not pool._open


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_batches__on_a_gpu_are_those_of_the_cpu(index):
    with batches(index) as made, batches(index, device=torch.device("cuda")) as there:
        for one, two in zip(made, there, strict=True):
            assert np.array_equal(one.keys_B, two.keys_B)
            for a, b in zip(one.views, two.views, strict=True):
                assert b.is_cuda and (a - b.cpu()).abs().max() < 0.05
