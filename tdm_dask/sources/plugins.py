"""Formats of your own: a file, an object or an installed package that opens what this package does not know.

A format has a `name`, an `open(request)` that gives a VendorFile, and for recognising its files `extensions` or
`recognises(path, first_bytes)` or both. A format in a file travels with the sources that it gives, as text, so that
workers in other processes and on other machines read them without having the file.
"""

from __future__ import annotations

import copyreg
import hashlib
import importlib.metadata
import os
import re
import sys
import threading
import types
import warnings
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field, fields, replace
from functools import cache
from pathlib import Path
from typing import Any

from ..errors import FormatError, InputError, TdmError, in_words
from ..reading.blocks import Source
from .code_checksum import code_checksum
from .plain_file import UnfitError, plain_file
from .vendor import Request, VendorFile

# Of installed packages that bring formats.
ENTRY_POINTS = "tdm_dask.formats"
# What to do where a name does not say which one is meant.
GIVE_ONE = "give the one that is meant itself, or its file"
# What `recognises` gets to see of a file.
FIRST_BYTES = 512

# What may be asked of a file, besides its path.
_OPTIONS = tuple(f.name for f in fields(Request) if f.name not in ("path", "counted"))


@dataclass(frozen=True)
class Heeding(Request):
    """A request that notes what a format asks of it: what was given and is not used must not pass in silence."""

    heeded: set[str] = field(default_factory=set, compare=False)

    def __getattribute__(self, name: str) -> Any:
        if name in _OPTIONS:
            object.__getattribute__(self, "heeded").add(name)
        return object.__getattribute__(self, name)

    @classmethod
    def of(cls, request: Request) -> Heeding:
        return cls(**{f.name: getattr(request, f.name) for f in fields(request)})

    def unheeded(self) -> list[str]:
        """Options that were given and that nobody has looked at."""
        usual = {f.name: f.default for f in fields(Request)}
        given = [name for name in _OPTIONS if object.__getattribute__(self, name) != usual[name]]
        return [name for name in given if name not in self.heeded]


@dataclass(frozen=True)
class Plugin:
    """A format of a user's own, checked.

    Attributes
    ----------
    name : str
    label : str
        The name with a checksum of its code, or of the text of its file: what a store notes.
    where : str
        Where it comes from, in words.
    extensions : tuple of str
        In lower case, without a dot at the beginning.
    of : object
        The format itself.
    """

    name: str
    label: str
    where: str
    extensions: tuple[str, ...]
    of: Any

    def __str__(self) -> str:
        return f'"{self.name}" ({self.where})'

    def recognises(self, path: Path, first_bytes: bytes) -> bool:
        """Whether it says so itself; one that fails is named in a warning."""
        recognises = getattr(self.of, "recognises", None)
        if recognises is None:
            return False
        try:
            return bool(recognises(path, first_bytes))
        except Exception as error:
            sentence = f"The format {self} cannot tell whether {path.name} is its own: {in_words(error)}."
            warnings.warn(sentence, stacklevel=1)
            return False

    def has_extension_of(self, path: Path) -> bool:
        return any(path.name.lower().endswith(f".{extension}") for extension in self.extensions)

    def open(self, request: Request) -> VendorFile:
        """What the format gives for a request, checked.

        Raises
        ------
        FormatError
            If it fails, or gives something else than a scan in a VendorFile.
        InputError
            If it does not use what was given.
        """
        heeding = Heeding.of(request)
        try:
            file = self.of.open(heeding)
        except TdmError:
            raise
        except Exception as error:
            sentence = f"The format {self} could not open {request.name}: {in_words(error)}."
            raise FormatError(sentence).with_traceback(error.__traceback__) from error
        try:
            file = plain_file(file)
        except UnfitError as error:
            raise FormatError(f"The format {self} gave, for {request.name}, {error}.") from error.__cause__
        unheeded = heeding.unheeded()
        if unheeded:
            raise InputError(f"The format {self} does not use {unheeded[0]}; leave it out.")
        request.refuse_other_shape(file.source.shape[:2])
        return replace(
            file,
            path=str(request.path),
            reader=f"{file.reader}, a format of {self.where}",
            format=self.label,
        )


