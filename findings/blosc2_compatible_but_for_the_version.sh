#!/usr/bin/env bash
# With BLOSC_BLOSC1_COMPAT set, Blosc 2 writes chunks as Blosc 1 has them (a header of 16 bytes, split streams), but for
# the first byte, the version of the format, which stays 5. Blosc 1, in numcodecs, refuses them: "error during blosc
# decompression: -1". Where that byte is set to 2, it reads them, and the numbers are right. Without the variable the
# chunks differ in more than that byte.
# Seen with blosc2 4.14.1 (C library 3.3.5) and numcodecs 0.16.5.
# What helps: to write what Blosc 1 has to read with Blosc 1 (numcodecs), or to set the byte.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat >"$folder/compatible.py" <<'PYTHON'
import os

import blosc2
import numpy as np
from numcodecs import blosc

counts = np.arange(100_000, dtype="uint16") % 50
for shuffle in (blosc2.Filter.BITSHUFFLE, blosc2.Filter.SHUFFLE):
    chunk = bytearray(blosc2.compress(counts, typesize=2, clevel=5, filter=shuffle, codec=blosc2.Codec.LZ4))
    said = [f"version {chunk[0]}"]
    for version in (chunk[0], 2):
        chunk[0] = version
        try:
            read = np.frombuffer(blosc.decompress(bytes(chunk)), "uint16")
            said.append(f"as {version} {'right' if np.array_equal(read, counts) else 'wrong'}")
        except RuntimeError:
            said.append(f"as {version} error")
    print(os.environ.get("BLOSC_BLOSC1_COMPAT", "unset"), shuffle.name, *said, sep=", ")
PYTHON
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check blosc2==4.14.1 numcodecs==0.16.5 numpy
said=$("$folder/env/bin/python" "$folder/compatible.py"; BLOSC_BLOSC1_COMPAT=1 "$folder/env/bin/python" "$folder/compatible.py")
echo "$said"
for shuffle in BITSHUFFLE SHUFFLE; do
    [[ $said == *"unset, $shuffle, version 5, as 5 error, as 2 error"* ]]
    [[ $said == *"1, $shuffle, version 5, as 5 error, as 2 right"* ]]
done
