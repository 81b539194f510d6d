# %% [markdown]
# # A simulated scan
#
# Table 1 of the paper, for any crystal: multislice with frozen phonons (abTEM's potentials), Poisson counts, written
# block by block straight into a store that carries the truth about its columns. What was interrupted goes on when
# the same command is given again.
#
#     python workflows/simulate.py lifepo4 --preset small --out scan.zarr
#     python workflows/simulate.py lifepo4 --out defects.zarr --defects fig4
#     python workflows/simulate.py lifepo4 --out scan.zarr --defects vacancy:O@4.7,7.5 "antisite:Li>Fe@5.2,18:2"
#     python workflows/simulate.py pbtio3 --out wall.zarr
#     python workflows/simulate.py --cif SrTiO3.cif --zone-axis 0 0 1 --out series.zarr --thickness "20 nm" "40 nm"
#     python workflows/simulate.py lifepo4 --out focus.zarr --defocus="-6 nm" 0 "6 nm"
#     python workflows/simulate.py lifepo4 --preset paper --out scan.zarr --scheduler tcp://host:8786
#
# "small" takes about two minutes on two cores; "paper" is Table 1 in full, for a cluster. An option goes before the
# preset. Of a series each thickness or defocus becomes a store of its own ("series-20nm.zarr", ...), from one run.

# %%
from __future__ import annotations

import argparse
import json
import math
import sys
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import known_scan

from tdm_dask.axes import quantity
from tdm_dask.cluster.progress import progress_bar
from tdm_dask.errors import TdmError
from tdm_dask.simulation.defects import add_defect, fig4_defects
from tdm_dask.simulation.multislice import BLOCKS, PRESETS, simulate
from tdm_dask.simulation.specimens import Specimen, crystal_block, lifepo4, pbtio3_wall


def arguments() -> argparse.Namespace:
    """What the command line asks for; in a notebook, a small scan of LiFePO4."""
    parser = argparse.ArgumentParser(description="Simulate a 4D-STEM scan into a store.")
    add = parser.add_argument
    add("crystal", nargs="?", default="lifepo4", choices=["lifepo4", "pbtio3"])
    add("--cif", type=Path, help="any crystal instead")
    add("--zone-axis", type=int, nargs=3, default=(0, 0, 1), metavar=("U", "V", "W"))
    add("--size", nargs=2, metavar=("Y", "X"), help='of the periodic block at least, such as "20 Å" "24 Å"')
    add("--preset", choices=sorted(PRESETS), default="small")
    add("--out", default="scan.zarr", help="the store; of a series, what its stores are named after")
    add("--defects", nargs="*", default=[], help='"fig4", or such as "vacancy:O@4.7,7.5:0.5" (place y,x in angstrom)')
    add("--thickness", nargs="*", help='such as "20 nm" "40 nm"')
    add("--defocus", nargs="*", help='such as "-6 nm"; positive is underfocus')
    add("--electrons-per-probe", "--dose", type=float, action=known_scan.Renamed, help="at each probe position")
    add("--seed", type=int, default=0, help="of displacements and counting noise")
    add("--frozen-phonons", type=int)
    add("--scan-step", help='such as "0.3 Å"')
    add("--scan-extent", nargs=2, metavar=("Y", "X"))
    add("--potential-sampling")
    add("--max-angle", help='to which the detector reaches, such as "64.2 mrad"')
    add("--soft-edge", help="of the probe's aperture")
    add("--scheduler", help="address of a dask scheduler")
    add("--overwrite", action="store_true")
    return parser.parse_args(known_scan.command_line())


ARGUMENTS = arguments()

# %% [markdown]
# ## The specimen
#
# A block of the crystal that repeats itself along y and x, as thick as the thickest scan that is asked for. The three
# defects of Fig. 4: an oxygen column that is not there, a lithium column of which every other atom is iron, and a
# column of iron where there was none.


# %%
def build(asked: argparse.Namespace) -> Specimen:
    """The specimen that is asked for, with its defects."""
    block = dict(BLOCKS[asked.preset])
    if asked.size:
        block["size"] = tuple(quantity(v, "angstrom", "size") for v in asked.size)
    if asked.thickness:
        block["thickness"] = max(quantity(v, "angstrom", "thickness") for v in asked.thickness)
    if asked.cif:
        specimen = crystal_block(asked.cif, asked.zone_axis, **block)
    elif asked.crystal == "pbtio3":
        # Six cells by six at least, unless a size is asked for: there is a wall along every border.
        side = max(block["size"]) if asked.size else max(24.1, *block["size"])
        specimen = pbtio3_wall(cells=math.ceil(side / 4.028 - 0.01), thickness=block["thickness"])
    else:
        specimen = lifepo4(**block)
    for word in asked.defects:
        specimen = fig4_defects(specimen) if word == "fig4" else add_defect(specimen, word)
    return specimen


# %% [markdown]
# ## The scan
#
# Displacements and noise follow from the seed and the probe position alone, so the counts are the same however the
# scan is cut into blocks and wherever it is simulated.


# %%
def run(asked: argparse.Namespace) -> list[str]:
    """Simulate, and say what was written and how long it took."""
    options = dict(PRESETS[asked.preset])
    names = ("electrons_per_probe", "frozen_phonons", "scan_step", "scan_extent", "potential_sampling", "max_angle")
    names += ("soft_edge",)
    options |= {name: getattr(asked, name) for name in names if getattr(asked, name) is not None}
    if asked.defocus:
        options["defocus"] = asked.defocus if len(asked.defocus) > 1 else asked.defocus[0]
    specimen = build(asked)
    block = " x ".join(f"{length:.2f}" for length in (*specimen.cell, specimen.thickness))
    print(f"{specimen.description}: {len(specimen.atoms)} atoms in {block} angstrom")
    print("defects:", json.dumps([defect.as_json() for defect in specimen.defects]) if specimen.defects else "none")
    started = time.perf_counter(), time.process_time()
    found = simulate(
        specimen, asked.out, thickness=asked.thickness or None, seed=asked.seed, overwrite=asked.overwrite, **options
    )
    scans = found if isinstance(found, list) else [found]
    for scan in scans:
        truth = json.loads(scan.attrs["truth"])
        where = f"{truth['thickness_nm']:g} nm, defocus {truth['defocus']:g} angstrom"
        print(f"{dict(scan.sizes)}, {where}, by {truth['method']}")
    print(f"{time.perf_counter() - started[0]:.0f} s, {time.process_time() - started[1]:.0f} s of this process's cores")
    return [scan.attrs["source"] for scan in scans]


def client(address: str | None) -> AbstractContextManager[Any]:
    """The cluster that is asked for, or this process's threads."""
    if address is None:
        return nullcontext()
    from distributed import Client

    return Client(address)


try:
    with client(ARGUMENTS.scheduler), progress_bar("simulate"):
        run(ARGUMENTS)
except TdmError as error:
    print(f"simulate: {error}", file=sys.stderr)
    raise SystemExit(2) from None
