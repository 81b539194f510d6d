"""README and pages as their reader uses them: every block, in order, in a clean folder, with the package installed.

    reader = Reader(tmp_path / "work", installed(tmp_path / "installed"))
    reader.follow(README)
    assert reader.differently == {...}  # what was not done as it stands, and what was done instead

A block of `sh` is taken command by command; one of `python` runs as a script of its own. A block is kept as the file
that the paragraph before it names, such as `recipe.toml`. What a test cannot do as it stands has a case of its own in
`Reader.command`, and is listed.
"""

from __future__ import annotations

import http.cookiejar
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import tomllib
import urllib.request
import venv
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import tdm_dask

ROOT = Path(__file__).resolve().parents[2]
README, PAGES = ROOT / "README.md", sorted((ROOT / "docs").glob("*.md"))
# What of the repository a reader has at hand who stands in its folder, as the README says.
AT_HAND = ("workflows", "tdm_dask/data", "tests/benchmarks")
SUFFIXES = {"python": "py", "toml": "toml"}
PATIENCE = 900  # seconds, for a command


@dataclass(frozen=True)
class Block:
    """A block of code of a page; `file` is the name that the paragraph before it has for it."""

    page: Path
    line: int
    language: str
    text: str
    file: str | None = None

    @property
    def name(self) -> str:
        return f"{self.page.name}, line {self.line}"

    def commands(self) -> list[str]:
        """The commands of a block of sh: those joined by && one by one, without comments."""
        lines = (re.sub(r"(^|\s)#.*", "", line) for line in self.text.replace("\\\n", " ").splitlines())
        return [command.strip() for line in lines for command in line.split(" && ") if command.strip()]


def blocks(page: Path) -> list[Block]:
    """All blocks of code of a page, those of a list too."""
    text, found = page.read_text(encoding="utf-8"), []
    for one in re.finditer(r"^( *)```(\w+)\n(.*?)^\1```$", text, flags=re.DOTALL | re.MULTILINE):
        indent, language, code = one.groups()
        above = text[: one.start()]
        files = re.findall(rf"`(\w+\.{SUFFIXES.get(language, '$')})`", above.rstrip().rpartition("\n\n")[2])
        code = re.sub(f"^{indent}", "", code, flags=re.MULTILINE)
        found.append(Block(page, above.count("\n") + 2, language, code, files[-1] if files else None))
    return found


def prose(page: Path) -> str:
    """A page without its blocks of code."""
    return re.sub(r"^( *)```.*?^\1```$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def code_spans(page: Path) -> list[str]:
    """Code within the text of a page, each on one line."""
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose(page))]


