"""Open slides, stores and encoders; list what can be chosen."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cytofm_cli import registry
from cytofm_cli.api.given import PathLike, path_of
from cytofm_cli.encoders.base import Encoder, EncoderSpec
from cytofm_cli.encoders.batches import default_batch, embed_tiles
from cytofm_cli.encoders.catalogue import Row, describe
from cytofm_cli.encoders.load import load_encoder as load
from cytofm_cli.errors import InputError
from cytofm_cli.registry import Available
from cytofm_cli.slides import open as slides
from cytofm_cli.store import io
from cytofm_cli.work.cpus import cpu_count

if TYPE_CHECKING:
    from cytofm_cli.slides.base import SlideReader
    from cytofm_cli.store.io import Store


def open_slide(path: PathLike, *, reader: str = "auto") -> SlideReader:
    """Open a slide; see `cytofm_cli.slides.open.open_slide`."""
    return slides.open_slide(os.fspath(path), reader=reader)


def open_store(path: PathLike) -> Store:
    """Open a finished store; see `cytofm_cli.store.io.open_store`."""
    return io.open_store(Path(path))


def load_encoder(
    name_or_file: PathLike,
    *,
    weights: PathLike | None = None,
    device: str = "auto",
    **settings: Any,
) -> ImageEncoder:
    """Open an encoder: `load_encoder("cytofm-tiny").embed(images)`.

    Args:
        name_or_file: a name of `list_encoders()`, `timm/<name>`, or a weight file that names its
            own architecture.
        weights: local file with the weights, for encoders without their own.
        device: `auto` takes the GPU if there is one.
        **settings: the others of `cytofm_cli.encoders.load.load_encoder`, e.g. `random_weights`.

    Raises:
        UsageError: no such encoder, or an impossible combination.
        WeightsError: the file is missing, unsafe, or does not fit.
    """
    name = os.fspath(name_or_file)
    return ImageEncoder(load(name, weights=path_of(weights), device=device, **settings), device)


class ImageEncoder:
    """An encoder for images that are in memory.

    Args:
        encoder: prepares and encodes batches.
        device: what it was asked to compute on.
    """

    def __init__(self, encoder: Encoder, device: str = "auto") -> None:
        self.encoder = encoder
        self._device = device

    def __repr__(self) -> str:
        size = f"{self.spec.input_px} px" if self.spec.input_px else "any size"
        return f"<ImageEncoder {self.spec.name}: {size} → {self.spec.dim} numbers>"

    @property
    def spec(self) -> EncoderSpec:
        """What the encoder expects and gives."""
        return self.encoder.spec

    def embed(
        self,
        images_NHWC: NDArray[np.uint8],
        *,
        batch_size: int | None = None,
        threads: int | None = None,
    ) -> NDArray[np.float32]:
        """Turn images into vectors.

        Args:
            images_NHWC: RGB, uint8 (n, y, x, 3), at the resolution of `spec.mpp` if it has one.
            batch_size: images at a time; None: as fits.
            threads: threads that prepare images; None: all processors.

        Returns:
            float32 (n, d).

        Raises:
            InputError: an array of another dtype or shape.
            OutOfMemoryError: not even one image fits.
        """
        images = np.asarray(images_NHWC)
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3:
            raise InputError(
                f"images are {images.dtype} {images.shape}.",
                hint="give RGB images as uint8 (n, y, x, 3); one image as image[None].",
            )
        values, _ = embed_tiles(
            _Images(images),
            self.encoder,
            batch_size=batch_size
            or default_batch(self._device, self.encoder, max(images.shape[1:3], default=0)),
            threads=threads or cpu_count(),
            report=lambda done, total: None,
        )
        return values


class _Images:
    """Images in memory in place of the tiles of a store."""

    def __init__(self, images_NHWC: NDArray[np.uint8]) -> None:
        self.xy_px0 = np.zeros((len(images_NHWC), 2), np.int32)
        self._images = images_NHWC

    def read(self, index: int) -> NDArray[np.uint8]:
        image: NDArray[np.uint8] = self._images[index]
        return image


def list_encoders() -> list[Row]:
    """List the encoders that can be loaded: name, dim, input_px, mpp, licence, …"""
    return describe()


def list_detectors() -> list[Available]:
    """List the nuclei detectors: name, summary, and what is missing to use one."""
    return registry.detectors.available()


def list_methods() -> list[Available]:
    """List the MIL heads: name, summary, and what is missing to use one."""
    return registry.mil_methods.available()