def plugin_of(of: Any, where: str, checksum: str = "") -> Plugin:
    """A format of a user's own, from the module or object that it is.

    Parameters
    ----------
    of : module or object
    where : str
        Where it comes from, in words: of a package, with its version.
    checksum : str, optional
        What tells it from another one of its name; by default that of its code.

    Raises
    ------
    FormatError
        If it lacks something.
    """
    name, opens = getattr(of, "name", None), getattr(of, "open", None)
    recognises, extensions = getattr(of, "recognises", None), getattr(of, "extensions", ())
    if isinstance(of, type):
        raise FormatError(f"The format of {where} is the class {of.__name__}; expected an object of it.")
    if not isinstance(name, str) or not re.fullmatch(r"[\w .+-]+", name) or name.endswith(".py"):
        raise FormatError(f"The format of {where} has the name {name!r}; expected a text such as name = \"abc\".")
    if not callable(opens):
        raise FormatError(f'The format "{name}" of {where} has no function open(request); give it one.')
    if isinstance(extensions, str) or not all(isinstance(extension, str) for extension in extensions):
        raise FormatError(f'The format "{name}" of {where} has extensions {extensions!r}; expected a list of texts.')
    if recognises is not None and not callable(recognises):
        raise FormatError(f'The format "{name}" of {where} has a recognises that is no function.')
    label = f"{name}@{checksum or code_checksum(of, where, opens, recognises)}"
    return Plugin(name, label, where, tuple(e.lower().removeprefix(".") for e in extensions), of)


def register_format(format: Any) -> None:
    """Make a format of your own known for this session: files that it claims are then opened like any other.

    A format that comes with this package goes before it where both claim a file; then ask for it, as in
    ``tdm_dask.open(path, format="abc")``. Installed packages make theirs known by an entry point of the group
    "tdm_dask.formats", whose value is the module or object.

    Parameters
    ----------
    format : path, module or object
        A Python file, or what has these parts:

        - `name`, a text such as "abc".
        - `open(request)`, which gives a VendorFile. `request.path` is the file, and its other attributes are what was
          asked for; what a format does not look at cannot be given. `frame_file` looks at all that goes with frames.
        - `extensions`, a list of texts such as ["abc"], optional.
        - `recognises(path, first_bytes)`, optional: whether a file, of which it gets the first 512 bytes, is one of
          this format. Formats that recognise a file go before those that know its extension alone.

        One of the same name takes the place of an earlier one, and of an installed one. Register it again after it was
        mended: a conversion that was begun with other code is not gone on with.

    Raises
    ------
    FormatError
        If one of these parts is missing or wrong, or a file cannot be run.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> import numpy as np
    >>> import tdm_dask as tdm
    >>> class Bytes:
    ...     name, extensions = "bytes", ["bytes"]
    ...     def open(self, request):
    ...         return tdm.frame_file(request, (2, 2), "u1", reader="bytes", offset=4)
    >>> tdm.register_format(Bytes())
    >>> path = pathlib.Path(tempfile.mkdtemp(), "scan.bytes")
    >>> _ = path.write_bytes(bytes(range(28)))
    >>> tdm.open(path, scan_shape=(2, 3))[0, 0].values.tolist()
    [[4, 5], [6, 7]]
    """
    plugin = from_file(format) if isinstance(format, (str, os.PathLike)) else plugin_of(format, "this session")
    _registered[plugin.name] = plugin


_registered: dict[str, Plugin] = {}


def plugins(*, installed: bool = True) -> list[Plugin]:
    """The formats of this session and, if asked for, of installed packages, which are imported for this.

    One of the session takes the place of an installed one of its name.
    """
    found = list(_registered.values())
    for entry in importlib.metadata.entry_points(group=ENTRY_POINTS) if installed else ():
        package = "a package" if entry.dist is None else f"the package {entry.dist.name} {entry.dist.version}"
        plugin = _of_entry_point(entry, package)
        found += [plugin] if plugin is not None and plugin.name not in _registered else []
    return found


