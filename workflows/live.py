# %% [markdown]
# # Imaging while the scan arrives
#
# A Merlin file is written pattern by pattern, as during an acquisition, while this reads it. Each pattern is read once,
# when it is complete; from it, the masks of all kinds of column are made better, and, with the masks of the first lines
# fixed, their images are drawn. At the end the masks are those of the whole scan, to the last digits, and the file is
# read a second time for the final images.

# %%
"""Masks and images of a scan while its file is being written, and how soon they are as good as those of the whole.

python workflows/live.py [data] [--out DIR] [--fixed-after 0.25]
"""

import itertools
import threading
from pathlib import Path

import known_scan
import numpy as np
import xarray as xr

import tdm_dask as tdm
from tdm_dask.counts.arrival import follow
from tdm_dask.evaluation.cross_talk import correlations
from tdm_dask.masks.live import LiveImage, RunningMask
from tdm_dask.plot.drawing import draw_mask
from tdm_dask.plot.style import COLOURS, INK, MARKERS, STYLE, new_figure

ARGUMENTS = known_scan.arguments(
    __doc__,
    sigma={"type": float, "default": 0.35, "help": "width of the templates' Gaussians, in angstrom"},
    detector_region={
        "before": ["--within"],
        "action": known_scan.Renamed,
        "type": float,
        "default": 24.0,
        "help": "the masks' largest angle, in mrad",
    },
    fixed_after={"type": float, "default": 0.25, "help": "part of the scan after which the live images' mask is fixed"},
)
scan = known_scan.load(ARGUMENTS.data, ARGUMENTS.out, sites=ARGUMENTS.sites)
known = scan.counts if not ARGUMENTS.quick else tdm.crop(scan.counts, y=slice(0, 24), x=slice(0, 24))
ny, nx = known.shape[:2]

# %% [markdown]
# ## The microscope
#
# A thread appends the scan's patterns to a raw file, a few at a time and never in whole lines. It writes when the
# reader waits for more, so that this is the same every time; a real detector does not ask.


# %%
class Microscope:
    """Writes the patterns of a scan to a file, some whenever the reader waits for them."""

    def __init__(self, counts: xr.DataArray, path: Path) -> None:
        self.path = path
        self.asked, self.written = threading.Semaphore(0), threading.Semaphore(0)
        path.unlink(missing_ok=True)
        self.thread = threading.Thread(target=self._write, args=(counts,), daemon=True)
        self.thread.start()

    def _write(self, counts: xr.DataArray) -> None:
        sizes = itertools.cycle((37, 5, 61, 14))
        for y in range(0, counts.sizes["y"], 8):
            lines = tdm.crop(counts, y=slice(y, min(y + 8, counts.sizes["y"]))).values
            frames = lines.reshape(-1, *lines.shape[2:])
            first = 0
            while first < len(frames):
                some = frames[first : first + next(sizes)]
                first += len(some)
                self.asked.acquire()
                with open(self.path, "ab") as file:
                    file.write(some.tobytes())
                self.written.release()

    def wait(self, seconds: float) -> None:
        """What the reader does when nothing is new: in place of sleeping, it lets the microscope write."""
        self.asked.release()
        if not self.written.acquire(timeout=60):
            raise TimeoutError("The microscope has stopped.")


microscope = Microscope(known, ARGUMENTS.out / "arriving.raw")

# %% [markdown]
# ## What is known beforehand
#
# The shape of the scan, its calibration (from a scan before, with the same settings) and where the columns will be.

# %%
file = follow(
    microscope.path,
    wait=microscope.wait,
    scan_shape=(ny, nx),
    detector_shape=known.shape[2:],
    dtype=known.dtype.newbyteorder("="),
)
arriving = file.counts.assign_coords({dim: known.coords[dim].variable for dim in known.dims})
template = tdm.gaussian_template(known, scan.sites, sigma=ARGUMENTS.sigma).compute()
region = tdm.disk(arriving, ARGUMENTS.detector_region) > 0

# %% [markdown]
# ## While it arrives
#
# Each pattern goes to the running masks and, once there is a fixed mask, to the live images. The masks after every few
# lines are kept, to be compared with the last one.

