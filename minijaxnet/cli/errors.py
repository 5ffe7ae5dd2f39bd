"""The errors of the command line: one sentence, and the lines of the user's own code that led to it."""

import os
import sys
import traceback
from pathlib import Path
from typing import NoReturn

import minijaxnet
from minijaxnet._tables import printable
from minijaxnet.parallel.processes import LOST, is_lost, leave

_EXPECTED = (ValueError, TypeError, ImportError, OSError)


class UsageError(ValueError):
    """The command was called wrongly."""


def show_error(error: Exception) -> int:
    """Print an error and return the exit code 2; raise it again if it is an error of the program.

    A ``ValueError`` or a similar one names the argument, what it got and what it expected. The lines of the user's own
    files that led to it follow; those of libraries do not, unless ``MINIJAXNET_TRACEBACK`` is set.
    """
    own = [frame for frame in traceback.extract_tb(error.__traceback__) if _is_users(frame.filename)]
    if os.environ.get("MINIJAXNET_TRACEBACK") or not (own or isinstance(error, _EXPECTED)):
        raise error
    kind = "" if isinstance(error, _EXPECTED) else f"{type(error).__name__}: "
    notes = [note for note in getattr(error, "__notes__", ()) if "JAX has removed" not in note]  # of JAX's own frames
    print(printable("\n".join([f"minijaxnet: error: {kind}{error}", *notes]), keep="\n\t"), file=sys.stderr)
    if own:
        print("in your code:", file=sys.stderr)
        print("".join(traceback.format_list(own[-3:])).rstrip(), file=sys.stderr)
    return 2


def show_error_and_leave(error: Exception) -> NoReturn:
    """Print the error of one of several processes, and end it at once, since the others may wait for it."""
    if is_lost(error):
        print(f"minijaxnet: another process of this run is gone: {str(error).splitlines()[0]}", file=sys.stderr)
        leave(LOST)
    try:
        show_error(error)
    except Exception:
        traceback.print_exc()
    leave(2)


def _is_users(filename: str) -> bool:
    package = Path(minijaxnet.__file__).parent
    libraries = {"site-packages", "dist-packages"} | set(Path(os.__file__).parts[-2:-1])
    path = Path(filename)
    return path.is_file() and package not in path.parents and not libraries & set(path.parts) and path.suffix == ".py"