@cache
def _of_entry_point(entry: importlib.metadata.EntryPoint, package: str) -> Plugin | None:
    """The format of an entry point, or None, after a warning, where it cannot be used; asked for once."""
    try:
        return plugin_of(entry.load(), package)
    except Exception as error:
        sentence = f'The format "{entry.name}" of {package} cannot be used: {in_words(error)}; update or remove it.'
        warnings.warn(sentence, stacklevel=1)
        return None


def claiming(path: Path, taken: Collection[str]) -> Plugin | None:
    """The format of a user's own that claims a file or folder; None where none does.

    Parameters
    ----------
    path : Path
    taken : collection of str
        Names by which formats of this package are asked for.

    Raises
    ------
    FormatError
        If several do.
    """
    known = plugins()
    first_bytes = b""
    if known and path.is_file():
        with open(path, "rb") as file:
            first_bytes = file.read(FIRST_BYTES)
    found = [plugin for plugin in known if plugin.recognises(path, first_bytes)]
    found = found or [plugin for plugin in known if plugin.has_extension_of(path)]
    if len(found) > 1:
        names = [*taken, *(plugin.name for plugin in known)]
        single = [plugin.name for plugin in found if names.count(plugin.name) == 1]
        advice = f'say which one, such as format="{single[0]}"' if single else GIVE_ONE
        raise FormatError(f"{path.name} is claimed by the formats {in_list(found)}; {advice}.")
    return found[0] if found else None


def named(name: str, *, installed: bool) -> list[Plugin]:
    """The formats of that name, with or without those of installed packages."""
    return [plugin for plugin in plugins(installed=installed) if plugin.name == name]


def in_list(found: Iterable[Plugin]) -> str:
    return " and ".join(map(str, found))


# Formats in files


def is_file_name(format: Any) -> bool:
    """Whether a format is given as the path of a Python file, and not by its name."""
    return isinstance(format, os.PathLike) or (isinstance(format, str) and format.endswith(".py"))


def from_file(path: str | os.PathLike[str]) -> Plugin:
    """The format in a Python file, which is run unless it was already and has not changed.

    Raises
    ------
    FormatError
        If it cannot be read or run, or holds no format.
    """
    place = Path(path).expanduser().absolute()
    try:
        text = place.read_bytes()
    except OSError as error:
        raise FormatError(f"The format {path} cannot be read ({error.strerror}); check the path.") from None
    checksum = hashlib.sha256(text).hexdigest()[:12]
    name = f"tdm_dask_format_{re.sub(r'[^0-9A-Za-z_]', '_', place.stem)}_{checksum}"
    try:
        module = Text(name, str(place), text).module
    except Exception as error:
        sentence = f"The format {path} cannot be run: {in_words(error)}."
        raise FormatError(sentence).with_traceback(error.__traceback__) from error
    return plugin_of(module, f"the file {place.name}", checksum)


@dataclass(frozen=True)
class Text:
    """A Python file as text, which is run once in every process that needs it.

    Parameters
    ----------
    name : str
        Of the module; no other text has it.
    path : str
        Of the file, for tracebacks.
    text : bytes
    """

    name: str
    path: str
    text: bytes = field(repr=False)

    @property
    def module(self) -> types.ModuleType:
        with _running:
            if self.name not in sys.modules:
                module = types.ModuleType(self.name)
                module.__file__ = self.path
                sys.modules[self.name] = module
                try:
                    exec(compile(self.text, self.path, "exec"), module.__dict__)
                except BaseException:
                    del sys.modules[self.name]
                    raise
                for kind in vars(module).values():
                    if isinstance(kind, type) and issubclass(kind, Source) and kind.__module__ == self.name:
                        copyreg.pickle(kind, self._reduced)
            return sys.modules[self.name]

    def _reduced(self, source: Source) -> tuple[Any, ...]:
        """A source with this text, which is run where it arrives, before its class is looked for."""
        reduced: Any = source.__reduce_ex__(4)
        function, arguments, state, *_ = reduced
        return _restored, (self, function, arguments), state

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return _run, (self.name, self.path, self.text)


_running = threading.RLock()


def _run(name: str, path: str, text: bytes) -> Text:
    found = Text(name, path, text)
    _ = found.module
    return found


def _restored(text: Text, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    return function(*arguments)
