#!/usr/bin/env bash
# Memory that numcodecs is given to decompress into may be larger than what was compressed: zstd, lz4 and blosc fill its
# beginning, leave the rest as it was, and raise nothing. Memory that is used for one chunk after another then holds the
# end of the chunk before. Too little memory is an error with all three.
# Seen with numcodecs 0.16.1 and 0.17.1.
# What helps: to compare the length that a Blosc header or a zstd frame states with that of the memory.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat >"$folder/longer.py" <<'PYTHON'
import numcodecs
import numpy as np
from numcodecs import blosc, lz4, zstd

counts = np.arange(100, dtype="uint8")
packed = {zstd: zstd.compress(counts, 1), lz4: lz4.compress(counts, 1), blosc: blosc.compress(counts, b"lz4", 5, 1)}
for module, data in packed.items():
    for size in (150, 50):
        out = np.full(size, 255, np.uint8)
        try:
            module.decompress(data, out)
            said = f"right {(out[:100] == counts).sum()}, untouched {(out[100:] == 255).sum()}"
        except (RuntimeError, ValueError):
            said = "error"
        print(numcodecs.__version__, module.__name__, size, said)
PYTHON
said=
for version in 0.16.1 0.17.1; do
    python3 -m venv --clear "$folder/env"
    "$folder/env/bin/pip" install --quiet --disable-pip-version-check "numcodecs==$version" numpy
    said+=$("$folder/env/bin/python" "$folder/longer.py")$'\n'
done
echo "$said"
for version in 0.16.1 0.17.1; do
    for name in zstd lz4 blosc; do
        [[ $said == *"$version numcodecs.$name 150 right 100, untouched 50"* && $said == *"$version numcodecs.$name 50 error"* ]]
    done
done
