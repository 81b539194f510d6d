"""This package's jobs, by its public functions alone."""

from __future__ import annotations

import math
import shutil
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .contestant import Answer, Contestant, images_answer, masks_answer
from .data import DTYPE, SCAN_STEP, bf_disk


@dataclass
class Ours(Contestant):
    """A job of this package on counts that `tdm.open` gives."""

    library = "tdm_dask"
    counts: Any = field(default=None, init=False)

    def prepare(self) -> None:
        import tdm_dask as tdm

        tdm.open  # noqa: B018  (names are imported on first use)

    def load(self) -> None:
        import tdm_dask as tdm

        layout: dict[str, Any] = {}
        if self.scan.path.suffix == ".raw":
            layout = {"scan_shape": self.scan.scan_shape, "detector_shape": self.scan.detector_shape, "dtype": DTYPE}
        self.counts = tdm.open(self.scan.path, **layout)

    def derive(self) -> Any:
        """Pearson masks of the templates; within the BF disk alone, where masks have no weight outside."""
        import xarray as xr

        import tdm_dask as tdm

        templates = xr.DataArray(self.templates, dims=("template", "y", "x"))
        region = bf_disk(self.scan.detector_shape) if self.bright_field else None
        return tdm.derive_mask(self.counts, templates, detector_region=region).compute()


class Derive(Ours):
    """Pearson masks of templates."""

    def run(self) -> Answer:
        where = " within the BF disk" if self.bright_field else ""
        return {name + where: mask for name, mask in masks_answer(self.derive().values).items()}


@dataclass
class DeriveFromDisk(Derive):
    """The same from a disk of a given speed: reads wait for as long as it would take.

    Parameters
    ----------
    rate : float
        Bytes per second.
    """

    rate: float = math.inf

    def load(self) -> None:
        import tdm_dask as tdm

        from .slow_disk import SlowDisk

        self.counts = tdm.open(SlowDisk(self.scan.path, self.rate))


class DeriveAndApply(Ours):
    """Pearson masks of templates, then the images that they give of the standardised counts."""

    def run(self) -> Answer:
        import tdm_dask as tdm

        masks = self.derive()
        images = tdm.apply_mask(self.counts, masks, normalisation="standardised")
        return masks_answer(masks.values) | images_answer(images.values)


@dataclass
class OnWorkers(DeriveAndApply):
    """The same on worker processes.

    Parameters
    ----------
    workers, threads : int
        Processes, and threads of each.
    """

    workers: int = 1
    threads: int = 1
    _cluster: ExitStack = field(default_factory=ExitStack, init=False, repr=False)

    def prepare(self) -> None:
        from tdm_dask.cluster.schedulers import scheduler

        super().prepare()
        client = self._cluster.enter_context(scheduler(workers=self.workers, cores=self.threads, announce=False))
        client.wait_for_workers(self.workers)

    def close(self) -> None:
        self._cluster.close()


class Apply(Ours):
    """Images from masks that are given."""

    def run(self) -> Answer:
        import xarray as xr

        import tdm_dask as tdm

        masks = xr.DataArray(self.weights, dims=("template", "ky", "kx"))
        return images_answer(tdm.apply_mask(self.counts, masks).values)


class ApplyInMemory(Apply):
    """Images from masks that are given; the counts are a NumPy array."""

    def load(self) -> None:
        import tdm_dask as tdm

        self.counts = tdm.label_counts(self.in_memory())


class Convert(Ours):
    """A vendor's file into a store, with the default settings and all statistics."""

    def load(self) -> None:
        self.store = self.scan.path.with_suffix(".converted.zarr")
        self.tidy()

    def run(self) -> Answer:
        import zarr

        import tdm_dask as tdm

        tdm.convert(self.scan.path, self.store, scan_shape=self.scan.scan_shape, scan_step=SCAN_STEP)
        names = "total_counts", "pattern_mean"
        return {name: np.asarray(zarr.open_array(self.store / name, mode="r")[...]) for name in names}

    def tidy(self) -> None:
        shutil.rmtree(self.store, ignore_errors=True)


@dataclass
class Tuning(Ours):
    """A mask and an image from a Gaussian template, another one in every run, within the BF disk of the whole counts.

    Parameters
    ----------
    bin : int, optional
        Keep a proxy of the counts, binned so, before the first run.
    """

    bin: int | None = None

    def load(self) -> None:
        import tdm_dask as tdm

        super().load()
        ny, nx = self.scan.scan_shape
        counts = tdm.crop(self.counts, y=slice(0, ny), x=slice(0, nx))
        self.disk = bf_disk(self.scan.detector_shape)
        self.counts = counts if self.bin is None else tdm.proxy(counts, detector_region=self.disk, bin=self.bin)
        y, x = (np.arange(1.0, n * SCAN_STEP, 3.0) for n in self.scan.scan_shape)
        self.sites = np.stack(np.meshgrid(y, x, indexing="ij"), -1).reshape(-1, 2)
        self.sigma = 0.35

    def run(self) -> Answer:
        import tdm_dask as tdm

        template = tdm.gaussian_template(self.counts, self.sites, sigma=self.sigma)
        if self.bin is None:
            image = tdm.column_images(self.counts, template, detector_region=self.disk)["image"]
        else:
            mask = tdm.derive_mask(self.counts, template)
            image = tdm.apply_mask(self.counts, mask, normalisation="standardised")
        return {"image" if self.bin in (None, 1) else f"image, bin {self.bin}": image.values}

    def tidy(self) -> None:
        self.sigma += 0.01
