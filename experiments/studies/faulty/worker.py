"""A tool in a process of its own, asked fault by fault: ``python -m faulty.worker TOOL``."""

import contextlib
import importlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import jax

from . import COLD, TOOLS
from .judge import Outcome

# A fault that has taken so long is hung, beyond what an alarm within the process can end.
_MOST_S = 300.0


class Worker:
    """Starts the process when it is needed, and again when it ended or hung."""

    def __init__(self, tool: str, python: str = sys.executable):
        """Of a tool, in an interpreter that has it."""
        self._tool, self._python = tool, python
        self._process: subprocess.Popen[str] | None = None

    def ask(self, group: str, fault: str, *, seed: int = 0, kills: int = 5) -> Outcome:
        """Inject a fault.

        Raises:
            ImportError: the tool is not installed.
        """
        if group == "writing" and self._tool in COLD:
            self.close()
        process = self._process or self._start()
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(json.dumps([group, fault, seed, kills]) + "\n")
        process.stdin.flush()
        ready, _, _ = select.select([process.stdout], [], [], _MOST_S)
        line = process.stdout.readline() if ready else ""
        if not line:
            self.close()
            return Outcome(False, 1, 1, "its process crashed, or hung where no alarm is heard")
        return Outcome(*json.loads(line))

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            process, self._process = self._process, None
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # with all that it has forked
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    with contextlib.suppress(OSError):
                        pipe.close()

    def _start(self) -> "subprocess.Popen[str]":
        # A forked process has none of the threads of its parent, so XLA must do without.
        environment = os.environ | {
            "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false",
            "JAX_PLATFORMS": "cpu",
            "KERAS_BACKEND": "jax",
            "TF_CPP_MIN_LOG_LEVEL": "3",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), *sys.path]),
        }
        command = [*_own_mounts(), self._python, "-m", "faulty.worker", self._tool]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
            start_new_session=True,
        )
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if line != "ready\n":
            self.close()
            raise ImportError(line.strip() or f"{self._tool}: its process ended at once")
        return self._process


def _own_mounts() -> list[str]:
    """What lets the process mount small and read-only file systems that nobody else sees; nothing if it may not."""
    program = shutil.which("unshare")
    for flags in ("-m", "-rm"):
        command = [] if program is None else [program, flags]
        if command and subprocess.run([*command, "true"], capture_output=True, check=False).returncode == 0:
            return command
    return []


def _serve(name: str) -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a tool prints is no answer
    warnings.simplefilter("ignore")
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    try:
        module, cls = TOOLS[name].split(":")
        tool = getattr(importlib.import_module(module), cls)()
    except ImportError as error:
        print(f"{error}", file=answers, flush=True)
        return
    from .faults import inject

    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        group, fault, seed, kills = json.loads(line)
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
            outcome = inject(tool, group, fault, Path(scratch), seed=seed, kills=kills)
        print(json.dumps(outcome), file=answers, flush=True)


if __name__ == "__main__":
    _serve(sys.argv[1])
