"""The API reference: what docstrings say is complete, their examples run, and its pages need no network."""

from __future__ import annotations

import builtins
import doctest
import importlib
import inspect
import posixpath
import re
from typing import Any

import pytest

import tdm_dask as tdm
from tdm_dask import errors, plot, reference

PUBLIC: dict[str, Any] = {
    **{f"tdm_dask.{name}": getattr(tdm, name) for name in tdm._HOME},
    **{f"tdm_dask.plot.{name}": getattr(plot, name) for name in plot.__all__},
    **{f"tdm_dask.hyperspy.{name}": getattr(tdm.hyperspy, name) for name in tdm.hyperspy.__all__},
}
SECTIONS = (
    *("Parameters", "Attributes", "Returns", "Yields", "Raises", "Warns", "Notes", "Examples", "References"),
    *("Methods", "See Also"),
)


def sections(documented: Any) -> dict[str, list[str]]:
    """The lines of each section of a docstring by its heading; those before the first by nothing."""
    lines = (inspect.getdoc(documented) or "").splitlines()
    found: dict[str, list[str]] = {"": []}
    heading = ""
    for n, line in enumerate(lines):
        if n + 1 < len(lines) and line.strip() and re.fullmatch("-{3,}", lines[n + 1]):
            heading = line
            found[heading] = []
        elif not re.fullmatch("-{3,}", line):
            found[heading].append(line)
    return found


def entries(lines: list[str]) -> list[str]:
    """The names that a section defines: all before the colon of lines that are not indented."""
    heads = [line.split(" : ")[0] for line in lines if line and not line[0].isspace()]
    return [name.strip() for head in heads for name in head.split(",")]


@pytest.mark.parametrize("name", PUBLIC)
def test_an_example_runs(name):
    """That it gives what it says is what running the doctests tells."""
    examples = doctest.DocTestParser().get_examples("\n".join(sections(PUBLIC[name]).get("Examples", [])))
    run = [example for example in examples if not example.options.get(doctest.SKIP)]
    # A class to derive from is named as the base of another.
    assert any(re.search(rf"\b{name.split('.')[-1]}[()]", example.source) for example in run)


@pytest.mark.parametrize("name", PUBLIC)
def test_sections_are_known_and_say_all_of_the_signature(name):
    documented = PUBLIC[name]
    found = sections(documented)
    assert found[""][0].strip().endswith((".", ".)"))
    assert set(found) - {""} <= set(SECTIONS)
    expected = [
        {p.VAR_POSITIONAL: "*", p.VAR_KEYWORD: "**"}.get(p.kind, "") + p.name
        for p in inspect.signature(documented).parameters.values()
    ]
    if inspect.isclass(documented):
        given = entries(found.get("Parameters", []) + found.get("Attributes", []))
        assert set(expected) <= set(given)
        return
    assert sorted(entries(found.get("Parameters", []))) == sorted(expected)
    if inspect.signature(documented).return_annotation not in (None, "None"):
        assert {"Returns", "Yields"} & set(found)


@pytest.mark.parametrize("name", PUBLIC)
def test_what_is_raised_are_exceptions_of_this_package_or_of_python(name):
    for raised in entries(sections(PUBLIC[name]).get("Raises", [])):
        error = getattr(errors, raised, None) or getattr(builtins, raised)
        assert issubclass(error, Exception)


def test_every_module_with_a_public_name_is_a_room():
    rooms = [room for several in reference.ROOMS.values() for room in several]
    assert set(tdm._HOME.values()) | tdm._MODULES | {"plot"} <= set(rooms)
    assert len(rooms) == len(set(rooms))
    for room in rooms:
        introduction = inspect.getdoc(importlib.import_module(f"tdm_dask.{room}"))
        assert introduction
        assert introduction.split("\n\n")[0].endswith(".")


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    pytest.importorskip("pdoc")
    pytest.importorskip("latex2mathml")
    folder = tmp_path_factory.mktemp("reference")
    reference.main([str(folder)])
    return {str(path.relative_to(folder)): path.read_text(encoding="utf-8") for path in folder.rglob("*.html")}


@pytest.mark.long
def test_every_public_name_has_a_place_in_its_room_and_in_the_contents(pages):
    for name, home in tdm._HOME.items():
        page = f"tdm_dask/{home.replace('.', '/')}.html"
        assert f'id="{name}"' in pages[page]
        assert f'href="{page}#{name}"' in pages["tdm_dask.html"]
    for name in plot.__all__:
        assert f'id="{name}"' in pages["tdm_dask/plot.html"]


@pytest.mark.long
def test_pages_ask_for_nothing_from_elsewhere_and_lead_to_pages_that_are_there(pages):
    for name, page in pages.items():
        assert not re.findall(r"""(?:src|srcset)=["'](?:https?:)?//|@import|url\(["']?http""", page)
        plain = re.sub("<script.*?</script>", "", page, flags=re.DOTALL)
        for target, anchor in re.findall(r'href="([^"#:]*)(?:#([^"]*))?"', plain):
            path = posixpath.normpath(f"{posixpath.dirname(name)}/{target}").lstrip("/") if target else name
            assert path in pages
            hidden = anchor.startswith("_")  # a base class, which pdoc names all the same
            assert not anchor or hidden or f'id="{anchor}"' in pages[path]


@pytest.mark.long
def test_equations_are_drawn_without_a_script(pages):
    assert "<math" in pages["tdm_dask/masks/derivation.html"]
    assert not [name for name, page in pages.items() if "$$" in page]


def test_without_its_tool_the_reference_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "pdoc", None)
    with pytest.raises(errors.InputError, match=r"\[docs\]"):
        reference.build(tmp_path)
