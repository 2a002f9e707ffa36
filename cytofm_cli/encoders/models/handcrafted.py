"""Colour, texture and nuclear statistics, without weights: the floor to beat."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cytofm_cli.encoders.base import EncoderRequest, EncoderSpec
from cytofm_cli.encoders.entries import Entry
from cytofm_cli.errors import UsageError
from cytofm_cli.registry import EncoderPlugin, samples


class HandcraftedEncoder:
    """Measure each image; all the work is done in `prepare`, so that it runs on every core.

    Attributes:
        batch_px: pixels at a time; many small images share the cost of a step.
        feature_names: of the columns.
    """

    batch_px = 2**20

    def __init__(self) -> None:
        from cytofm_cli.encoders.handcrafted.describe import describe
        from cytofm_cli.work.memory import keep_freed

        keep_freed()
        self._describe = describe
        self.feature_names = tuple(describe(np.full((1, 8, 8, 3), 255, np.uint8)))
        self.spec = EncoderSpec(
            name="handcrafted", dim=len(self.feature_names), input_px=None, licence="Apache-2.0"
        )

    def prepare(self, pixels_BHWC: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the statistics of each image, float32 (B, dim)."""
        if len(pixels_BHWC) == 0:
            return np.zeros((0, self.spec.dim), np.float32)
        return np.stack(list(self._describe(pixels_BHWC).values()), axis=1).astype(np.float32)

    def encode(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the statistics as they are."""
        return batch


def make(request: EncoderRequest) -> HandcraftedEncoder:
    """Open the encoder; it takes no weights."""
    if request.weights is not None or request.random_weights or request.pooling is not None:
        raise UsageError("encoder 'handcrafted' has neither weights nor tokens to pool.")
    if request.stated or request.weights_key is not None:
        raise UsageError("encoder 'handcrafted' takes images of any size, as they are.")
    return HandcraftedEncoder()


PLUGIN = EncoderPlugin(
    make=make,
    summary="colour, texture and nuclear statistics; no weights",
    needs_weights=False,
    entries=(
        Entry(
            name="handcrafted",
            model="",
            dim=263,
            norm=((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
            input_px=None,
            mpp=None,
            pooling="none",
            licence="Apache-2.0",
            needs_weights=False,
        ),
    ),
    sample=samples(),
)
