"""What takes part in a case: one way of doing its job."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar

import numpy as np

from .data import Scan, bf_disk

Answer = dict[str, np.ndarray]


@dataclass
class Contestant:
    """One way of doing a job, in a process of its own. Picklable until it is prepared.

    Parameters
    ----------
    name : str
        Row of the table.
    scan : Scan
        The counts that it works on.
    cores : int, default 1
        Cores that its process is pinned to, and threads that its libraries may start.
    masks : int, default 5
        Number of masks or templates.
    bright_field : bool, default False
        Masks have no weight outside the BF disk.
    """

    name: str
    scan: Scan
    cores: int = 1
    masks: int = 5
    bright_field: bool = False
    _held: np.ndarray | None = field(default=None, init=False, repr=False)

    # What has to be installed.
    library: ClassVar[str] = "numpy"
    # Whether the benchmark is sound without it.
    may_fail: ClassVar[bool] = False

    def prepare(self) -> None:
        """Import libraries and start executors; its memory is counted from here."""

    def load(self) -> None:
        """Open the data, or bring them into memory; not timed."""

    def in_memory(self) -> np.ndarray:
        """The counts in memory, for contestants that hold them from one run to the next."""
        self._held = self.scan.in_memory()
        return self._held

    def settle(self) -> None:
        """Bring what is held in memory back, where the system put it aside while others ran; not timed."""
        if self._held is not None:
            self._held.view(np.uint64).sum()

    def run(self) -> Answer:
        """Do the job; this is timed. Answers of the same name must agree between the contestants of a case."""
        raise NotImplementedError

    def tidy(self) -> None:
        """Make ready for the next run; not timed."""

    def close(self) -> None:
        """Stop executors."""

    @cached_property
    def templates(self) -> np.ndarray:
        """Templates (n, ny, nx), float32, of mean 0 and standard deviation 1."""
        templates = np.random.default_rng(1).random((self.masks, *self.scan.scan_shape))
        templates -= templates.mean((1, 2), keepdims=True)
        templates /= templates.std((1, 2), keepdims=True)
        return templates.astype(np.float32)

    @cached_property
    def weights(self) -> np.ndarray:
        """Masks (n, nky, nkx), float32, from 0 to 1; the first are the same for every n."""
        weights = np.random.default_rng(2).random((self.masks, *self.scan.detector_shape), np.float32)
        return weights * bf_disk(self.scan.detector_shape) if self.bright_field else weights


def images_answer(images: np.ndarray) -> Answer:
    """Images (n, ny, nx) by name, so that contestants with fewer of them can be compared as well."""
    return {f"image {n}": image for n, image in enumerate(images)}


def masks_answer(masks: np.ndarray) -> Answer:
    """Masks (n, nky, nkx) by name."""
    return {f"mask {n}": mask for n, mask in enumerate(masks)}
