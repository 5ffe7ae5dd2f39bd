"""The command line: one file a verb. The three jobs meet here and nowhere else."""

import importlib
import os
import signal
import sys
from collections.abc import Sequence

import jax

from minijaxnet.cli.errors import UsageError, show_and_leave, show_error
from minijaxnet.cli.screen import patient_streams
from minijaxnet.parallel.processes import leave

VERBS = {
    "run": "run an experiment: descend, check the gradient by hand, time the step",
    "check": "is a gradient by hand right, and the rules within a loss; or those of package.module:function",
    "bench": "time the step, by itself and against autodiff's and optax's",
    "sweep": "run an experiment at many seeds, learning rates and numbers of its own, at once",
    "list": "show the experiments of a folder",
    "runs": "show the runs of a folder, how they stand and what came out",
    "show": "show one run, as far as it has come",
    "report": "make the page that tells what came out of a run, or of several",
    "resume": "go on with a run where it stopped, to the same bits",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """The command ``minijaxnet VERB ...``.

    Args:
        arguments: without the command's name; those of the process if None.

    Returns:
        The exit code: 0 done, 1 it ran and the answer is no (diverged, a wrong gradient), 2 it could not run,
        3 a process of several died, 130 stopped by Ctrl-C.
    """
    _open_what_was_closed()
    with patient_streams():
        return _main([*(sys.argv[1:] if arguments is None else arguments)])


def _main(arguments: Sequence[str]) -> int:
    verb, *rest = arguments or ["--help"]
    if verb in ("-h", "--help"):
        print(_help())
        return 0
    if verb == "--version":
        from importlib.metadata import version

        print(f"minijaxnet {version('minijaxnet')}")
        return 0
    try:
        if verb not in VERBS:
            raise UsageError(f"got the verb {verb!r}; expected one of {', '.join(VERBS)}")
        return importlib.import_module(f"minijaxnet.cli.{verb}").main(rest)
    except KeyboardInterrupt as stopped:
        print("stopped", file=sys.stderr)
        code = 128 + (stopped.args[0] if stopped.args and isinstance(stopped.args[0], int) else signal.SIGINT)
        return leave(code) if jax.distributed.is_initialized() else code
    except SystemExit as ended:
        if jax.distributed.is_initialized() and ended.code:
            leave(ended.code if isinstance(ended.code, int) else 2)
        raise
    except Exception as error:
        return show_and_leave(error) if jax.distributed.is_initialized() else show_error(error)


def _open_what_was_closed() -> None:
    """Have a standard stream that was closed (``2>&-``) lead nowhere: else the next file gets what is meant for it."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))


def _help() -> str:
    verbs = "\n".join(f"  {verb:<6} {summary}" for verb, summary in VERBS.items())
    return (
        "usage: minijaxnet VERB ...\n\n"
        "A small JAX framework for researchers who work on gradients.\n\n"
        f"{verbs}\n\n"
        "minijaxnet VERB --help tells more; minijaxnet run FILE --help shows that experiment's own flags and defaults."
    )
