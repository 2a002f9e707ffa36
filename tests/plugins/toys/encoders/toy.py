"""The mean colour of an image: no weights."""

import numpy as np

from cytofm_cli.encoders.base import EncoderSpec
from cytofm_cli.registry import EncoderPlugin, samples

KNOWN = {"dim": 3, "input_px": None, "cell_um": 20.0, "licence": "Apache-2.0"}


class ToyEncoder:
    spec = EncoderSpec(name="toy", **KNOWN)

    def prepare(self, pixels_BHWC):
        return pixels_BHWC.mean((1, 2), dtype=np.float32) / 255

    def encode(self, batch_BD):
        return batch_BD


PLUGIN = EncoderPlugin(
    make=lambda request: ToyEncoder(),
    summary="mean colour",
    needs_weights=False,
    expects=KNOWN,
    sample=samples(),
)
