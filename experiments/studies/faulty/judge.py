"""Whether a fault was survived."""

import faulthandler
import hashlib
import math
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

# An answer may take so long; what takes longer is tried once more, as the first time holds imports and compilation.
LIMIT_S = 5.0
# What has not answered by then, and by as much later as it takes to start, never will. Ours, which must not hang, has
# more time, to compile on a busy machine.
HANGS_S = {True: 60, False: 10}


class Expected(NamedTuple):
    """What the text of an error must hold, as regular expressions.

    Attributes:
        names: the argument, the leaf or the file.
        wrong: the offending value, or what is wrong.
        ours: what ours must hold beside that: its exact words.
    """

    names: str
    wrong: str = r"\w"
    ours: str = ""


class Trial(NamedTuple):
    """One time that a fault is injected.

    Attributes:
        act: what the tool does then; it returns arrays, or raises.
        expected: of an error.
        right: the result without the fault; None where there is none that is right.
        untouched: files and folders that must be the same afterwards.
        also: what else must hold afterwards; a sentence if it does not.
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
    """How a fault went.

    Attributes:
        survived: None if it does not apply.
        trials: how often it was injected.
        failed: how often it was not survived.
        why: of the first time that it was not survived; or why it does not apply.
        here: False if it is this machine that cannot inject it.
    """

    survived: bool | None
    trials: int
    failed: int
    why: str
    here: bool = True


class Hung(BaseException):
    """It did not answer."""


def judge(trials: Iterable[Trial], *, ours: bool, starts_s: float = 0.0) -> Outcome:
    """Carry out a fault's trials; it is survived if each of them is.

    Args:
        trials: one after the other.
        ours: whether an error must hold our exact words.
        starts_s: what starting and compiling may take in each trial, beside the time to answer.
    """
    count, reasons = 0, []
    try:
        for trial in trials:
            count += 1
            if reason := _why_not_survived(trial, ours, starts_s):
                reasons.append(reason)
    except NotOffered as error:
        return Outcome(None, 0, 0, str(error))
    except NotHere as error:
        return Outcome(None, 0, 0, str(error), here=False)
    except Exception as error:
        # The fault could not be injected: a flaw of this experiment, and surely no fault that was survived.
        where = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{Path(where.filename).name}:{where.lineno}"
        return Outcome(False, count, count, f"not injected: {type(error).__name__}: {error} ({place})")
    if not count:
        return Outcome(False, 0, 0, "never injected")
    return Outcome(not reasons, count, len(reasons), reasons[0] if reasons else "")


def _why_not_survived(trial: Trial, ours: bool, starts_s: float) -> str:
    """A sentence, or nothing if it was survived."""
    before = fingerprint(trial.untouched)
    hangs_s, limit_s = math.ceil(HANGS_S[ours] + starts_s), LIMIT_S + starts_s
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
        return _why_not_named(error, trial.expected, ours), time.monotonic() - start
    return _why_not_right(found, trial.right), time.monotonic() - start


def _why_not_named(error: Exception, expected: Expected, ours: bool) -> str:
    text = str(error)
    shown = f"{type(error).__name__}: {' '.join(text.split())[:110]}"
    if not re.search(expected.names, text):
        return f"an error that does not name it: {shown}"
    if not re.search(expected.wrong, text):
        return f"an error that does not say what is wrong: {shown}"
    if ours and not re.search(expected.ours, text):
        return f"an error in other words than /{expected.ours}/: {shown}"
    return ""


def _why_not_right(found: Arrays, right: Arrays | None) -> str:
    if any(array.dtype.kind == "f" and not np.isfinite(array).all() for array in found.values()) and (
        right is None or difference(found, right)
    ):
        return "NaN or infinity, in silence"
    if right is None:
        return "a result, in silence"
    what = difference(found, right)
    return f"another result, in silence: {what}" if what else ""


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
        below = sorted(path.rglob("*")) if path.is_dir() and not path.is_symlink() else []
        for file in [path, *below]:
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
        # What waits in the system outside of Python hears no alarm: a watchdog ends the process, which its parent sees.
        faulthandler.dump_traceback_later(hangs_s + 5, exit=True, file=sys.__stderr__)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
