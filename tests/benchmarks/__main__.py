"""`python tests/benchmarks`: the package's speed, measured side by side with its peers and with the hardware."""

import sys
from pathlib import Path

if __name__ == "__main__":
    # The folder `tests` holds this package and the writers of vendor files.
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from benchmarks.command import main

    sys.exit(main())
