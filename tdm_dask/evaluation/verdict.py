"""What the data say about the places that a template assumes: a verdict for each, with the numbers that it rests on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import xarray as xr
from scipy.stats import norm

from ..axes import TEMPLATE, check_counts, quantity
from ..columns.sites import sites_by_kind
from ..masks.templates import gaussian_template
from .null import null_distribution
from .offsets import offset_scan

Verdict = Literal["supported", "not distinguished from other offsets", "not supported"]

# How the response at the assumed place is held against that at others: what is moved, in words.
WAYS = {
    "": "",
    "own_": ", of what no other kind explains,",
    "together_": ", of all kinds together,",
}


@dataclass(frozen=True)
class Evidence:
    """What the data say about templates.

    Attributes
    ----------
    table : Dataset, dim (template,)
        `verdict`; `rank`, `margin` and `margin_error`, of the response, the `own_` and the `together_` one, and
        `image_rank`, as `offset_scan` gives them; `p` of the norm and `significant`, the number of detector pixels that
        are, as `null_distribution` gives them.
    offsets : Dataset
        What `tdm_dask.offset_scan` found, of the templates that respond more strongly than random ones; empty where
        none does. Their numbers in the table are NaN for the others.
    null : Dataset
        What `tdm_dask.null_distribution` found.
    """

    table: xr.Dataset
    offsets: xr.Dataset
    null: xr.Dataset

    def __str__(self) -> str:
        return "\n".join(self.sentences.values())

    @property
    def sentences(self) -> dict[str, str]:
        """The verdict on each template in words, with its numbers."""
        return {str(name): self._sentence(self.table.sel({TEMPLATE: name})) for name in self.table[TEMPLATE].values}

    @property
    def dataset(self) -> xr.Dataset:
        """All of it as one Dataset, with `sentence` (template,): NaN for templates of which offsets have nothing."""
        names = self.table[TEMPLATE].values
        offsets = self.offsets.reindex({TEMPLATE: names}) if self.offsets.variables else self.offsets
        both = self.null.assign({name: self.table[name] for name in self.table.data_vars if name not in self.null})
        words = np.array(list(self.sentences.values()), dtype=object).astype(str)
        # The table has the number of significant pixels under the name of their map.
        rest = offsets.drop_vars(list(both.data_vars), errors="ignore")
        sentence = (TEMPLATE, words, {"long_name": "verdict in words"})
        return both.merge(rest, combine_attrs="override").assign(sentence=sentence)

    def _sentence(self, row: xr.Dataset) -> str:
        draws, rate = self.null.attrs["draws"], self.null.attrs["rate"]
        name, verdict = (str(row[of].item()) for of in (TEMPLATE, "verdict"))
        p = float(row["p"])
        chance = f"of {draws} templates of random sites {_part(p, draws)} responded as strongly (p = {p:.2g})"
        if verdict == "not supported":
            return f"{name}: {verdict}; {chance}; a p above {rate:g} may well be chance."
        rivals = _rivals(row, rate)
        if not rivals:
            margin = float(min(row[f"{way}margin"] for way in WAYS))
            elsewhere = f"no other place in the cell responds as strongly, the next one at least {_less(margin)} less"
            return f"{name}: {verdict}; {elsewhere}; {chance}."
        way = rivals[0]
        rank, margin = float(row[f"{way}rank"]), float(row[f"{way}margin"])
        elsewhere = (
            f"{rank:.1%} of the other places in the cell respond{WAYS[way]} at least as strongly"
            if rank > 0
            else f"the next place responds{WAYS[way]} {_less(margin)} less, which may be noise"
        )
        return f"{name}: {verdict}; {elsewhere}; {chance}."


def _part(p: float, draws: int) -> str:
    number = round(p * (draws + 1)) - 1
    return "none" if number == 0 else str(number)


def _less(margin: float) -> str:
    return f"{1 - 1 / (1 + margin):.1%}"


def _verdict(row: xr.Dataset, rate: float) -> Verdict:
    if float(row["p"]) > rate:
        return "not supported"
    return "not distinguished from other offsets" if _rivals(row, rate) else "supported"


def _rivals(row: xr.Dataset, rate: float) -> list[str]:
    """The ways in which another place may respond as strongly as the assumed one."""
    least = norm.ppf(1 - rate)
    return [way for way in WAYS if not float(row[f"{way}margin"]) > least * float(row[f"{way}margin_error"])]


def evidence(
    counts: xr.DataArray,
    sites: Mapping[str, npt.ArrayLike],
    cell: Any,
    *,
    sigma: float | str,
    detector_region: Any = None,
    scan_region: Any = None,
    draws: int = 200,
    rate: float = 0.05,
    seed: int = 0,
) -> Evidence:
    r"""Whether the data single out the sites of each kind, among all other places in the cell and against random ones.

    - "not supported": templates of random sites, of the same number and spacing, respond as strongly in more than a
      part `rate` of the draws.
    - "not distinguished from other offsets": they do not, but some other place in the cell may respond as strongly.
    - "supported": neither. The assumed place responds more strongly than every other by more than counting noise gives
      with probability `rate`, in three ways: the template as it is; the part of it that the other kinds, at their
      places, do not explain; and all kinds moved together.

    The response is the norm of rho over the detector region. The second way is needed because a template may be singled
    out where it lies on columns of another kind (Ti moved onto Pb responds more strongly than at its own place), the
    third because all sites may be wrong together. So give every kind of column that there is: of a single kind, all
    three are the same, and the strongest place is taken for its own whatever is there.

    How much an image looks like its template decides nothing: in a perfect crystal it does so for sites where no atom
    is. "Supported" says that the data know of this place; not which atoms are there, nor how far a measured
    displacement is a copy of the template (`tdm_dask.template_influence`).

    Parameters
    ----------
    counts : DataArray, dims (y, x, ky, kx)
        With a scan in angstrom.
    sites : mapping of str to array (n, 2)
        (y, x) in angstrom by kind, the columns just outside the scan among them.
    cell : pair of float, or array (2, 2)
        As in `tdm_dask.offset_scan`; the sites must repeat with it, but for those of kinds that are "not supported".
    sigma : float (angstrom) or str
        Width of the Gaussians.
    detector_region, scan_region
        As in `tdm_dask.correlate`.
    draws, rate, seed
        As in `tdm_dask.null_distribution`.

    Returns
    -------
    Evidence
        In memory: this reads twice, now; once where no kind is left after the random sites.

    Raises
    ------
    InputError, TemplateError, SiteError, RegionError, CountsError, MemoryLimitError
        As in `tdm_dask.offset_scan` and `tdm_dask.null_distribution`.

    Examples
    --------
    >>> from tdm_dask.axes import axis_coordinate, label_counts
    >>> steps = {d: axis_coordinate(d, 24, 0.25, 0.0, "angstrom") for d in ("y", "x")}
    >>> sites = {"O": [(1 + 2 * i, 1 + 2 * j) for i in range(3) for j in range(3)]}
    >>> scan = xr.DataArray(np.zeros((24, 24)), steps, ("y", "x"))
    >>> mean = 20 + 30 * gaussian_template(scan, sites["O"], sigma=0.4).values[:, :, None, None] * [[1.0, 0.0]]
    >>> counts = label_counts(np.random.default_rng(0).poisson(mean).astype(np.uint16), steps)
    >>> print(evidence(counts, sites, (2.0, 2.0), sigma=0.4, draws=40).table["verdict"].values)
    ['supported']
    """
    counts = check_counts(counts)
    kinds, _ = sites_by_kind(dict(sites))
    width = quantity(sigma, "angstrom", "sigma")
    regions = {"detector_region": detector_region, "scan_region": scan_region}
    null = null_distribution(counts, kinds, sigma=width, draws=draws, rate=rate, seed=seed, **regions)
    table = null[["p"]].assign(significant=null["significant"].sum(("ky", "kx")).variable).reset_coords(drop=True)
    # Random sites need not repeat with the cell.
    left = {name: places for name, places in kinds.items() if null["p"].sel({TEMPLATE: name}) <= rate}
    offsets = xr.Dataset()
    if left:
        offsets = offset_scan(counts, gaussian_template(counts, left, sigma=width), cell, **regions)
        numbers = offsets[[str(name) for name in offsets if str(name).endswith(("rank", "margin", "margin_error"))]]
        table = table.merge(numbers.reset_coords(drop=True), join="left")
    verdicts = [_verdict(table.sel({TEMPLATE: name}), rate) for name in kinds]
    table["significant"].attrs = {"long_name": "number of significant pixels", "units": "1"}
    table["verdict"] = (TEMPLATE, np.array(verdicts, dtype=object).astype(str), {"long_name": "verdict"})
    return Evidence(table, offsets, null)
