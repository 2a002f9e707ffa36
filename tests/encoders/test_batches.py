"""Rows of a bag: in the order of the table whatever order they are made in, window by window."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cytofm_cli.encoders import batches
from cytofm_cli.encoders.base import EncoderSpec
from cytofm_cli.encoders.batches import Embedding, default_batch, embed_tiles
from cytofm_cli.encoders.load import load_encoder
from cytofm_cli.errors import OutOfMemoryError


class Numbered:
    """Squares that hold their number, best read from the last to the first."""

    def __init__(self, n: int) -> None:
        self.xy_px0 = np.zeros((n, 2), np.int32)
        self.asked: list[list[int]] = []

    def read(self, index):
        raise AssertionError("they come many at a time")

    def reading_order(self, rows):
        return rows[::-1]

    def read_many(self, rows):
        self.asked.append(rows.tolist())
        return np.broadcast_to(rows[:, None, None, None], (len(rows), 2, 2, 3)).astype(np.uint8)


class Sums:
    """The sum of a square; refuses more than `most` at a time."""

    spec = EncoderSpec(name="sums", dim=1, input_px=None)

    def __init__(self, most: int = 99) -> None:
        self.most = most

    def prepare(self, pixels_BHWC):
        return pixels_BHWC.sum((1, 2, 3), dtype=np.float32)[:, None]

    def encode(self, batch):
        if len(batch) > self.most:
            raise OutOfMemoryError("no")
        return batch


@pytest.mark.parametrize("threads", [1, 3])
def test_embedding__windows_hold_the_rows_in_their_order(monkeypatch, threads):
    monkeypatch.setattr(batches, "WINDOW", 8)
    tiles, told = Numbered(21), []
    embedding = Embedding(
        tiles,
        Sums(),
        batch_size=3,
        threads=threads,
        report=lambda done, total: told.append((done, total)),
    )
    windows = list(embedding)
    assert [len(window) for window in windows] == [8, 8, 5]
    np.testing.assert_array_equal(np.concatenate(windows)[:, 0], 12 * np.arange(21))
    assert sorted(tiles.asked)[-1] == [20, 19, 18]
    assert sorted(tiles.asked)[0] == [1, 0]  # what is left of the first window
    assert [done for done, _ in told] == [3, 6, 8, 11, 14, 16, 19, 21]


def test_embedding__halves_its_batch_and_loses_no_row():
    embedding = Embedding(Numbered(21), Sums(most=3), batch_size=8, threads=2, report=print)
    np.testing.assert_array_equal(np.concatenate(list(embedding))[:, 0], 12 * np.arange(21))
    assert embedding.batch_size == 2
    with pytest.raises(OutOfMemoryError):
        list(Embedding(Numbered(2), Sums(most=0), batch_size=8, threads=1, report=print))


def test_embed_tiles__of_nothing_is_an_empty_table():
    values, _ = embed_tiles(Numbered(0), Sums(), batch_size=4, threads=1, report=print)
    assert values.shape == (0, 1) and values.dtype == np.float32


def test_default_batch__of_an_encoder_that_counts_pixels():
    encoder = Sums()
    encoder.batch_px = 2**20
    assert default_batch("cpu", encoder, 128) == 64
    assert default_batch("cpu", encoder, 4096) == 1
    assert default_batch("cpu", Sums(), 128) == 16
    assert default_batch("cpu", Sums(), 64) == 64
    assert default_batch("cpu", Sums()) == 16


@pytest.mark.parametrize("name", ["sr-vit-tiny", "handcrafted"])
def test_embed_tiles__gives_the_same_bytes_in_any_number_of_threads(name):
    encoder = load_encoder(name, random_weights=name != "handcrafted", device="cpu")
    images = np.random.default_rng(0).integers(0, 256, (11, 64, 64, 3), np.uint8)
    own = torch.get_num_threads()

    class Images:
        xy_px0 = np.zeros((11, 2), np.int32)

        def read(self, index):
            return images[index]

    one, two, three = (
        embed_tiles(Images(), encoder, batch_size=4, threads=n, report=lambda *_: None)[0]
        for n in (1, 2, 3)
    )
    assert one.tobytes() == two.tobytes() == three.tobytes()
    assert len(np.unique(one[:, 0])) == 11
    assert torch.get_num_threads() == own
