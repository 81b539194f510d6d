"""What tests on simulated scans with known truth share."""

from __future__ import annotations

import numpy as np

SIGMA = 0.35


def with_periodic_images(sites, cell):
    """Every site and its images in the cells around: columns beyond the border still reach into the scan."""
    offsets = np.array([(i * cell[0], j * cell[1]) for i in (-1, 0, 1) for j in (-1, 0, 1)])
    return {kind: (np.asarray(s)[:, None] + offsets).reshape(-1, 2) for kind, s in sites.items()}
