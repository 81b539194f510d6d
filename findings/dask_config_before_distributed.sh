#!/usr/bin/env bash
# A key of distributed that is set with `with dask.config.set(...)` before distributed is imported takes all of
# distributed's defaults along when the block ends, if distributed was imported inside it. The next LocalCluster of the
# process then ends with KeyError.
# Seen with dask and distributed 2026.8.0 (and 2025.1.0) on Python 3.11: KeyError: 'distributed'.
# What helps: `import distributed` before the first such block.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check "dask==2026.8.0" "distributed==2026.8.0"
cat >"$folder/twice.py" <<'PYTHON'
import sys

import dask

if __name__ == "__main__":
    if "first" in sys.argv:
        import distributed
    with dask.config.set({"distributed.nanny.pre-spawn-environ.MALLOC_ARENA_MAX": 2}):
        from distributed import LocalCluster

        with LocalCluster(n_workers=1, threads_per_worker=1, processes=False, dashboard_address=None):
            pass
    print("defaults left:", sorted(dask.config.get("distributed", {}))[:2])
    try:
        with LocalCluster(n_workers=1, threads_per_worker=1, processes=False, dashboard_address=None):
            print("a second cluster starts")
    except KeyError as error:
        print("a second cluster ends with KeyError:", error)
PYTHON
late=$("$folder/env/bin/python" "$folder/twice.py")
early=$("$folder/env/bin/python" "$folder/twice.py" first)
printf 'distributed imported inside the block:\n%s\nbefore it:\n%s\n' "$late" "$early"
[[ $late == *"ends with KeyError: 'distributed'"* && $early == *"a second cluster starts"* ]]
