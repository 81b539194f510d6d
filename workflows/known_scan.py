"""Scans of which the truth is known, for the workflows beside this file: where their counts are, and their columns.

A workflow takes one of three kinds of data:

- nothing: the sample that comes with the package, a corner of a simulated scan of LiFePO4;
- an archive (`.npz`) with `counts` (y, x, ky, kx) and `meta`, a JSON text with axes and columns;
- a store that `simulate.py` wrote, which carries the truth as the attribute `truth`, or any other store or vendor
  file, whose columns a table of sites names (`--sites`).

Workflows are scripts, and notebooks as well: with jupytext installed, JupyterLab opens them with "Open With >
Notebook", and `jupytext --to ipynb tour.py` makes a notebook of one. There is no command line then: options have their
defaults, and are changed where they are read, as in `ARGUMENTS.out = Path("elsewhere")`. A notebook in another folder
than this file finds it after `sys.path.append("the folder of the workflows")`.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

import tdm_dask as tdm
from tdm_dask.plot import save_figure
from tdm_dask.plot.style import figure_of

SAMPLE = files("tdm_dask") / "data"


@dataclass(frozen=True)
class KnownScan:
    """A scan, calibrated, and what is known of its specimen.

    Attributes
    ----------
    name : str
    counts : DataArray (y, x, ky, kx)
        Lazy, in angstrom and mrad.
    sites : dict of str to array (n, 2)
        Atom columns (y, x) in angstrom by kind, those around the scan that reach into it among them.
    cell : (float, float) or None
        Period of the specimen along y and x, in angstrom.
    thickness_nm : float or None
    meta : dict
        Everything else that is known.
    """

    name: str
    counts: xr.DataArray
    sites: dict[str, np.ndarray]
    cell: tuple[float, float] | None = None
    thickness_nm: float | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)


def load(data: str | Path | None, folder: str | Path, *, sites: str | Path | None = None) -> KnownScan:
    """A scan with known truth; what is not a store yet is converted into `folder`, once.

    Parameters
    ----------
    data : path or None
        As the description of this file says; None for the package's sample.
    folder : path
        For the store; made where it is not there.
    sites : path, optional
        A table of sites (CSV or JSON) that stands for the truth of the data.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if data is None:
        known = _sample(folder)
    elif Path(data).suffix == ".npz":
        known = _archive(Path(data), folder)
    else:
        known = _store(str(data), folder)
    if sites is not None:
        table = tdm.read_sites(sites)
        known = KnownScan(known.name, known.counts, table, known.cell, known.thickness_nm, known.meta)
    return known


def _sample(folder: Path) -> KnownScan:
    counts = tdm.convert(SAMPLE / "lifepo4_001.mib", folder / "sample.zarr", scan_step=("0.3229 Å", "0.3220 Å"))
    counts = tdm.calibrate(counts, semi_angle="23.5 mrad", energy="200 keV")
    sites = tdm.read_sites(SAMPLE / "lifepo4_001_sites.json")
    return KnownScan("LiFePO4 [001], sample", counts, sites, (10.332, 6.010), 39.9)


