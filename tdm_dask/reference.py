"""The API reference as web pages that need no network: ``python -m tdm_dask.reference FOLDER``.

It takes the packages of the extra "docs": pdoc makes the pages, one for each room, from the docstrings; latex2mathml
turns equations into what browsers draw themselves.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from .errors import InputError

# Rooms by subject, in the order of the wings.
ROOMS: Mapping[str, tuple[str, ...]] = {
    "Data in and out": (
        *("counts.opening", "counts.arrival", "conversion.conversion", "reading.store", "axes", "signals.conversion"),
    ),
    "A format of your own": ("sources.plugins", "sources.frame_files", "sources.vendor", "reading.blocks"),
    "Counts": ("counts.statistics", "counts.regions", "counts.thinning", "counts.reduction"),
    "The detector": (
        *("detector.calibration", "detector.descan", "detector.conventional_masks", "detector.radial_profiles"),
    ),
    "Atom columns": (
        *("columns.finding", "columns.lattice", "columns.crystal", "columns.registration"),
        *("columns.refinement", "columns.displacement"),
    ),
    "Masks and their images": (
        *("masks.templates", "masks.derivation", "masks.ridge", "masks.symmetry"),
        *("masks.proxies", "masks.live", "masks.aperture"),
    ),
    "What is seen without a template": (
        *("imaging.components", "imaging.matrix_view", "imaging.deflection", "imaging.phase"),
        *("imaging.line_profiles", "imaging.thickness"),
    ),
    "What a mask is evidence for": (
        *("evaluation.cross_talk", "evaluation.held_out", "evaluation.verdict", "evaluation.offsets"),
        *("evaluation.null", "evaluation.influence", "evaluation.noise", "evaluation.counting_noise"),
        "evaluation.occupancy",
    ),
    "Simulation": ("simulation.multislice", "simulation.specimens", "simulation.defects"),
    "Whole analyses and where they compute": (
        *("recipe.run", "report.writing", "viewer.opening", "cluster.schedulers", "cluster.progress"),
    ),
    "HyperSpy, figures and errors": ("hyperspy", "plot", "accessor", "errors"),
}
_PACKAGE = __package__
_NEEDED = 'The API reference needs {}, which is not installed: pip install ".[docs]".'


def build(folder: str | Path) -> Path:
    """Write the API reference, one page for each room, and a page of all public names.

    Parameters
    ----------
    folder : path
        Made where it is missing; pages of an earlier build are replaced.

    Returns
    -------
    Path
        The page to open.

    Raises
    ------
    InputError
        If pdoc or latex2mathml is not installed.

    Examples
    --------
    >>> import tempfile
    >>> build(tempfile.mkdtemp()).name  # doctest: +SKIP
    'tdm_dask.html'
    """
    try:
        from pdoc import doc, render
    except ImportError:
        raise InputError(_NEEDED.format("pdoc")) from None
    rooms = [f"{_PACKAGE}.{room}" for several in ROOMS.values() for room in several]
    modules = {_PACKAGE: doc.Module(importlib.import_module(_PACKAGE))}
    modules |= {name: doc.Module(importlib.import_module(name)) for name in rooms}
    for module in modules.values():
        # What pdoc found by itself, with the public names first; of the package, all are in its rooms.
        found = {} if module.modulename == _PACKAGE else _public_first(module.modulename, module.members)
        module.__dict__["members"] = found
    modules[_PACKAGE].__dict__["submodules"] = []
    modules[_PACKAGE].__dict__["docstring"] = f"{modules[_PACKAGE].docstring}\n\n{_contents()}"
    render.configure(docformat="numpy", show_source=False, include_undocumented=False, footer_text=_PACKAGE)
    to_markdown = render.env.filters["to_markdown"]
    render.env.filters["to_markdown"] = _with_links_and_equations(to_markdown)
    try:
        for name, module in modules.items():
            page = Path(folder, *name.split(".")).with_suffix(".html")
            page.parent.mkdir(parents=True, exist_ok=True)
            page.write_text(render.html_module(module, modules), encoding="utf-8")
        Path(folder, "search.js").write_text(render.search_index(modules), encoding="utf-8")
        Path(folder, "index.html").write_text(render.html_index(modules), encoding="utf-8")
    finally:
        render.env.filters["to_markdown"] = to_markdown
    return Path(folder, f"{_PACKAGE}.html")


def public_names(room: str) -> list[str]:
    """Names of a room, such as "masks", that are the package's own or that the room says are public, in order."""
    import tdm_dask

    module = importlib.import_module(f"{_PACKAGE}.{room}")
    own = [name for name, home in tdm_dask._HOME.items() if home == room]
    return [*own, *(name for name in getattr(module, "__all__", ()) if name not in own)]


def _public_first(module: str, members: Mapping[str, Any]) -> dict[str, Any]:
    first = [name for name in public_names(module.removeprefix(f"{_PACKAGE}.")) if name in members]
    return {name: members[name] for name in (*first, *(n for n in members if n not in first))}


def _contents() -> str:
    """The public names by room, as Markdown."""
    lines = []
    for heading, rooms in ROOMS.items():
        lines += [f"## {heading}", ""]
        for room in rooms:
            module = importlib.import_module(f"{_PACKAGE}.{room}")
            page = f"{_PACKAGE}/{room.replace('.', '/')}.html"
            lines += [f"**[{_PACKAGE}.{room}]({page})**: {_first_line(module)}", ""]
            rows = [
                f"- [{name}]({page}#{name}): {_first_line(getattr(module, name))}"
                for name in public_names(room)
                if inspect.isroutine(getattr(module, name)) or inspect.isclass(getattr(module, name))
            ]
            lines += [*rows, ""]
    return "\n".join(lines)


def _first_line(of: Any) -> str:
    return (inspect.getdoc(of) or "").split("\n\n")[0].replace("\n", " ")


def _with_links_and_equations(to_markdown: Any) -> Any:
    """pdoc's own filter, after which names of the package lead to their rooms and equations are MathML."""
    import tdm_dask

    def home(match: re.Match[str]) -> str:
        room = tdm_dask._HOME.get(match[1])
        return match[0] if room is None else f"`{_PACKAGE}.{room}.{match[1]}"

    def converted(context: Any, text: str) -> str:
        found = re.sub(rf"`{_PACKAGE}\.(\w+)", home, to_markdown(context, text))
        found = re.sub(r"\$\$(.+?)\$\$", lambda m: f"\n\n{_mathml(m[1], 'block')}\n\n", found, flags=re.DOTALL)
        return re.sub(r"\\\\\( (.+?) \\\\\)", lambda m: _mathml(m[1], "inline"), found)

    import jinja2

    return jinja2.pass_context(converted)


def _mathml(latex: str, display: str) -> str:
    try:
        from latex2mathml.converter import convert
    except ImportError:
        raise InputError(_NEEDED.format("latex2mathml")) from None
    return str(convert(" ".join(latex.split()), display=display))


def main(arguments: Iterable[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog=f"python -m {_PACKAGE}.reference", description=_first_line(build))
    parser.add_argument("folder", help="where the pages go")
    folder = parser.parse_args(None if arguments is None else list(arguments)).folder
    try:
        print(build(folder))
    except InputError as error:
        parser.exit(2, f"{error}\n")


if __name__ == "__main__":
    main()
