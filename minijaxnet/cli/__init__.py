"""The command line: one file a verb. The three jobs meet here and nowhere else."""

import importlib
import signal
import sys
from collections.abc import Sequence
from importlib.metadata import version
from typing import NoReturn

import jax

from minijaxnet.cli.errors import UsageError, show_error, show_error_and_leave
from minijaxnet.cli.screen import patient_streams
from minijaxnet.parallel.processes import leave

VERBS = {
    "run": "run an experiment: descend, check the gradient by hand, time the step",
    "check": "check a gradient by hand, and the derivative rules within a loss or of package.module:function",
    "bench": "time the step, by itself and against autodiff's and optax's",
    "sweep": "run an experiment at many seeds, learning rates and numbers of its own, at once",
    "list": "list the experiments of a folder",
    "runs": "list the runs of a folder, with their states and results",
    "show": "show one run, as far as it has come",
    "report": "make the page of a run, or of several",
    "resume": "resume a run where it stopped, to the same bits",
}
_HELP = """usage: minijaxnet VERB ...

A small JAX framework for researchers who work on gradients.

{verbs}

minijaxnet VERB --help shows more; minijaxnet run FILE --help shows that experiment's own flags and defaults."""


def command() -> NoReturn:
    """The shell's command: ``main``. After a signal it ends at once, for XLA may still compile in its own threads."""
    code = main()
    if code >= 128:
        leave(code)
    sys.exit(code)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command ``minijaxnet VERB ...``.

    Args:
        arguments: without the command's name; those of the process if None.

    Returns:
        The exit code: 0 done, 1 it ran and the answer is no (diverged, a wrong gradient), 2 it could not run,
        3 a process of several died, 130 stopped by Ctrl-C.
    """
    with patient_streams():
        return _main([*(sys.argv[1:] if arguments is None else arguments)])


def _main(arguments: Sequence[str]) -> int:
    verb, *rest = arguments or ["--help"]
    if verb in ("-h", "--help"):
        print(_HELP.format(verbs="\n".join(f"  {verb:<6} {summary}" for verb, summary in VERBS.items())))
        return 0
    if verb == "--version":
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
        return show_error_and_leave(error) if jax.distributed.is_initialized() else show_error(error)
