"""Sentences name arguments in one form, and say them in the words of the place where they are read."""

from __future__ import annotations

import ast
import html
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import click
import public
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tdm_dask as tdm
from tdm_dask.axes import VALID_PATTERNS, VALID_PIXELS
from tdm_dask.cli import tdm as command_line
from tdm_dask.errors import InputError
from tdm_dask.recipe.recipe_file import as_key, errors_in_keys, load_recipe
from tdm_dask.session import option_words
from tdm_dask.words import arguments, in_place

PACKAGE = Path(tdm.__file__).parent
ARGUMENTS = public.arguments()
# What may stand bare in a sentence, if it has an underscore.
SHARED = public.options() | public.keys()
# Coordinates of counts are meant by their names, though methods of formats and reductions take them too.
NAMED = (ARGUMENTS | SHARED) - {VALID_PIXELS, VALID_PATTERNS}
# The command line's own words; a script that is written; the reference's own command.
OTHER_WORDS = {"cli.py", "session.py", "notebook.py", "reference.py"}
VERBS = "give|with|leave|set|by|drop|without|check"
HIDDEN = "\N{BULLET}"  # what a sentence only has when it is said


def words(module: ast.Module) -> Iterator[tuple[int, str]]:
    """Every text of a module that is more than a word, but for docstrings; what is put in when it is said is hidden."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(module)
        if isinstance(node, documented) and node.body and isinstance(node.body[0], ast.Expr)
    }
    inside = {id(part) for node in ast.walk(module) if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in ast.walk(module):
        if isinstance(node, ast.JoinedStr):
            text = "".join(part.value if isinstance(part, ast.Constant) else HIDDEN for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and not {id(node)} & (docstrings | inside):
            text = node.value
        else:
            continue
        if " " in text and not re.search("[<{]|^text/", text):  # no page, no style sheet
            yield node.lineno, text


def complaints(sentence: str) -> list[str]:
    """What in a sentence names an argument in another form than that which `words.arguments` finds."""
    said = sentence.replace(HIDDEN, "1").replace('"1"', "1").replace("(1, 1)", "1")
    found = []
    plain = re.sub(r"\btdm [a-z]+ .*", "", said)  # a whole command may be named
    if re.search(r"(?<![\w-])(?<!var\()--[a-z]", plain) and not said.startswith("--"):
        found.append("an option of the command line")
    known = [argument for argument in arguments(said) if argument.name in NAMED]
    outside = re.sub(r"\] [a-z_]+|\"[a-z_]+\"|'[a-z_]+'|\w\([^()]*\)", "", said)  # keys, quoted words, calls
    for name in filter(lambda name: "_" in name, NAMED):
        whole = len(re.findall(rf"(?<![\w.]){name}(?![\w(]|\.\w)", outside))
        if whole > sum(argument.name == name for argument in known):
            found.append(f"{name}, not as an argument")
        if re.search(rf"(?<![\w.]){name} \(?\d", outside):
            found.append(f"{name} and its value, not as {name}=...")
    for argument in known:
        if "=" not in argument.text and argument.name not in SHARED:
            found.append(f"{argument.name} without a value, though only Python has it")
    for name in re.findall(r"(?<![\w(\[,.?-])([a-z_]+)=(?!=)", outside):
        if name not in NAMED or name not in {argument.name for argument in known}:
            found.append(f"{name}=, which is no argument or has no value")
    one_word = "|".join(sorted((name for name in NAMED if "_" not in name), key=len, reverse=True))
    for name in re.findall(rf"\b(?:{VERBS}) ({one_word})(?=[,.;:)]| and | or | out\b)", said):
        if name not in PLAIN:
            found.append(f"{name}, not as {name}=...")
    return found


# Arguments that are words of a sentence as well, after such a verb.
PLAIN = {"sites", "templates", "counts", "vectors", "images", "name", "weights", "masks", "segments"}


@pytest.mark.parametrize("module", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_every_sentence_names_arguments_in_the_form_that_is_found(module):
    if module.name in OTHER_WORDS:
        return
    found = {
        f"{module.name}:{line}: {complaint}": sentence
        for line, sentence in words(ast.parse(module.read_text(encoding="utf-8")))
        for complaint in complaints(sentence)
    }
    assert found == {}


@pytest.mark.parametrize(
    "sentence",
    [
        "Give it by --scan-shape.",
        "The file is there already; replace it with overwrite.",
        f"The file has 3 frames, but scan_shape ({HIDDEN}, {HIDDEN}) was given.",
        f"The file has 3 frames, but scan_shape {HIDDEN} was given.",
        "The strain is too large; lower max_strain.",
        "Give scan_shape=(ny, nx), please.",
        "Give colours=3, please.",
        "There are several scans; leave frame out.",
        "The energy is not known; give energy, or calibrate.",
        "Open it with detector_first (--detector-first).",
    ],
)
def test_another_form_is_complained_of(sentence):
    assert complaints(sentence)


# The command line


def context_of(name: str, **given) -> click.Context:
    group = click.Context(command_line, info_name="tdm")
    context = click.Context(command_line.commands[name], info_name=name, parent=group)
    context.params = given
    return context


EVERY_OPTION = [
    (command.name, part)
    for command in command_line.commands.values()
    for part in command.params
    if isinstance(part, click.Option)
]


@pytest.mark.parametrize(("command", "option"), EVERY_OPTION, ids=lambda part: getattr(part, "name", part))
def test_every_option_is_said_in_place_of_its_argument(command, option):
    name = option.flag_value if isinstance(option.flag_value, str) else option.name
    said = option_words(context_of(command))(f"Give {name}=..., or leave it out.")
    assert said == f"Give {option.opts[0]}, or leave it out."
    if "_" in name:
        assert option_words(context_of(command))(f"Give {name} as well.") == f"Give {option.opts[0]} as well."


VALUES = [
    ("convert", "scan_shape=(64, 128)", "--scan-shape 64x128"),
    ("convert", "flyback=8", "--flyback 8"),
    ("convert", "overwrite=True", "--overwrite"),
    ("convert", "resume=True", "--resume"),
    ("convert", "allow_partial=True", "--allow-partial"),
    ("convert", "allow_partial=False", "no --allow-partial"),
    ("convert", "detector_first=True", "--detector-first"),
    ("convert", "detector_first=False", "--scan-first"),
    ("convert", 'scan_step="0.32 Å"', '--scan-step "0.32 Å"'),
    ("convert", 'scan_step=("0.32 Å", "0.33 Å")', '--scan-step "0.32 Å, 0.33 Å"'),
    ("convert", "dtype='uint16'", "--dtype uint16"),
    ("convert", "compression=None", "--compression none"),
    ("convert", 'address="tcp://node:8786"', "--scheduler tcp://node:8786"),
    ("info", 'frame="all"', "--frame all"),
    ("calibrate", "centre=(12.5, 13.0)", "--centre 12.5 13.0"),
    ("verify", "overwrite=True", "--overwrite"),  # of tdm convert, to which the sentence leads
    ("image", "semi_angle", "--semi-angle"),
    ("image", "bin=2", "--bin 2"),
    ("image", "persist=False", "persist=False (in Python)"),
]


@pytest.mark.parametrize(("command", "python", "said"), VALUES)
def test_values_are_written_as_the_option_takes_them(command, python, said):
    assert option_words(context_of(command))(f"Give {python}.") == f"Give {said}."


@pytest.mark.parametrize(("command", "python", "said"), [v for v in VALUES if v[0] == "convert" and "=" in v[1]])
def test_what_is_said_can_be_given(command, python, said):
    """The option as it is said, parsed, is the value that the sentence had."""
    (argument,) = arguments(python)
    wanted = argument.value if argument.name not in ("overwrite", "resume") else argument.name
    if said.startswith("no "):
        return
    parsed = command_line.commands[command].make_context(command, ["a", "b", *shlex.split(said)])
    name = "start" if argument.name in ("overwrite", "resume") else argument.name
    assert parsed.params[name] == ("none" if wanted is None else wanted)


def test_where_a_recipe_was_given_its_keys_are_said():
    of_recipe = option_words(context_of("run", recipe=Path("recipe.toml")))
    assert of_recipe("Give scan_shape=(3, 4) or overwrite=True.") == "Give [source] scan_shape = [3, 4] or --overwrite."
    assert of_recipe("[source] gap is 3; give semi_angle.") == "[source] gap is 3; give [calibration] semi_angle."
    assert option_words(context_of("view", recipe=None))("Give scan_step.") == "Give --scan-step."
    assert option_words(None)("Give scan_step.") == "Give scan_step."


PATHS = ("/data/scan_shape/a.mib", "scan_shape.mib", '"scan_shape"', "tdm_dask.bin", "axis(frame=2)", "[source] gap")


@pytest.mark.parametrize("text", PATHS)
def test_what_only_looks_like_an_argument_stays(text):
    sentence = f"There is {text}, and so on."
    assert option_words(context_of("convert"))(sentence) == sentence


@given(st.text("abc_=(), 1.\"'[]-/x", max_size=40))
def test_a_sentence_without_arguments_is_not_changed(text):
    assert in_place(text, lambda argument: None) == text
    assert in_place(text, lambda argument: argument.text) == text


PARTS = ("frame=3.mib", "scan_step=0.3.mib", "gap=2_a.mib", "gap=2/a.mib", "x/gap=2", "gap=2nm", "scan_shape.mib")


@pytest.mark.parametrize("name", PARTS)
def test_a_part_of_a_word_is_no_argument(name):
    assert arguments(f"There is {name}, and so on.") == []
    assert arguments(f"{name}: {name}") == []


def others(told: str) -> InputError:
    """An error of this package that tells what another's has said."""
    try:
        try:
            raise ValueError(told)
        except ValueError as error:
            raise InputError(f"It fails with ValueError: {error}; leave gap=... out.") from None
    except InputError as error:
        return error


