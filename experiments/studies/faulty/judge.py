"""Whether a fault was survived."""

import faulthandler
import hashlib
import re
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

Arrays = dict[str, np.ndarray]

# An answer may take so long; what takes longer is tried once more, as the first time includes imports and compilation.
LIMIT_S = 5.0
# What has not answered by then hangs. Ours, which must not hang, has more time, to compile on a busy machine.
HANGS_S = {True: 60, False: 10}
# A tool that no process can be forked from starts anew in each trial, which may take so long.
STARTS_S = 10


class Expected(NamedTuple):
    """What the text of an error must contain, as regular expressions.

    Attributes:
        names: the argument, the leaf or the file.
        wrong: the wrong value, or what is wrong.
        ours: what ours must contain as well: its exact words.
    """

    names: str
    wrong: str = r"\w"
    ours: str = ""


class Trial(NamedTuple):
    """One injection of a fault.

    Attributes:
        act: what the tool does then; it returns arrays, or raises.
        expected: of an error.
        right: the result without the fault; None where no result is right.
        untouched: files and folders that must be the same afterwards.
        also: what else must hold afterwards; it returns a sentence if it does not.
    """

    act: Callable[[], Arrays]
    expected: Expected
    right: Arrays | None = None
    untouched: tuple[Path, ...] = ()
    also: Callable[[], str] = lambda: ""


class NotOffered(Exception):
    """The tool has no such feature; the text says which."""


class NotHere(Exception):
    """This machine cannot inject the fault; the text says why."""


class Outcome(NamedTuple):
    """What became of a fault.

    Attributes:
        survived: None if it does not apply.
        trials: how often it was injected.
        failed: how often it was not survived.
        why: it was not survived the first time, or does not apply.
        here: False if it is this machine that cannot inject it.
    """

    survived: bool | None
    trials: int
    failed: int
    why: str
    here: bool = True


class Hung(BaseException):
    """It did not answer."""


def judge(trials: Iterable[Trial], *, ours: bool, cold: bool = False, limit_s: float = LIMIT_S) -> Outcome:
    """Run the trials of a fault; it is survived if each of them is.

    Args:
        trials: one after the other.
        ours: whether an error must have our exact words.
        cold: whether each trial may take the time to start and to compile.
        limit_s: how long an answer may take.
    """
    count, reasons = 0, []
    try:
        for trial in trials:
            count += 1
            if reason := _failure(trial, ours, STARTS_S if cold else 0, limit_s):
                reasons.append(reason)
    except NotOffered as error:
        return Outcome(None, 0, 0, str(error))
    except NotHere as error:
        return Outcome(None, 0, 0, str(error), here=False)
    except Exception as error:  # the fault could not be injected: a bug of this study, and no success of the tool
        where = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{Path(where.filename).name}:{where.lineno}"
        return Outcome(False, count, count, f"not injected: {type(error).__name__}: {error} ({place})")
    if not count:
        return Outcome(False, 0, 0, "never injected")
    return Outcome(not reasons, count, len(reasons), reasons[0] if reasons else "")


def _failure(trial: Trial, ours: bool, starts_s: int, limit_s: float) -> str:
    """Why a trial was not survived; nothing if it was."""
    before = fingerprint(trial.untouched)
    hangs_s, limit_s = HANGS_S[ours] + starts_s, limit_s + starts_s
    reason, seconds = _answer(trial, ours, hangs_s)
    if seconds > limit_s:
        reason, seconds = _answer(trial, ours, hangs_s)
    if not reason and seconds > limit_s:
        reason = f"took {seconds:.1f} s"
    if not reason and fingerprint(trial.untouched) != before:
        reason = "damaged a file"
    return trial.also() or reason


def _answer(trial: Trial, ours: bool, hangs_s: int) -> tuple[str, float]:
    start = time.monotonic()
    try:
        with _alarm(hangs_s):
            found = trial.act()
    except NotOffered:
        raise
    except Hung:
        return f"hung for {hangs_s} s", 0.0
    except Exception as error:
        return _error_failure(error, trial.expected, ours), time.monotonic() - start
    return _result_failure(found, trial.right), time.monotonic() - start


def _error_failure(error: Exception, expected: Expected, ours: bool) -> str:
    text = str(error)
    beginning = f"{type(error).__name__}: {' '.join(text.split())[:110]}"
    if not re.search(expected.names, text):
        return f"an error that does not name it: {beginning}"
    if not re.search(expected.wrong, text):
        return f"an error that does not say what is wrong: {beginning}"
    if ours and not re.search(expected.ours, text):
        return f"an error in other words than /{expected.ours}/: {beginning}"
    return ""


def _result_failure(found: Arrays, right: Arrays | None) -> str:
    what = "" if right is None else difference(found, right)
    if right is not None and not what:
        return ""
    if any(array.dtype.kind == "f" and not np.isfinite(array).all() for array in found.values()):
        return "NaN or infinity, without an error"
    return f"another result, without an error: {what}" if what else "a result, without an error"


def difference(found: Arrays, right: Arrays) -> str:
    """Where two sets of arrays differ in a bit; nothing if they do not."""
    if found.keys() != right.keys():
        return f"{', '.join(sorted(found.keys() ^ right.keys()))[:60]} in one of them only"
    for name, array in found.items():
        other = right[name]
        if (array.dtype, array.shape) != (other.dtype, other.shape):
            return f"{name} is {array.dtype}{list(array.shape)}, was {other.dtype}{list(other.shape)}"
        if array.tobytes() != other.tobytes():
            return f"{name} differs"
    return ""


def fingerprint(paths: Iterable[Path]) -> str:
    """A SHA-256 over the names and contents of files and of all that is in folders."""
    total = hashlib.sha256()
    for path in paths:
        for file in [path, *sorted(path.rglob("*"))]:
            total.update(str(file).encode())
            if file.is_file():
                total.update(file.read_bytes())
    return total.hexdigest()


@contextmanager
def _alarm(hangs_s: int) -> Iterator[None]:
    """Raise ``Hung`` within the ``with`` when it takes too long."""

    def ring(signum: int, frame: Any) -> None:
        raise Hung

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(hangs_s)
    if sys.__stderr__ is not None:
        # A system call that waits outside of Python gets no alarm: a watchdog ends the process, and its parent sees it.
        faulthandler.dump_traceback_later(hangs_s + 5, exit=True, file=sys.__stderr__)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
