"""The same jobs by what a user could pick instead: LiberTEM, py4DSTEM, HyperSpy, and NumPy by hand."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from .contestant import Answer, Contestant, images_answer, masks_answer
from .data import DTYPE

Piece = tuple[slice, slice, np.ndarray]


class Peer(Contestant):
    """What is not of this package; where it fails, the table says so."""

    may_fail = True


class DenseNumPy(Peer):
    """The whole job on one float32 copy of the counts."""

    def run(self) -> Answer:
        counts = self.scan.in_memory().reshape(-1, self.weights[0].size).astype(np.float32)
        counts -= counts.mean(0)
        std = counts.std(0)
        counts /= np.where(std > 0, std, np.inf)
        masks = self.templates.reshape(self.masks, -1) @ counts / len(counts)
        images = masks @ counts.T
        return masks_answer(masks.reshape(-1, *self.scan.detector_shape)) | images_answer(
            images.reshape(-1, *self.scan.scan_shape)
        )


class NumPyImages(Peer):
    """Masks applied to counts in memory: a float32 copy and one matrix product."""

    def load(self) -> None:
        self.counts = self.in_memory()

    def run(self) -> Answer:
        counts = self.counts.reshape(-1, self.weights[0].size).astype(np.float32)
        images = self.weights.reshape(self.masks, -1) @ counts.T
        return images_answer(images.reshape(-1, *self.scan.scan_shape))


class InPieces(Peer):
    """Float32 matrix products over pieces that fit in memory: what a careful user of NumPy writes."""

    def pieces(self) -> Iterator[Piece]:
        """Every probe position once: its lines, its columns, and the counts (y, x, ky, kx)."""
        raise NotImplementedError

    def derive(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Pearson masks (n, pixels), mean and standard deviation (pixels)."""
        pixels, probes = self.weights[0].size, self.templates[0].size
        sums, squares, products = np.zeros(pixels), np.zeros(pixels), np.zeros((self.masks, pixels))
        for y, x, counts in self.pieces():
            matrix = counts.reshape(-1, pixels).astype(np.float32)
            sums += matrix.sum(0)
            squares += np.einsum("ij,ij->j", matrix, matrix)
            products += self.templates[:, y, x].reshape(self.masks, -1) @ matrix
        mean = sums / probes
        std = np.sqrt(squares / probes - mean**2)
        return products / np.where(std > 0, std, np.inf) / probes, mean, std

    def apply(self, weights: np.ndarray) -> np.ndarray:
        """Images (n, ny, nx) of weights (n, pixels)."""
        images = np.empty((len(weights), *self.scan.scan_shape))
        for y, x, counts in self.pieces():
            matrix = counts.reshape(-1, weights.shape[1]).astype(np.float32)
            images[:, y, x] = (weights.astype(np.float32) @ matrix.T).reshape(-1, *counts.shape[:2])
        return images

    def labelled_masks(self, masks: np.ndarray) -> Answer:
        return masks_answer(masks.reshape(-1, *self.scan.detector_shape))


class WholeJob(InPieces):
    """Pearson masks, then the images that they give of the standardised counts."""

    def run(self) -> Answer:
        masks, mean, std = self.derive()
        weights = masks / np.where(std > 0, std, np.inf)
        images = self.apply(weights) - (weights @ mean)[:, None, None]
        return self.labelled_masks(masks) | images_answer(images)


class H5pyJob(WholeJob):
    """The whole job from an HDF5 file, eight lines of the scan at a time."""

    library = "h5py"

    def prepare(self) -> None:
        import h5py  # noqa: F401

    def pieces(self) -> Iterator[Piece]:
        import h5py

        with h5py.File(self.scan.path) as file:
            for top in range(0, self.scan.scan_shape[0], 8):
                yield slice(top, top + 8), slice(None), file["counts"][top : top + 8]


class ZarrInPieces(InPieces):
    """A store through zarr itself, shard by shard."""

    library = "zarr"

    def load(self) -> None:
        import zarr

        self.array: Any = zarr.open_array(self.scan.path / "counts", mode="r")

    def pieces(self) -> Iterator[Piece]:
        ny, nx = self.scan.scan_shape
        height, width = self.array.shards[:2]
        for top in range(0, ny, height):
            for left in range(0, nx, width):
                y, x = slice(top, top + height), slice(left, left + width)
                yield y, x, self.array[y, x]


class ZarrDerive(ZarrInPieces):
    """Pearson masks from a store."""

    def run(self) -> Answer:
        return self.labelled_masks(self.derive()[0])


