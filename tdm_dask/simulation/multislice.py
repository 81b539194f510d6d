"""Simulated scans, from abTEM's potentials straight into stores, block by block; and libraries of mean patterns."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import xarray as xr
from dask.base import tokenize

from ..axes import DETECTOR, SCAN, axis_coordinate, label_counts, quantity
from ..conversion.conversion import convert
from ..counts.regions import crop
from ..errors import InputError
from ..reading import store as stores
from ..reading.lazy import as_dask
from ..renamed import renamed
from .conditions import listed, probe_grid, scatterer_of, thicknesses_of
from .scattering import Scatterer, need_abtem
from .simulated_scan import ONE_AT_A_TIME, SimulatedScan, forget, mean_intensities
from .specimens import Specimen

Method = Literal["auto", "matrix", "multislice"]

# Largest scattering matrices for which they are preferred.
_MATRIX_BYTES = 2 * 2**30


@renamed(dose="electrons_per_probe")
def simulate(
    specimen: Specimen,
    store: str | os.PathLike[str],
    *,
    energy: float | str = "200 keV",
    semi_angle: float | str = "23.5 mrad",
    soft_edge: float | str = "4 mrad",
    cs: float | str = "3 um",
    defocus: float | str | Sequence[float | str] = 0.0,
    thickness: float | str | Sequence[float | str] | None = None,
    slice_thickness: float | str = "4.692 Å",
    potential_sampling: float | str = "0.073 Å",
    parametrization: str = "kirkland",
    projection: str = "infinite",
    max_angle: float | str = "64.2 mrad",
    pixel_size: float | str | None = None,
    frozen_phonons: int = 20,
    sigmas: Mapping[str, float] | float | None = None,
    scan_step: float | str | Sequence[float | str] = "0.3 Å",
    scan_extent: Sequence[float | str] | None = None,
    electrons_per_probe: float | None = 20_000.0,
    seed: int = 0,
    method: Method = "auto",
    block: int = 256,
    compression: str | None = "lz4",
    resume: bool = True,
    overwrite: bool = False,
) -> xr.DataArray | list[xr.DataArray]:
    r"""Simulate a 4D-STEM scan of a specimen into a store. The defaults are those of Table 1 of the paper.

    Blocks of probe positions are simulated, given their counting noise, written as whole shards and read back, as
    `convert` does it: on the active dask scheduler, resumable at any moment, with checksums; the counts are never in
    memory whole. Displacements and noise depend on `seed` and the probe position alone, so that what goes on after
    an interruption gives the same counts (on the same kind of processor; others may round otherwise).

    Parameters
    ----------
    specimen : Specimen
    store : path or URL
        Of one scan. Of a series, "scan.zarr" gives "scan-20nm.zarr", "scan-30nm.zarr" or "scan-defocus-60A.zarr".
    energy : float (eV) or str
    semi_angle, soft_edge : float (mrad) or str
        The amplitude of the probe falls to 0 as a cosine over `soft_edge`, centred on `semi_angle`; 0 is a hard edge.
    cs : float (angstrom) or str
        Spherical aberration.
    defocus : float (angstrom) or str, or a sequence of them
        Positive is underfocus, as in abTEM. Of a series the probes alone differ: the same atoms, another dose.
    thickness : float (angstrom) or str, or a sequence of them, optional
        Seen at the end of the slice nearest to it, in one run for all; by default the whole specimen.
    slice_thickness, potential_sampling : float (angstrom) or str
        At most: whole slices fill each repeat of the crystal along the beam.
    parametrization, projection : str
        Of the atoms' potentials, as abTEM names them.
    max_angle : float (mrad) or str
        To which the detector reaches.
    pixel_size : float (mrad) or str, optional
        By default the step between the plane waves of the periodic block, along the axis where it is larger. A pixel
        is a square that gathers what falls on it.
    frozen_phonons : int, default 20
        Configurations of displaced atoms, of whose intensities the mean is taken.
    sigmas : float or mapping of element to float, optional
        Root mean square displacement along one direction, in angstrom, at any number of configurations; 0 leaves the
        atoms where they are. By default `tdm_dask.simulation.conditions.SIGMAS`, and 0.08 for elements that it lacks.
    scan_step : float (angstrom), str or (y, x) pair
        Rounded so that whole steps fill `scan_extent`.
    scan_extent : (y, x) in angstrom, optional
        From the origin of the block; by default all of it.
    electrons_per_probe : float or None, default 20000
        At each probe position; the counts are Poisson numbers. None leaves parts of one electron, as float32. Called
        `dose` before, which works in this release alone.
    seed : int, default 0
    method : {"auto", "matrix", "multislice"}
        "matrix": the scattering matrix of the plane waves that make up the probe, then a matrix product for each
        block; exact, and cheaper where there are more probes than plane waves. It is made once in each process.
        "multislice": each probe by itself, which suits a cluster. "auto" takes the matrix where it is cheaper and
        fits in 2 GiB.
    block : int, default 256
        Probe positions of a shard, about.
    compression, resume, overwrite
        As for `convert`.

    Returns
    -------
    DataArray, or a list of them for a series
        What `open` gives of the store: calibrated counts, whose attribute `truth` is a JSON text with the columns of
        the specimen (`sites`, `cell`, `defects`) and the conditions (`thickness_nm`, `dose`, ...). A series is in the
        order of the thicknesses, and of the defoci of each.

    Raises
    ------
    InputError
        If abTEM is not installed, or the request makes no sense.
    UnitError, StoreError, DiskFullError
        As for `convert`.

    Examples
    --------
    >>> from tdm_dask.simulation.defects import vacancy
    >>> from tdm_dask.simulation.specimens import lifepo4
    >>> specimen = vacancy(lifepo4(thickness="40 nm"), "O", (8.6, 9.3))
    >>> simulate(specimen, "scan.zarr", **PRESETS["small"])  # doctest: +SKIP

    So small that it takes no time, and means little:

    >>> import tempfile
    >>> tiny = lifepo4(size=(4, 4), thickness=9)
    >>> coarse = {"potential_sampling": 0.26, "max_angle": 30, "scan_step": 2.0}
    >>> counts = simulate(tiny, tempfile.mkdtemp() + "/scan.zarr", **coarse)
    >>> counts.dims, counts.x.attrs["units"]
    (('y', 'x', 'ky', 'kx'), 'angstrom')
    """
    need_abtem()
    defoci = [quantity(v, "angstrom", "defocus", positive=False) for v in listed(defocus)]
    scatterer = scatterer_of(
        specimen,
        thicknesses_of(specimen, thickness),
        energy=energy,
        semi_angle=semi_angle,
        soft_edge=soft_edge,
        cs=cs,
        slice_thickness=slice_thickness,
        potential_sampling=potential_sampling,
        parametrization=parametrization,
        projection=projection,
        max_angle=max_angle,
        pixel_size=pixel_size,
        frozen_phonons=frozen_phonons,
        sigmas=sigmas,
        seed=seed,
    )
    dose = electrons_per_probe
    if dose is not None and not 0 < dose < 2**31:
        raise InputError(f"electrons_per_probe={dose} was given; expected a positive number, or None.")
    if block < 1:
        raise InputError(f"block={block} was given; expected a number of probe positions, 1 or more.")
    n, step = probe_grid(specimen, scan_step, scan_extent)
    (nky, nkx), planes = scatterer.detector, len(scatterer.planes)
    scan = SimulatedScan(
        scatterer,
        tuple(defoci),
        (*n, nky * planes * len(defoci), nkx),
        step,
        None if dose is None else float(dose),
        _by_matrix(scatterer, method, n[0] * n[1] * len(defoci)),
        block,
    )
    options: dict[str, Any] = {"compression": compression, "resume": resume, "overwrite": overwrite}
    labels = [_facts(specimen, scan, plane, d) for plane in scatterer.planes for d in defoci]
    if len(labels) == 1:
        whole = _labelled(as_dask(scan), scan, labels[0])
        found = convert(whole, store, **options)
        forget(scatterer)
        return found
    names = series_stores(store, [label["thickness_nm"] for label in labels], [label["defocus"] for label in labels])
    return _simulate_series(scan, labels, names, store, options)


def series_stores(store: str | os.PathLike[str], thicknesses: Sequence[float], defoci: Sequence[float]) -> list[str]:
    """The paths of the stores of a series, by that which was given for all; thicknesses in nm, defoci in angstrom.

    Examples
    --------
    >>> series_stores("a/scan.zarr", [20.2, 30.0], [0, 0])
    ['a/scan-20.2nm.zarr', 'a/scan-30nm.zarr']
    >>> series_stores("scan.zarr", [40.0, 40.0], [-60, 0])
    ['scan-defocus-60A.zarr', 'scan-defocus+0A.zarr']
    """
    stem, suffix = os.path.splitext(os.fspath(store))
    several = [len(set(values)) > 1 for values in (thicknesses, defoci)]
    names = []
    for t, d in zip(thicknesses, defoci, strict=True):
        parts = [f"-{t:.4g}nm"] * several[0] + [f"-defocus{d:+g}A"] * several[1]
        names.append(stem + "".join(parts) + suffix)
    if len(set(names)) < len(names):
        raise InputError(f"Of the thicknesses {list(thicknesses)} nm some are the same slice; leave one out.")
    return names


def simulate_pacbed(
    specimen: Specimen,
    thicknesses: Sequence[float | str],
    *,
    energy: float | str = "200 keV",
    semi_angle: float | str = "23.5 mrad",
    soft_edge: float | str = "4 mrad",
    cs: float | str = "3 um",
    defocus: float | str = 0.0,
    slice_thickness: float | str = "4.692 Å",
    potential_sampling: float | str = "0.125 Å",
    parametrization: str = "kirkland",
    projection: str = "infinite",
    max_angle: float | str = "64.2 mrad",
    pixel_size: float | str | None = None,
    frozen_phonons: int = 1,
    sigmas: Mapping[str, float] | float | None = None,
    scan_step: float | str | Sequence[float | str] = "0.6 Å",
    scan_extent: Sequence[float | str] | None = None,
    seed: int = 0,
) -> xr.DataArray:
    """Mean patterns (PACBED) of a specimen at several thicknesses, from one multislice run, in memory.

    Nothing is read or written. The probes are spread over one unit cell of the crystal, which in a perfect crystal
    gives the mean over any number of whole cells. Defocus hardly changes a mean pattern.

    Parameters
    ----------
    specimen : Specimen
        At least as thick as the largest thickness.
    thicknesses : sequence of float (angstrom) or str
        Each is seen at the end of the slice nearest to it.
    scan_step, scan_extent
        Of the probes; by default 0.6 angstrom over one `repeat` of the specimen. Steps much larger than half a
        wavelength over the semi-angle (0.53 angstrom) do not give the mean: patterns vary faster than that.
    energy, semi_angle, soft_edge, cs, defocus, slice_thickness, potential_sampling, parametrization, projection, \
