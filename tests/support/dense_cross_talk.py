"""What masks keep apart, by dense float64 arithmetic: R, G and excess, on all of a scan and on halves held out."""

from __future__ import annotations

import numpy as np
from dense_ridge import dense_masks, standardised
from oracle import correlation


def cross_talk(images, templates):
    """R (image against template) and the largest excess of it over G (template against template)."""
    n = len(images)
    both = np.corrcoef(np.concatenate([np.reshape(images, (n, -1)), np.reshape(templates, (n, -1))]))
    r, g = both[n:, :n].T, both[n:, n:]
    return r, np.abs(r - g)[~np.eye(n, dtype=bool)].max()


def halves(shape):
    """Probe positions (y, x) of each fold: one half of the scan, whose other half its masks are read on."""
    middle = [round(n / 2) for n in shape]
    rows, columns = np.indices(shape)
    top, left = rows < middle[0], columns < middle[1]
    return {"top": top, "bottom": ~top, "left": left, "right": ~left}


def pearson(counts, templates, region):
    """R and excess of Pearson masks of all of the scan, images from D_hat."""
    used = np.ones(counts.shape[:2], bool)
    masks = correlation(counts, templates, used, region)
    d_hat, *_ = standardised(counts, used, region)
    return cross_talk(masks[:, region] @ d_hat.T, templates)


def held_out(counts, templates, region, penalties=None):
    """R (fold, image, template) and excess (fold): Pearson masks, or ridge masks of a penalty for each fold."""
    found = []
    for n, used in enumerate(halves(counts.shape[:2]).values()):
        if penalties is None:
            masks = correlation(counts, templates, used, region)
        else:
            masks = dense_masks(counts, templates, used, region.astype(float), penalties[n])
        _, mean, std = standardised(counts, used, region)
        rest = counts[~used][:, region].astype(np.float64) - mean[region]
        images = masks[:, region] @ (rest / np.where(std > 0, std, np.inf)[region]).T
        found.append(cross_talk(images, templates[:, ~used]))
    return np.array([r for r, _ in found]), np.array([excess for _, excess in found])
