"""A tool in a process of its own, which injects fault after fault: ``python -m faulty.worker TOOL``."""

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
import numpy as np

from . import TOOLS
from .judge import LIMIT_S, Outcome, judge
from .tool import Setting

# A fault that has taken so long is hung where an alarm within the process ends nothing.
_MOST_S = 300.0


class Worker:
    """Starts the process when it is needed, and again when it ended or hung."""

    def __init__(self, tool: str):
        """Of a tool."""
        self._tool = tool
        self._process: subprocess.Popen[str] | None = None
        self._cold = False

    def ask(self, group: str, fault: str, *, seed: int = 0, kills: int = 5, limit_s: float = LIMIT_S) -> Outcome:
        """Inject a fault.

        Raises:
            ImportError: the tool is not installed.
        """
        if group == "writing" and self._cold:
            self.close()  # it must not have run before its process is forked
        process = self._process or self._start()
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(json.dumps([group, fault, seed, kills, limit_s]) + "\n")
        process.stdin.flush()
        ready, _, _ = select.select([process.stdout], [], [], _MOST_S)
        line = process.stdout.readline() if ready else ""
        if not line:
            self.close()
            return Outcome(False, 1, 1, "its process crashed, or hung where no alarm ends it")
        return Outcome(*json.loads(line))

    def close(self) -> None:
        """End the process and all that it has forked."""
        if self._process is not None:
            process, self._process = self._process, None
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()

    def _start(self) -> "subprocess.Popen[str]":
        environment = os.environ | {
            "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false",  # a forked process has none of its parent's threads
            "JAX_PLATFORMS": "cpu",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), *sys.path]),
        }
        self._process = subprocess.Popen(
            [*_own_mounts(), sys.executable, "-m", "faulty.worker", self._tool],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
            start_new_session=True,
        )
        assert self._process.stdout is not None
        opened = json.loads(self._process.stdout.readline() or '{"error": "its process ended at once"}')
        if "error" in opened:
            self.close()
            raise ImportError(f"{self._tool}: {opened['error']}")
        self._cold = opened["cold"]
        return self._process


def _own_mounts() -> list[str]:
    """What lets the process mount small and read-only file systems of its own; nothing if it may not."""
    program = shutil.which("unshare")
    for flags in ("-m", "-rm"):
        command = [] if program is None else [program, flags]
        if command and subprocess.run([*command, "true"], capture_output=True, check=False).returncode == 0:
            return command
    return []


def _serve(name: str) -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a tool prints is no answer
    warnings.simplefilter("ignore")
    jax.config.update("jax_cpu_enable_async_dispatch", False)  # before anything starts JAX's threads
    from .faults import FAULTS

    try:
        module, cls = TOOLS[name].split(":")
        tool = getattr(importlib.import_module(module), cls)()
    except ImportError as error:
        print(json.dumps({"error": str(error)}), file=answers, flush=True)
        return
    print(json.dumps({"cold": tool.cold}), file=answers, flush=True)
    for line in sys.stdin:
        group, fault, seed, kills, limit_s = json.loads(line)
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
            trials = FAULTS[group][fault](tool, Setting(Path(scratch), np.random.default_rng(seed), kills))
            outcome = judge(trials, ours=tool.ours, cold=tool.cold, limit_s=limit_s)
        print(json.dumps(outcome), file=answers, flush=True)


if __name__ == "__main__":
    _serve(sys.argv[1])
