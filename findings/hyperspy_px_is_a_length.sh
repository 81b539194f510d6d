#!/usr/bin/env bash
# HyperSpy converts an axis in "px", as uncalibrated images have it, to millimetres without a word: Pint knows px as the
# pixel of style sheets, 1/96 inch, so one detector pixel becomes 0.26458 mm.
# Seen with HyperSpy 2.5.0 and Pint 0.25.3: scale 1 px becomes 0.2645833 mm, while "pixel" is refused with an error.
# What helps: the unit "pixel" for axes that are not calibrated, which is no length for HyperSpy.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check hyperspy==2.5.0 pint==0.25.3
said=$("$folder/env/bin/python" -W ignore - <<'PYTHON'
import hyperspy.api as hs
import numpy as np

for unit in ("px", "pixel"):
    axis = hs.signals.Signal2D(np.zeros((2, 2))).axes_manager.signal_axes[0]
    axis.units, axis.scale = unit, 1.0
    try:
        axis.convert_to_units("mm")
        print(unit, "->", round(axis.scale, 7), axis.units)
    except TypeError as error:
        print(unit, "->", error)
PYTHON
)
echo "$said"
[[ $said == *"px -> 0.2645833 mm"* && $said == *"pixel -> Cannot convert"* ]]