def installed(folder: Path) -> Path:
    """The programs of an environment with the package from a wheel, beside the packages that the tests run with."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    alone = ["--no-deps", "--no-index"]
    _run([*pip, "wheel", "--quiet", *alone, "--no-build-isolation", "--wheel-dir", str(folder / "wheel"), str(ROOT)])
    (wheel,) = (folder / "wheel").glob("*.whl")
    venv.create(folder / "env", symlinks=True)
    python = folder / "env" / "bin" / "python"
    _run([*pip, "--python", str(python), "install", "--quiet", *alone, str(wheel)])
    (packages,) = (folder / "env" / "lib").glob("python*/site-packages")
    others = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    (packages / "others.pth").write_text("\n".join(others) + "\n", encoding="utf-8")
    _give_compiled_code(Path(tdm_dask.__file__).parent, packages / "tdm_dask")
    return python.parent


def _give_compiled_code(tested: Path, package: Path) -> None:
    """Let a package have the kernels that the tested one has compiled: as at a second use of it, none are made again.

    Numba takes compiled code that it finds beside a source of the same size and time of change.
    """
    for source in (tested / "kernels").glob("*.py"):
        copy = package / "kernels" / source.name
        assert copy.read_bytes() == source.read_bytes(), f"{source} is not what the wheel has"
        shutil.copystat(source, copy)
    (package / "kernels" / "__pycache__").mkdir(exist_ok=True)
    for compiled in (tested / "kernels" / "__pycache__").glob("*.nb[ci]"):
        shutil.copy(compiled, package / "kernels" / "__pycache__")


@dataclass
class Reader:
    """Who does what a page says.

    Attributes
    ----------
    folder : Path
        To work in; made, and empty but for what is `given` and what of the repository a page names.
    programs : Path
        Those of an environment with the package, as `installed` gives.
    given : mapping of str to Path
        Files and folders of the reader's own, by the name that pages have for them.
    variables : mapping of str to str
        Of the environment.
    replaced : mapping of str to str
        Texts of commands for which there is something else here, such as the address of a server.
    said : dict of str to str
        What each block, by its name, put out.
    differently : dict of str to str
        Commands that were not run as they stand, and what was done instead.
    """

    folder: Path
    programs: Path
    given: Mapping[str, Path] = field(default_factory=dict)
    variables: dict[str, str] = field(default_factory=dict)
    replaced: Mapping[str, str] = field(default_factory=dict)
    said: dict[str, str] = field(default_factory=dict)
    differently: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.folder.mkdir()
        for name, path in self.given.items():
            (shutil.copytree if path.is_dir() else shutil.copy)(path, self.folder / name)
        # No browser is opened, no window, and no package is found but where one would be after pip install.
        hidden = ("PYTHONPATH", "DISPLAY", "WAYLAND_DISPLAY", "AWS_", "FSSPEC_")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(hidden)}
        path = f"{self.programs}{os.pathsep}{os.environ['PATH']}"
        self.variables = {**kept, "PATH": path, "MPLBACKEND": "agg", **self.variables}

    def follow(self, page: Path) -> None:
        """Do everything that a page says."""
        for block in blocks(page):
            self._lay_out(block.text)
            self.said[block.name] = {"sh": self._sh, "python": self._python, "toml": self._toml}[block.language](block)

    def _lay_out(self, text: str) -> None:
        for part in AT_HAND:
            if re.search(rf"\b{part}\b", text) and not (self.folder / part).exists():
                shutil.copytree(ROOT / part, self.folder / part, ignore=shutil.ignore_patterns("__pycache__"))

    def _toml(self, block: Block) -> str:
        if block.file is not None:
            (self.folder / block.file).write_text(block.text, encoding="utf-8")
        return ""

    def _python(self, block: Block) -> str:
        script = self.folder / (block.file or f"{block.page.stem}_{block.line}.py")
        script.write_text(block.text, encoding="utf-8")
        return self._run(["python", str(script)], block)

    def _sh(self, block: Block) -> str:
        return "".join(self.command(text, block) for text in block.commands())

    def command(self, text: str, block: Block) -> str:
        """One command of a block, and what it puts out."""
        words = shlex.split(text)
        match words:
            case ["pip", "install", what] | ["pip", "install", "-e", what]:
                assert wheel_has(what), f"{block.name}: {what}"
                return self._instead(text, "installed from a wheel, with the packages of the tests")
            case ["ruff" | "lint-imports" | "mypy", *_]:
                return self._instead(text, "is of who changes the package: its check script runs it")
            case ["pytest", *_]:
                return self._instead(text, "is what runs this test")
            case ["python", "tests/benchmarks", *_]:
                self._bash(f"{text} --help", block)
                return self._instead(text, "asked for its help: it takes 20 minutes")
            case ["export", variable]:
                name, _, value = variable.partition("=")
                self.variables[name] = self.replaced.get(value, value)
                return self._instead(text, self.replaced[value]) if value in self.replaced else ""
            case ["ssh", *_]:
                return self._instead(text, "needs another machine")
            case _ if "--slurm" in words or words[0] == "sbatch":
                assert_options(text)
                return self._instead(text, "needs a cluster: its options were read")
            case ["tdm", "view", *_]:
                return self._look(words, block)
            case _:
                return self._bash(text, block)

    def _instead(self, text: str, what: str) -> str:
        self.differently[text] = what
        return ""

    def _look(self, words: list[str], block: Block) -> str:
        """Open the page that a command serves, and end it with Ctrl-C."""
        process = subprocess.Popen(
            words,
            cwd=self.folder,
            env=self.variables,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        late = threading.Timer(PATIENCE, process.kill)
        late.start()
        try:
            lines: list[str] = []
            for line in process.stdout:  # type: ignore[union-attr]
                lines.append(line)
                if "http://" in line:
                    break
            (link,) = re.findall(r"http://\S+", "".join(lines)) or [None]
            assert link is not None, f"{block.name}: {''.join(lines)}{process.stderr.read()}"  # type: ignore[union-attr]
            page = page_behind(link)
            process.send_signal(signal.SIGINT)
            out, err = process.communicate()
        finally:
            late.cancel()
            process.kill()
        assert process.returncode == 0, f"{block.name}: {err}"
        self._instead(" ".join(words), "opened by its link and ended with Ctrl-C")
        return "".join(lines) + out + page

    def _bash(self, text: str, block: Block) -> str:
        return self._run(["bash", "-c", text], block)

    def _run(self, words: list[str], block: Block) -> str:
        return _run(words, f"{block.name}: {words[-1]}", cwd=self.folder, env=self.variables)


def _run(words: list[str], name: str = "", **options: object) -> str:
    """Output of a program that must end well."""
    ran = subprocess.run(words, capture_output=True, text=True, timeout=PATIENCE, **options)  # type: ignore[call-overload]
    assert ran.returncode == 0, f"{name or words}\n{ran.stdout}\n{ran.stderr}"
    return ran.stdout


def page_behind(link: str) -> str:
    """What a browser gets that opens the link of `tdm view`: a cookie, and with it the page."""
    opener = urllib.request.build_opener(
        urllib.request.ProxyHandler({}), urllib.request.HTTPCookieProcessor(http.cookiejar.CookieJar())
    )
    with opener.open(link, timeout=PATIENCE) as first:
        assert 'content="0; url=./"' in first.read().decode()
    with opener.open(link.partition("?")[0], timeout=PATIENCE) as page:
        return page.read().decode()


def wheel_has(what: str) -> bool:
    """Whether `pip install` finds in the folder of the repository what it is asked for: ".", ".[view]"."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    found = re.fullmatch(r"\.(?:\[([\w,]+)\])?", what)
    return found is not None and set((found[1] or "").split(",")) <= {"", *extras}


def assert_options(text: str) -> None:
    """That the command of `tdm` that a text begins with is there, and every option of it."""
    from tdm_dask.cli import tdm

    words = [word for word in shlex.split(text) if word != "tdm"]
    assert words[0] in {*tdm.commands, *options_of([tdm])}, text
    known = options_of([tdm.commands[words[0]]] if words[0] in tdm.commands else [tdm])
    asked = {word.partition("=")[0] for word in words if word.startswith("--")}
    assert asked <= known, f"{text}: {sorted(asked - known)}"


def options_of(commands: Iterable[object]) -> set[str]:
    """Options that commands of `tdm` have, --help among them."""
    names = {
        name
        for command in commands
        for parameter in command.params  # type: ignore[attr-defined]
        for name in (*parameter.opts, *parameter.secondary_opts)
    }
    return {name for name in names if name.startswith("--")} | {"--help"}
