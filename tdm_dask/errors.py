"""Exceptions. Each holds one sentence: what was found, what was expected, what to do.

Every class takes that sentence as its only argument, so that it survives pickling between processes.
"""

import errno
import pickle
from typing import Any


class TdmError(Exception):
    """Base of everything that this package raises on purpose."""


class InputError(TdmError, ValueError):
    """The request does not make sense, or does not fit the data."""


class UnitError(InputError):
    """A quantity has no unit that fits, or is not a positive finite number."""


class ScanShapeError(InputError):
    """The frames of a file do not fill the declared scan."""


class CoordinateError(InputError):
    """The coordinates of two arrays that must agree do not, or a calibration is missing."""


class RegionError(InputError):
    """A scan or detector region is empty or has the wrong shape."""


class TemplateError(InputError):
    """A template is constant, not finite, or does not match the scan."""


class SiteError(InputError):
    """No usable atom-column site inside the scan, or a site list that cannot be read."""


class MaskError(InputError):
    """A mask is not finite or belongs to another detector."""


class CountsError(InputError):
    """Counts that are used hold NaN or infinity, or have an unusable dtype or shape."""


class CalibrationError(InputError):
    """The bright-field disk cannot be found or contradicts what was given."""


class MemoryLimitError(InputError):
    """What was asked for would not fit into memory; nothing was read."""


class FrameError(InputError):
    """A file holds several scans, and none of them, or one that it does not hold, was asked for."""


class OwnCodeError(InputError):
    """Code of a user's own fails, or gives what does not fit; its cause is the error that it raised."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _caused, (type(self), str(self), _pickled(self.__cause__))


class ReductionError(OwnCodeError):
    """A reduction of a user's own fails, or does not give what it says."""


class FormatError(OwnCodeError):
    """A format of a user's own is none, fails, or does not give a scan; or several claim the same file."""


class RecipeError(InputError):
    """A recipe file is not readable or asks for something that does not exist."""


class SourceError(TdmError, OSError):
    """A vendor file is missing, damaged, unknown or changed."""


class StoreError(TdmError, OSError):
    """A store cannot be read or written as asked."""


class IncompleteStoreError(StoreError):
    """A store whose conversion has not finished."""


class CorruptStoreError(StoreError):
    """A shard is missing, truncated or fails its checksum."""


class DiskFullError(StoreError):
    """The disk of a store is full; what was written so far is kept."""


class UnreachableStoreError(StoreError):
    """The server of a store cannot be reached or does not answer; what was finished is kept."""


class WorkerLostError(TdmError, OSError):
    """Workers of a cluster, or its scheduler, were lost or never came; finished stages are kept."""


def _pickled(cause: BaseException | None) -> bytes:
    """An exception as bytes, or None as such where it does not come back from them."""
    try:
        data = pickle.dumps(cause)
        pickle.loads(data)
    except Exception:
        return pickle.dumps(None)
    return data


def _caused(kind: type[TdmError], sentence: str, cause: bytes) -> TdmError:
    """An exception with its cause, which pickling loses."""
    error = kind(sentence)
    error.__cause__ = pickle.loads(cause)
    return error


def in_words(error: BaseException) -> str:
    """What any exception has to say, without a full stop, so that more can be said: "; what was finished is kept".

    Examples
    --------
    >>> in_words(MaskError("The mask is not finite; derive it again.")), in_words(ValueError())
    ('The mask is not finite; derive it again', 'ValueError: no message')
    """
    if isinstance(error, TdmError):
        return str(error).strip().rstrip(".")
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "The disk is full: make room and run again"
    if isinstance(error, PermissionError):
        return f"{error.filename} may not be read or written; check its permissions"
    if isinstance(error, MemoryError):
        return "The memory is full: use fewer workers or a larger machine"
    return f"{type(error).__name__}: {' '.join(str(error).split()).rstrip('.') or 'no message'}"


def sentence(error: BaseException) -> str:
    """What any exception has to say, as a sentence.

    Examples
    --------
    >>> sentence(ZeroDivisionError("division by zero"))
    'ZeroDivisionError: division by zero.'
    """
    said = in_words(error)
    return said if said.endswith(("?", "!")) else f"{said}."
