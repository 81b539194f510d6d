#!/usr/bin/env bash
# ASE makes more atoms than there are of a CIF with coordinates of three digits: 0.333, 0.667, 0.167 of a special position
# of R-3m are taken for a general one, whose images lie beside each other. Crystal databases write such digits.
# Seen with ASE 3.29.0: 8 atoms of three with three digits, 3 with four or six; no warning.
# What helps: coordinates of four digits or more in the CIF, such as 0.3333.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check ase==3.29.0
said=$("$folder/env/bin/python" - <<'PYTHON' 2>&1
import io

from ase.io import read

CRYSTAL = """data_x
_cell_length_a 5
_cell_length_b 5
_cell_length_c 10
_cell_angle_alpha 90
_cell_angle_beta 90
_cell_angle_gamma 120
_symmetry_space_group_name_H-M 'R -3 m'
_symmetry_Int_Tables_number 166
loop_
_atom_site_label
_atom_site_type_symbol
_atom_site_fract_x
_atom_site_fract_y
_atom_site_fract_z
Na1 Na {x:.{n}f} {y:.{n}f} {z:.{n}f}
"""
for digits in (3, 4, 6):
    text = CRYSTAL.format(x=1 / 3, y=2 / 3, z=1 / 6, n=digits)
    print(digits, "digits:", len(read(io.StringIO(text), format="cif")), "atoms")
PYTHON
)
echo "$said"
[[ $said == *"3 digits: 8 atoms"* && $said == *"4 digits: 3 atoms"* && $said == *"6 digits: 3 atoms"* && $said != *arning* ]]