max_angle, pixel_size, frozen_phonons, sigmas, seed
        As for `simulate`.

    Returns
    -------
    DataArray, dims (thickness, ky, kx)
        Parts of one electron on each pixel, float64. `thickness` in nm, that of the slices; ky and kx in mrad.

    Raises
    ------
    InputError
        If abTEM is not installed, or the request makes no sense.

    Examples
    --------
    >>> from tdm_dask.simulation.specimens import lifepo4
    >>> simulate_pacbed(lifepo4(thickness="90 nm"), ["20 nm", "40 nm", "90 nm"])  # doctest: +SKIP

    So small that it takes no time, and means little:

    >>> coarse = {"potential_sampling": 0.26, "max_angle": 30, "scan_step": 2.0}
    >>> patterns = simulate_pacbed(lifepo4(size=(4, 4), thickness=9), [5, 9], **coarse)
    >>> patterns.dims, patterns.thickness.values.round(2).tolist()
    (('thickness', 'ky', 'kx'), [0.47, 0.94])
    """
    need_abtem()
    scatterer = scatterer_of(
        specimen,
        thicknesses_of(specimen, thicknesses),
        energy=energy,
        semi_angle=semi_angle,
        soft_edge=soft_edge,
        cs=cs,
        slice_thickness=slice_thickness,
        potential_sampling=potential_sampling,
        parametrization=parametrization,
        projection=projection,
        max_angle=max_angle,
        pixel_size=pixel_size,
        frozen_phonons=frozen_phonons,
        sigmas=sigmas,
        seed=seed,
    )
    extent = specimen.repeat[:2] if scan_extent is None else scan_extent
    (ny, nx), step = probe_grid(specimen, scan_step, extent)
    positions = np.stack(np.meshgrid(np.arange(ny), np.arange(nx), indexing="ij"), -1).reshape(-1, 2) * step
    focus = quantity(defocus, "angstrom", "defocus", positive=False)
    total = np.zeros((len(scatterer.planes), *scatterer.detector))
    with ONE_AT_A_TIME:
        for part in np.array_split(positions, -(-len(positions) // 64)):
            total += mean_intensities(scatterer, part, [focus], matrix=False).sum(1, dtype=np.float64)
        forget(scatterer)
    depths = np.array(scatterer.planes) * scatterer.slice_thickness / 10
    coords: dict[str, Any] = dict(_detector_axes(scatterer))
    coords["thickness"] = ("thickness", depths, {"units": "nm", "long_name": "thickness"})
    attrs: dict[str, Any] = {"long_name": "mean pattern (PACBED)", "units": "1", "specimen": specimen.description}
    attrs |= {"semi_angle_mrad": scatterer.conditions.semi_angle, "energy_eV": scatterer.conditions.energy}
    return xr.DataArray(total / len(positions), coords, ("thickness", *DETECTOR), "pacbed", attrs)


# What `simulate` and the builders of specimens take: "small" is LiFePO4 or PbTiO3 at 40 nm in about two minutes on two
# cores, "paper" Table 1 of the paper in full.
PRESETS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "small": {"potential_sampling": 0.126, "frozen_phonons": 1, "scan_step": 0.3225, "block": 512},
        "paper": {"method": "multislice", "block": 1024},
    }
)
# Size (y, x) of the block, and its thickness, in angstrom, of each preset.
BLOCKS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {"small": {"size": (20.0, 20.0), "thickness": 400.0}, "paper": {"size": (80.0, 80.0), "thickness": 900.0}}
)


def _simulate_series(
    scan: SimulatedScan, labels: list[dict[str, Any]], names: list[str], store: Any, options: dict[str, Any]
) -> list[xr.DataArray]:
    """All patterns of a probe position come from one run into one store, of which each scan then becomes its own."""
    together = f"{os.path.splitext(os.fspath(store))[0]}-together.zarr"
    nky = scan.scatterer.detector[0]
    marks = [{**label, "run": tokenize(scan)} for label in labels]
    if not options["overwrite"] and all(_is_of(name, mark) for name, mark in zip(names, marks, strict=True)):
        return [stores.open_store(name) for name in names]
    whole = convert(_labelled(as_dask(scan), scan, None), together, **options)
    forget(scan.scatterer)
    found = []
    for number, (name, mark) in enumerate(zip(names, marks, strict=True)):
        part = crop(whole, ky=slice(number * nky, (number + 1) * nky))
        found.append(convert(_labelled(part.data, scan, mark), name, **options))
    if "://" not in together:
        shutil.rmtree(together)
    return found


def _is_of(name: str, mark: Mapping[str, Any]) -> bool:
    """Whether a store holds that part of that run, whole."""
    if "://" not in name and not Path(name).exists():
        return False
    if not stores.is_complete(name):
        return False
    return json.loads(stores.open_store(name).attrs.get("truth", "{}")).get("run") == mark["run"]


def _facts(specimen: Specimen, scan: SimulatedScan, plane: int, defocus: float) -> dict[str, Any]:
    """The truth of one scan, as JSON can hold it."""
    conditions, depth = scan.scatterer.conditions, plane * scan.scatterer.slice_thickness
    return {
        **specimen.truth(),
        "thickness_nm": round(depth / 10, 4),
        "defocus": defocus,
        "cs": conditions.cs,
        "soft_edge_mrad": conditions.soft_edge,
        "dose": scan.dose,
        "frozen_phonons": conditions.configurations,
        "sigmas": dict(conditions.sigmas),
        "seed": conditions.seed,
        "model": f"{conditions.parametrization}, {conditions.projection} projection",
        "slice_thickness": scan.scatterer.slice_thickness,
        "grid": list(scan.scatterer.gpts),
        "method": "scattering matrix" if scan.matrix else "multislice",
        "simulated_by": f"abTEM {need_abtem().__version__}",
    }


def _labelled(data: Any, scan: SimulatedScan, truth: Mapping[str, Any] | None) -> xr.DataArray:
    coords: dict[str, Any] = {
        dim: axis_coordinate(dim, n, step, 0.0, "angstrom")
        for dim, n, step in zip(SCAN, scan.shape, scan.step, strict=False)
    }
    conditions = scan.scatterer.conditions
    attrs: dict[str, Any] = {
        "energy_eV": conditions.energy,
        "semi_angle_mrad": conditions.semi_angle,
        "pixel_size_mrad": [conditions.pixel_size] * 2,
    }
    if scan.dose is not None:
        attrs |= {"counts_per_electron": 1.0, "electrons_per_probe": scan.dose}
        attrs["electrons_per_square_angstrom"] = scan.dose / (scan.step[0] * scan.step[1])
    if truth is not None:
        coords |= _detector_axes(scan.scatterer)
        attrs |= {"truth": json.dumps(truth, ensure_ascii=False), "source": f"{truth['description']}, simulated"}
    return label_counts(data, coords, attrs)


def _detector_axes(scatterer: Scatterer) -> dict[str, xr.Variable]:
    pixel = scatterer.conditions.pixel_size
    return {
        dim: axis_coordinate(dim, n, pixel, -(n // 2) * pixel, "mrad")
        for dim, n in zip(DETECTOR, scatterer.detector, strict=True)
    }


def _by_matrix(scatterer: Scatterer, method: str, probes: int) -> bool:
    if method not in ("auto", "matrix", "multislice"):
        raise InputError(f'The method is {method!r}; expected "auto", "matrix" or "multislice".')
    if method != "auto":
        return method == "matrix"
    return probes > len(scatterer.beams) and scatterer.matrix_bytes() <= _MATRIX_BYTES
