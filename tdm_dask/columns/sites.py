"""Sites of atom columns: (y, x) positions in angstrom, by kind, and the files that hold them."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..axes import quantity
from ..errors import SiteError

Array = npt.NDArray[np.float64]
Sites = npt.ArrayLike | Mapping[str, npt.ArrayLike]


def read_sites(path: str | Path) -> dict[str, Array]:
    """Sites from a file.

    Parameters
    ----------
    path : str or pathlib.Path
        Either CSV with a header, columns ``y`` and ``x`` in angstrom and, optionally, ``kind``; or JSON, a
        mapping from kind to [y, x] pairs in angstrom, or ``{"unit": "nm", "sites": {...}}``.

    Returns
    -------
    dict of str to array (n, 2)
        (y, x) positions in angstrom by kind, in the file's order; the kind is "sites" where the file names
        none.

    Raises
    ------
    SiteError
        If the file cannot be read; the sentence names the line (CSV) or the entry (JSON).

    Examples
    --------
    >>> import os, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = os.path.join(folder, "sites.csv")
    ...     write_sites(path, {"Li": [(0.0, 1.5)]})
    ...     read_sites(path)
    {'Li': array([[0. , 1.5]])}
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise SiteError(f"The sites in {path} cannot be read ({error}); expected a CSV or JSON text file.") from None
    sites = _from_json(path, text) if path.suffix.lower() == ".json" else _from_csv(path, text)
    if not any(len(positions) for positions in sites.values()):
        raise SiteError(f"{path} holds no sites; expected at least one (y, x) position.")
    return sites


def write_sites(path: str | Path, sites: Sites) -> None:
    """Write sites as JSON where the name ends so, else as CSV, in angstrom, for `read_sites`.

    Parameters
    ----------
    path : str or pathlib.Path
        The file; it is replaced where it exists.
    sites : array (n, 2), or mapping of str to array (n, 2)
        (y, x) positions in angstrom.

    Raises
    ------
    SiteError
        If sites are not finite (n, 2) positions.

    Examples
    --------
    >>> import os, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = os.path.join(folder, "sites.json")
    ...     write_sites(path, {"Li": [(0.0, 1.5)]})
    ...     print(open(path).read())
    {"unit": "angstrom", "sites": {"Li": [[0.0, 1.5]]}}
    """
    path = Path(path)
    kinds, _ = sites_by_kind(sites)
    if path.suffix.lower() == ".json":
        listed = {kind: positions.tolist() for kind, positions in kinds.items()}
        path.write_text(json.dumps({"unit": "angstrom", "sites": listed}, ensure_ascii=False), encoding="utf-8")
        return
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("kind", "y", "x"))
        for kind, positions in kinds.items():
            writer.writerows((kind, repr(y), repr(x)) for y, x in positions.tolist())


def sites_by_kind(sites: Sites) -> tuple[dict[str, Array], bool]:
    """Sites by kind as float64 arrays, and whether they came without kinds."""
    single = not isinstance(sites, Mapping)
    kinds = {"sites": sites} if not isinstance(sites, Mapping) else {str(k): v for k, v in sites.items()}
    if not kinds:
        raise SiteError("The mapping of sites is empty; expected at least one kind of atom column.")
    checked = {}
    for kind, values in kinds.items():
        try:
            positions = np.asarray(values, dtype=np.float64)
        except (TypeError, ValueError):
            raise SiteError(f'The sites of "{kind}" are not numbers; expected (y, x) positions in angstrom.') from None
        if positions.size == 0:
            raise SiteError(f'There are no sites of "{kind}"; expected at least one (y, x) position.')
        if positions.ndim != 2 or positions.shape[1] != 2:
            raise SiteError(
                f'The sites of "{kind}" have shape {positions.shape}; expected (n, 2), as (y, x) positions.'
            )
        if not np.isfinite(positions).all():
            bad = int((~np.isfinite(positions)).any(axis=1).sum())
            raise SiteError(f'{bad} of {len(positions)} sites of "{kind}" are not finite; remove them.')
        checked[kind] = positions
    return checked, single


def _from_csv(path: Path, text: str) -> dict[str, Array]:
    reader = csv.reader(text.splitlines())
    rows = ((reader.line_num, [cell.strip() for cell in row]) for row in reader)
    rows = ((number, row) for number, row in rows if any(row) and not row[0].startswith("#"))
    number, header = next(rows, (1, []))
    header = [name.lower() for name in header]
    if not {"y", "x"} <= set(header) or not set(header) <= {"kind", "y", "x"} or len(set(header)) < len(header):
        raise SiteError(
            f'Line {number} of {path} is "{",".join(header)}"; expected a header with the columns kind, y, x '
            "(angstrom; kind may be left out)."
        )
    sites: dict[str, list[tuple[float, float]]] = {}
    for number, row in rows:
        cells = dict(zip(header, row, strict=False))
        try:
            position = float(cells["y"]), float(cells["x"])
        except (KeyError, ValueError):
            position = np.nan, np.nan
        kind = cells.get("kind", "sites")
        if len(row) != len(header) or not np.isfinite(position).all() or not kind:
            raise SiteError(
                f'Line {number} of {path} is "{",".join(row)}"; expected {",".join(header)} with finite numbers.'
            )
        sites.setdefault(kind, []).append(position)
    return {kind: np.array(positions) for kind, positions in sites.items()}


def _from_json(path: Path, text: str) -> dict[str, Array]:
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise SiteError(f"Line {error.lineno} of {path} is not JSON ({error.msg}).") from None
    scale = 1.0
    if isinstance(content, dict) and "sites" in content and set(content) <= {"unit", "sites"}:
        scale = quantity(f"1 {content.get('unit', 'angstrom')}", "angstrom", f"The unit in {path}")
        content = content["sites"]
    if isinstance(content, list):
        content = {"sites": content}
    if not isinstance(content, dict):
        raise SiteError(f"{path} holds {type(content).__name__}; expected a mapping from kind to [y, x] pairs.")
    sites = {}
    for kind, entries in content.items():
        if not isinstance(entries, list):
            raise SiteError(f'"{kind}" in {path} is not a list; expected [y, x] pairs.')
        for number, entry in enumerate(entries, start=1):
            pair = entry if isinstance(entry, list) else []
            plain = [isinstance(v, (int, float)) and not isinstance(v, bool) and bool(np.isfinite(v)) for v in pair]
            if len(plain) != 2 or not all(plain):
                raise SiteError(
                    f'Entry {number} of "{kind}" in {path} is {entry!r}; expected a [y, x] pair of finite numbers.'
                )
        sites[kind] = scale * np.array(entries, dtype=np.float64).reshape(-1, 2)
    return sites