class ZarrJob(ZarrInPieces, WholeJob):
    """The whole job from a store."""


class ZarrApply(ZarrInPieces):
    """Images from a store."""

    def run(self) -> Answer:
        return images_answer(self.apply(self.weights.reshape(self.masks, -1)))


@dataclass
class LiberTEM(Peer):
    """A job of LiberTEM's, on one of its executors."""

    executor: str = "inline"
    library = "libertem"

    def prepare(self) -> None:
        import libertem.api
        import libertem.udf.masks
        import libertem.udf.stddev
        from libertem.executor.inline import InlineJobExecutor

        make = libertem.api.Context.make_with
        if self.executor == "inline":
            # On its own it starts a thread of BLAS for each core of the machine, also where it is pinned to one: on
            # two cores that costs it 28 times the time.
            self.context = libertem.api.Context(executor=InlineJobExecutor(inline_threads=self.cores))
        elif self.executor == "delayed":
            self.context = make("delayed")
        elif self.executor == "threads":
            self.context = make("threads", cpus=self.cores)
        else:
            self.context = make(self.executor, cpus=self.cores, gpus=0)

    def close(self) -> None:
        self.context.close()

    def images(self, dataset: Any, weights: np.ndarray) -> np.ndarray:
        """Images (n, ny, nx) of float32 weights (n, nky, nkx)."""
        from libertem.udf.masks import ApplyMasksUDF

        udf = ApplyMasksUDF(mask_factories=lambda: weights, mask_count=len(weights), mask_dtype=np.float32)
        result = self.context.run_udf(dataset, udf)["intensity"].data
        return np.moveaxis(np.asarray(result), -1, 0).reshape(-1, *self.scan.scan_shape)


class LiberTEMImages(LiberTEM):
    """Masks applied to counts in memory with ApplyMasksUDF."""

    def load(self) -> None:
        self.dataset = self.context.load("memory", data=self.in_memory(), sig_dims=2)

    def run(self) -> Answer:
        return images_answer(self.images(self.dataset, self.weights))


class LiberTEMJob(LiberTEM):
    """The whole job from a raw file: StdDevUDF and correlations in one pass, ApplyMasksUDF in a second."""

    def load(self) -> None:
        self.dataset = self.context.load(
            "raw",
            path=str(self.scan.path),
            dtype=DTYPE,
            nav_shape=self.scan.scan_shape,
            sig_shape=self.scan.detector_shape,
        )

    def run(self) -> Answer:
        from libertem.udf.stddev import StdDevUDF

        from .libertem_udf import CorrelationUDF

        probes = self.templates[0].size
        correlation = CorrelationUDF.of_templates(self.templates)
        spread, products = self.context.run_udf(self.dataset, [StdDevUDF(), correlation])
        mean, std = (np.asarray(spread[name].data) for name in ("mean", "std"))
        std = np.where(std > 0, std, np.inf)
        masks = np.moveaxis(np.asarray(products["products"].data), -1, 0) / std / probes
        weights = (masks / std).astype(np.float32)
        offsets = (weights * mean).sum((1, 2))
        images = self.images(self.dataset, weights) - offsets[:, None, None]
        return masks_answer(masks) | images_answer(images)


class Py4DSTEM(Peer):
    """Virtual images, which py4DSTEM makes one at a time, of counts in memory."""

    library = "py4DSTEM"

    def prepare(self) -> None:
        import py4DSTEM  # noqa: F401

    def load(self) -> None:
        import py4DSTEM

        self.cube = py4DSTEM.DataCube(data=self.in_memory())

    def run(self) -> Answer:
        images = [
            self.cube.get_virtual_image(mode="mask", geometry=mask, name=f"image {n}", verbose=False).data
            for n, mask in enumerate(self.weights)
        ]
        return images_answer(np.asarray(images))


class HyperSpy(Peer):
    """Products and sums of lazy signals, of counts in memory."""

    library = "hyperspy"

    def prepare(self) -> None:
        import hyperspy.api

        hyperspy.api.preferences.General.show_progressbar = False

    def load(self) -> None:
        import hyperspy.api as hs

        self.signal = hs.signals.Signal2D(self.in_memory()).as_lazy()

    def run(self) -> Answer:
        images = []
        for mask in self.weights:
            weighted = self.signal * mask
            image = weighted.sum(axis=weighted.axes_manager.signal_axes)
            image.compute()
            images.append(image.data)
        return images_answer(np.asarray(images))
