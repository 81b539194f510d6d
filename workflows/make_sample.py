"""Make the sample that ships with the package from a simulated scan of LiFePO4 [001].

    python workflows/make_sample.py lifepo4_001_40nm.npz [--out tdm_dask/data]

The archive holds `counts` (y, x, ky, kx) and `meta`, a JSON text with the axes and every atom column. The
counts are cropped, and summed over 2 x 2 detector pixels; no number is drawn again. Of the crops and sums
that fit in 6 MB and keep an ADF annulus, this one keeps the columns apart best: Pearson masks within 24 mrad
give R_ii = 0.86, 0.71, 0.61, 0.78 for Li, Fe, P+O and O, against 0.87, 0.73, 0.62, 0.80 on the whole scan
(sums of 3 x 3 pixels: 0.82, 0.67, 0.61, 0.70).
"""

from __future__ import annotations

import argparse
import itertools
import json
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np

PROBES = 42
PIXELS = 38
SUMMED = 2
FIRST_PIXEL = 13  # leaves the optic axis (pixel 51 of the archive) in the middle of the crop
MARGIN = 1.05  # angstrom, three sigma of the demo's Gaussians: columns so far outside still reach into the scan
STARTED = datetime(2026, 1, 1)
EXPOSURE = timedelta(milliseconds=1)
THRESHOLDS = ",".join(["2.000000E+0", "5.110000E+2", *["0.000000E+0"] * 6])
DACS = ",".join(["000"] * 27)


def mib(frames: np.ndarray) -> bytes:
    """12-bit frames (frame, ky, kx) as a Merlin file: big-endian, an MQ1 header of 384 bytes before each.

    Merlin files hold the bottom row of the detector first, which RosettaSciIO turns round on reading.
    """
    nky, nkx = frames.shape[1:]
    parts = []
    for number, frame in enumerate(frames, start=1):
        time = STARTED + (number - 1) * EXPOSURE
        header = (
            f"MQ1,{number:06d},00384,01,{nkx:04d},{nky:04d},U16,   1x1,01,{time:%Y-%m-%d %H:%M:%S.%f},"
            f"{EXPOSURE.total_seconds():.6f},0,0,0,{THRESHOLDS},3RX,{DACS},"
            f"MQ1A,{time:%Y-%m-%dT%H:%M:%S.%f}000Z,{int(EXPOSURE.total_seconds() * 1e9)}ns,12,"
        )
        parts += [header.encode("ascii").ljust(384, b"\0"), frame[::-1].astype(">u2").tobytes()]
    return b"".join(parts)


def hdr(ny: int, nx: int) -> bytes:
    """The text file beside a Merlin file: "key:<tab>value" lines, padded to 2048 bytes."""
    lines = [
        "HDR,\t",
        f"Time and Date Stamp (day, mnth, yr, hr, min, s):\t{STARTED:%d/%m/%Y %H:%M:%S}",
        "Chip ID:\tsimulated, - , - , - ",
        "Chip Type (Medipix 3.0, Medipix 3.1, Medipix 3RX):\tMedipix 3RX",
        "Assembly Size (NX1, 2X2):\t   1x1",
        "Chip Mode  (SPM, CSM, CM, CSCM):\tSPM",
        "Counter Depth (number):\t12",
        "Gain:\tSLGM",
        "Active Counters:\tCounter 0",
        f"Thresholds (keV):\t{THRESHOLDS}",
        f"DACs:\t{DACS}; ; ; ",
        "bpc File:\t,,,",
        "DAC File:\t,,,",
        "Gap Fill Mode:\tNone",
        "Flat Field File:\tNone",
        "Dead Time File:\tNone",
        "Acquisition Type (Normal, Th_scan, Config):\tNormal",
        f"Frames in Acquisition (Number):\t{ny * nx}",
        f"Frames per Trigger (Number):\t{nx}",
        "Trigger Start (Positive, Negative, Internal):\tRising Edge",
        "Trigger Stop (Positive, Negative, Internal):\tInternal",
        "Sensor Bias (V):\t120 V",
        "Sensor Polarity (Positive, Negative):\tPositive",
        "Temperature (C):\tBoard Temp 0.000000 Deg C",
        "Humidity (%):\tBoard Humidity 0.000000 ",
        "Medipix Clock (MHz):\t120MHz",
        "Readout System:\tMerlin Quad",
        "Software Version:\tsimulated",
        f"ScanX:\t{nx}",
        f"ScanY:\t{ny}",
    ]
    text = "".join(f"{line}\r\n" for line in lines) + "End\t"
    return text.encode("ascii").ljust(2048, b" ")


def sites(meta: dict, extent: tuple[float, float]) -> dict[str, list[list[float]]]:
    """Every column of the periodic crystal within MARGIN of the scan; (y, x) in angstrom from its origin."""
    cell = np.array(meta["periodic_cell_angstrom"])
    kinds = {}
    for kind, columns in meta["atom_columns_angstrom_yx"].items():
        images = [np.array(columns) + shift * cell for shift in itertools.product((-1, 0, 1), repeat=2)]
        every = np.round(np.concatenate(images), 3)
        outside = np.maximum(np.maximum(-every, every - np.array(extent)), 0)
        near = np.hypot(*outside.T) <= MARGIN
        kinds[kind] = sorted(every[near].tolist())
    return kinds


def main() -> None:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    parser.add_argument("archive", type=Path, help="the simulated scan (.npz)")
    data = Path(__file__).resolve().parents[1] / "tdm_dask" / "data"
    parser.add_argument("--out", type=Path, default=data)
    arguments = parser.parse_args()

    with np.load(arguments.archive) as file:
        counts, meta = file["counts"], json.loads(str(file["meta"]))
    last = FIRST_PIXEL + SUMMED * PIXELS
    part = counts[:PROBES, :PROBES, FIRST_PIXEL:last, FIRST_PIXEL:last].astype(np.uint32)
    part = part.reshape(PROBES, PROBES, PIXELS, SUMMED, PIXELS, SUMMED).sum(axis=(3, 5))
    if part.max() >= 2**12:
        raise SystemExit("The sums do not fit a 12-bit counter.")

    step_y, step_x = meta["scan_step_angstrom"]
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "lifepo4_001.mib").write_bytes(mib(part.reshape(-1, PIXELS, PIXELS)))
    (arguments.out / "lifepo4_001.hdr").write_bytes(hdr(PROBES, PROBES))
    columns = sites(meta, ((PROBES - 1) * step_y, (PROBES - 1) * step_x))
    rows = ",\n".join(f"  {json.dumps(kind)}: {json.dumps(places)}" for kind, places in columns.items())
    (arguments.out / "lifepo4_001_sites.json").write_text(f"{{\n{rows}\n}}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