@pytest.mark.parametrize("told", ["shape=(3, 4) is wrong", "frame=3", "give frame=3,\nor gap=2"])
def test_what_anothers_exception_says_stays_where_an_error_tells_it(told):
    said = option_words(context_of("convert"))
    assert said(others(told)) == f"It fails with ValueError: {told}; leave --gap out."
    assert said(ValueError(told)) == f"ValueError: {' '.join(told.split())}."
    with pytest.raises(InputError, match=re.escape(f"{told}; leave [source] gap out.")), errors_in_keys():
        raise others(told)


def test_texts_of_a_recipe_stay_as_they_are(tmp_path):
    table = {"source": {"path": "a gap=3 b.mib"}, "detectors": {"BF": "disk:9"}, "notes": "frame=2"}
    file = tmp_path / "recipe frame=4 .toml"
    file.write_text('[source]\npath = "a gap=3 b.mib"\n[detectors]\nBF = "disk:9"\n', encoding="utf-8")
    for recipe in (table, file, str(file), load_recipe(table)):
        with pytest.raises(InputError, match=r"^a gap=3 b.mib needs \[source\] gap\.$"), errors_in_keys(recipe):
            raise InputError("a gap=3 b.mib needs gap=....")
    with pytest.raises(InputError, match=r"recipe frame=4 .toml"), errors_in_keys(file):
        raise InputError(f"{file} is wrong.")