def _archive(path: Path, folder: Path) -> KnownScan:
    with np.load(path) as file:
        meta = json.loads(str(file["meta"]))
        # In memory while it is converted: these archives are small.
        labelled = tdm.label_counts(file["counts"])
    counts = tdm.convert(labelled, folder / f"{path.stem}.zarr", scan_step=meta["scan_step_angstrom"])
    centre = tuple(size // 2 for size in counts.shape[2:])
    angle = meta["angle_step_mrad"]
    counts = tdm.calibrate(
        counts, semi_angle=meta["semi_angle_mrad"], pixel_size=angle, centre=centre, energy=meta["energy_ev"]
    )
    cell = tuple(meta["periodic_cell_angstrom"])
    sites = with_periodic_images(meta["atom_columns_angstrom_yx"], cell, counts)
    return KnownScan(meta["description"].split(",")[0], counts, sites, cell, meta["thickness_nm"], meta)


def _store(place: str, folder: Path) -> KnownScan:
    counts = tdm.open(place)
    truth = json.loads(counts.attrs.get("truth", "{}"))
    cell = tuple(truth["cell"]) if truth.get("cell") else None
    sites = with_periodic_images(truth.get("sites", {}), cell, counts)
    name = truth.get("description", Path(place).stem)
    return KnownScan(name, counts, sites, cell, truth.get("thickness_nm"), truth)


def with_periodic_images(
    sites: Mapping[str, Any], cell: tuple[float, float] | None, counts: xr.DataArray, margin: float = 2.0
) -> dict[str, np.ndarray]:
    """Sites and their periodic images within `margin` angstrom of a scan; the sites alone where there is no cell."""
    if cell is None:
        return {kind: np.asarray(places, float) for kind, places in sites.items()}
    y, x = (counts[dim].values for dim in ("y", "x"))
    shifts = np.array(list(itertools.product((-1, 0, 1), repeat=2))) * cell
    near = {}
    for kind, places in sites.items():
        every = np.unique(np.round((np.asarray(places, float)[:, None] + shifts).reshape(-1, 2), 6), axis=0)
        inside = [(every[:, n] >= a.min() - margin) & (every[:, n] <= a.max() + margin) for n, a in enumerate((y, x))]
        near[kind] = every[inside[0] & inside[1]]
    return near


def inside(sites: Mapping[str, Any], counts: xr.DataArray, margin: float = 0.0) -> dict[str, np.ndarray]:
    """The sites inside a scan, at least `margin` angstrom from its edges."""
    y, x = (counts[dim].values for dim in ("y", "x"))
    low = np.array([y.min(), x.min()]) + margin
    high = np.array([y.max(), x.max()]) - margin
    arrays = {kind: np.asarray(places, float).reshape(-1, 2) for kind, places in sites.items()}
    return {kind: places[((places >= low) & (places <= high)).all(1)] for kind, places in arrays.items()}


def arguments(description: str | None, *, sample_only: bool = False, **options: Any) -> argparse.Namespace:
    """What the command line asks of a workflow: `data`, `out`, `sites`, `quick`, and options of its own.

    Parameters
    ----------
    description : str
        For `--help`: the workflow's own docstring.
    sample_only : bool, default False
        Whether the workflow is about the package's sample, so that `out` is all there is to choose.
    options
        Further options by name, each the keywords of `ArgumentParser.add_argument`, and `before`, what it was called
        before (with `Renamed` as its action). In a notebook there is no command line, and every option has its default.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("results"), help="folder of figures, numbers and store")
    if not sample_only:
        parser.add_argument("data", nargs="?", help="archive, store or vendor file; by default the package's sample")
        parser.add_argument("--sites", type=Path, help="table of sites, CSV or JSON, in angstrom")
        parser.add_argument("--quick", action="store_true", help="a reduced size, to see that it runs")
    for name, settings in options.items():
        parser.add_argument("--" + name.replace("_", "-"), *settings.pop("before", ()), **settings)
    warnings.filterwarnings("ignore", message=".*sites lie more than.*")  # columns around the scan are listed too
    return parser.parse_args(command_line())


class Renamed(argparse.Action):
    """Stores the value of an option whose other names are those of before, and warns where one of these is used."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        if option_string != self.option_strings[0]:
            said = f"{option_string} is now called {self.option_strings[0]}"
            warnings.warn(f"{said}; the old name works in this release alone.", FutureWarning, stacklevel=2)
        setattr(namespace, self.dest, values)


def command_line() -> list[str] | None:
    """What a parser of options is given: None for what the command line has, and nothing at all in a notebook."""
    return [] if _in_notebook() else None


def _in_notebook() -> bool:
    ipython = sys.modules.get("IPython")
    return ipython is not None and getattr(ipython.get_ipython(), "kernel", None) is not None


def write(out: Path, name: str, figures: Mapping[str, Any], numbers: Mapping[str, Any]) -> None:
    """Write figures as PNG and numbers as JSON, named `<name>-<figure>.png` and `<name>.json`, and say where.

    In a notebook, the figures are shown as well.
    """
    out.mkdir(parents=True, exist_ok=True)
    for title, drawn in figures.items():
        print(save_figure(drawn, out / f"{name}-{title}.png"))
        if _in_notebook():
            from IPython.display import display

            display(figure_of(drawn))
    path = out / f"{name}.json"
    text = json.dumps(numbers, indent=1, ensure_ascii=False, default=_plain)
    path.write_text(text + "\n", encoding="utf-8")
    print(path)


def _plain(value: Any) -> Any:
    """NumPy and xarray values for JSON."""
    if isinstance(value, (xr.DataArray, np.ndarray, np.generic)):
        return np.asarray(value).tolist()
    raise TypeError(f"{type(value).__name__} cannot be written as JSON.")