# %%
running = RunningMask(arriving, template, detector_region=region)
live: LiveImage | None = None
masks: dict[int, xr.DataArray] = {}
enough, between = int(ARGUMENTS.fixed_after * ny * nx), max(1, ny // 16) * nx
for y, x, block in file:
    running.update(y, x, block)
    if live is not None:
        live.update(y, x, block)
    n = int(running.seen.sum())
    if n >= max(masks, default=0) + between or n == ny * nx:
        masks[n] = running.mask()
    if live is None and n >= enough:
        live = LiveImage(arriving, running.mask(), normalisation="standardised")
final_mask = masks[ny * nx]

# %% [markdown]
# ## When it is complete
#
# The file is read once more, for the final images.

# %%
final = tdm.apply_mask(arriving, final_mask, normalisation="standardised").compute()
batch = tdm.derive_mask(known, template, detector_region=region).compute()
difference = float(abs(final_mask - batch).max())
assert live is not None
shown = live.image()
later = shown.notnull().all("template").values


def own_correlation(images: xr.DataArray, where: np.ndarray) -> dict[str, float]:
    """Correlation of each kind's image with its template, over some probe positions."""
    flags = {"valid_patterns": (("y", "x"), where)}
    table = correlations(images.fillna(0.0).assign_coords(flags), template)
    return {str(kind): float(table.sel(image=kind, template=kind)) for kind in template.template.values}


# %% [markdown]
# ## How soon the masks are right

# %%


def alike(mask: xr.DataArray, kind: str) -> float:
    """Correlation of a kind's mask with the last one."""
    pair = [m.sel(template=kind).values.ravel() for m in (mask, final_mask)]
    return float(np.corrcoef(pair)[0, 1])


kinds = [str(kind) for kind in template.template.values]
agreement = {kind: [alike(mask, kind) for mask in masks.values()] for kind in kinds}
few = [*sorted(masks)[:: max(1, (len(masks) - 1) // 3)][:3], ny * nx]
# An image from D_hat is, up to a constant, one from the counts of mask over std: so all of them are one read.
bare = [masks[n].sel(template=kinds[0]).reset_coords(drop=True) for n in few]
scaled = [xr.where(masks[n]["std"] > 0, mask / masks[n]["std"], 0.0) for n, mask in zip(few, bare, strict=True)]
stack = xr.concat([mask.reset_coords(drop=True) for mask in scaled], "template")
pictures = tdm.apply_mask(known, stack).compute().values

numbers = {
    "data": scan.name,
    "probes": ny * nx,
    "sigma_angstrom": ARGUMENTS.sigma,
    "largest_difference_from_the_batch_mask": difference,
    "patterns": list(masks),
    "agreement_with_the_last_mask": agreement,
    "mask_fixed_after": int(live.seen.size - later.sum()),
    "R_live": own_correlation(shown, later),
    "R_final_at_the_same_probes": own_correlation(final, later),
    "R_final": own_correlation(final, np.ones((ny, nx), bool)),
}

# %%
import matplotlib as mpl  # noqa: E402

with mpl.rc_context(STYLE):
    figure = new_figure(7.6, 7.2)
    above, below = figure.subfigures(2, 1, height_ratios=[1.25, 1])
    grid = above.subplots(2, 4)
    for (top, bottom), n, image in zip(grid.T, few, pictures, strict=True):
        draw_mask(top, masks[n].sel(template=kinds[0]), known.attrs.get("semi_angle_mrad"))
        top.set_xlim(-26, 26)
        top.set_ylim(26, -26)
        top.set_title(f"{n} patterns")
        arrived = (np.arange(ny * nx) < n).reshape(ny, nx)
        bottom.imshow(np.where(arrived, image, np.nan), cmap="gray")
        for axes in (top, bottom):
            axes.set_xticks([])
            axes.set_yticks([])
    grid[0, 0].set_ylabel(f"{kinds[0]} mask so far")
    grid[1, 0].set_ylabel("its image so far")
    axes = below.subplots()
    for kind, colour, marker in zip(kinds, itertools.cycle(COLOURS), itertools.cycle(MARKERS)):
        axes.plot(list(masks), agreement[kind], marker=marker, color=colour, markersize=3.5, linewidth=1.0, label=kind)
    axes.axvline(numbers["mask_fixed_after"], color=INK, linestyle=":", linewidth=1.0, label="mask of the live images")
    axes.set_xlabel("patterns that have arrived")
    axes.set_ylabel("correlation with the last mask")
    axes.set_ylim(None, 1.02)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="lower right")
known_scan.write(ARGUMENTS.out, "live", {"masks": figure}, numbers)
microscope.path.unlink()
print(f"The last mask differs from that of the whole scan by at most {difference:.1e}.")
for kind, r in numbers["R_live"].items():
    print(f"{kind:>6}: R of the live image {r:.3f}, of the final one {numbers['R_final_at_the_same_probes'][kind]:.3f}")
