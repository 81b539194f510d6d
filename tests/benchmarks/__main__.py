"""`python tests/benchmarks`: the package's speed, measured side by side with its peers and with the hardware."""

import sys
from pathlib import Path

if __name__ == "__main__":
    # The folder `tests` holds this package, and its `support` the writers of vendor files.
    tests = Path(__file__).resolve().parents[1]
    sys.path[:1] = [str(tests), str(tests / "support")]
    from benchmarks.command import main

    sys.exit(main())