def test_a_path_is_looked_for_as_a_whole_word():
    said = option_words(context_of("convert", source=Path("scan.mib"), store=Path("a.zarr")))
    assert said("Give scan_shape.") == "Give --scan-shape."
    said = option_words(context_of("convert", source=Path("frame=3"), store=Path("scan_shape.zarr")))
    assert said("frame=3: give frame=31 and scan_shape.") == "frame=3: give --frame 31 and --scan-shape."


# Recipes


@pytest.mark.parametrize(
    ("python", "said"),
    [
        ("semi_angle", "[calibration] semi_angle"),
        ("allow_partial=True", "[source] allow_partial = true"),
        ("scan_shape=(3, 4)", "[source] scan_shape = [3, 4]"),
        ('scan_step="0.3 Å"', '[calibration] scan_step = "0.3 Å"'),
        ("frame=...", "[source] frame"),
        ("overwrite=True", "overwrite=True"),
    ],
)
def test_an_error_of_a_recipe_names_its_keys(python, said):
    with pytest.raises(InputError, match=re.escape(f"Give {said} first.")), errors_in_keys():
        raise InputError(f"Give {python} first.")


@pytest.mark.parametrize("key", sorted(public.keys()))
def test_every_key_is_said_with_its_section(key):
    assert re.fullmatch(rf"Give \[[a-z]+\] {key}\.", in_place(f"Give {key}=... now.", as_key).replace(" now", ""))


# The page


def test_the_page_says_the_labels_of_its_controls():
    pytest.importorskip("panel")
    from tdm_dask.viewer.tab import Tab

    page = SimpleNamespace(controls={"detector_region": SimpleNamespace(label="Detector region (mrad)")})
    sentence = "Choose a smaller detector_region, or persist=False, or a larger scan_region."
    said = in_place(sentence, lambda argument: Tab._by_label(page, argument))
    assert said == 'Choose a smaller "Detector region", or persist=False (in Python), or a larger scan_region.'


def test_the_page_leaves_paths_and_what_others_say_as_they_are():
    pytest.importorskip("panel")
    from tdm_dask.viewer.tab import Tab

    class Page(Tab):
        def __init__(self):
            self.controls = {"gap": SimpleNamespace(label="Gap")}
            self.message = SimpleNamespace(object="")
            self.kept = {"a gap=3 b.zarr"}

        take = look = set_full = current_image = current_detector = None

    page = Page()

    def shown() -> str:
        return html.unescape(re.sub("<[^>]*>", "", page.message.object))

    page.tell(InputError("a gap=3 b.zarr needs gap=... there."))
    assert shown() == 'a gap=3 b.zarr needs "Gap" there.'
    page.tell(others("shape=(3, 4)"))
    assert shown() == 'It fails with ValueError: shape=(3, 4); leave "Gap" out.'
    page.tell(ValueError("gap=3"))
    assert shown() == "ValueError: gap=3."
    page.note("a gap=3 b.zarr needs gap=2.", "Or not.")
    assert shown() == 'a gap=3 b.zarr needs "Gap" 2. Or not.'
    page.say("Saved gap=3.")
    assert shown() == "Saved gap=3."
