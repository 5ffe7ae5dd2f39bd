"""Run one command in several processes on this machine, to try out what runs on several machines."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

from minijaxnet.parallel.processes import LOST

# How long the others have to notice that one has died, before they are killed.
_GRACE_S = 5.0
_GOOD = (0, 1, 128 + signal.SIGINT, 128 + signal.SIGTERM)


class Started(NamedTuple):
    """A process, and what it writes to stderr; None for the first one, which writes to this process's own."""

    process: subprocess.Popen[bytes]
    errors: IO[bytes] | None


def free_port() -> int:
    """A port that nobody listens at."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def launch(arguments: Sequence[str], count: int) -> int:
    """Start so many processes of a command, and wait for all of them; the exit code.

    SIGINT and SIGTERM are handed on. When one dies, the others are ended, and it is said which one it was and why.

    Args:
        arguments: of ``minijaxnet``; each process gets its place among the others besides.
        count: how many.
    """
    place = ["--coordinator", f"127.0.0.1:{free_port()}", "--num-processes", str(count), "--process-id"]
    started: list[Started] = []
    ended: dict[int, int] = {}  # in the order of their ends
    with _handing_on_signals(started) as came, contextlib.ExitStack() as at_the_end:
        for rank in range(count):
            if came:
                break
            started.append(_start([*arguments, *place, str(rank)], quiet=rank > 0))
            at_the_end.callback(started[-1].process.wait)
            at_the_end.callback(started[-1].process.kill)
        deadline = float("inf")
        while len(ended) < len(started) and time.monotonic() < deadline:
            time.sleep(0.02)
            for rank, (process, _) in enumerate(started):
                if rank not in ended and (code := process.poll()) is not None:
                    ended[rank] = code
                    if came or code not in _GOOD:
                        deadline = min(deadline, time.monotonic() + _GRACE_S)
    bad = {rank: code for rank, code in ended.items() if code not in _GOOD}
    if came and (bad or len(ended) < count):
        return 128 + came[0]
    if not bad:
        return max(ended.values())
    # JAX aborts a process that no longer hears from another one: the other one is to be named.
    rank = next((rank for rank, code in bad.items() if code not in (LOST, -signal.SIGABRT)), next(iter(bad)))
    print(f"minijaxnet: process {rank} {_ending(bad[rank])}{_said(started[rank].errors)}", file=sys.stderr)
    return bad[rank] if bad[rank] > 0 else LOST


def another(arguments: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """The words that start this command with other arguments, and the environment for it, installed or not."""
    path = os.pathsep.join([str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-P", "-m", "minijaxnet", *arguments]
    return command, os.environ | {"PYTHONPATH": path}


def _start(arguments: Sequence[str], *, quiet: bool) -> Started:
    errors = tempfile.TemporaryFile() if quiet else None
    command, environment = another(arguments)
    process = subprocess.Popen(
        command,
        env=environment,
        start_new_session=True,  # Ctrl-C on a terminal reaches this process alone, which hands it on
        stdout=subprocess.DEVNULL if quiet else None,
        stderr=errors,
    )
    return Started(process, errors)


def _ending(code: int) -> str:
    return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"failed with exit code {code}"


def _said(errors: IO[bytes] | None) -> str:
    if errors is None:
        return ""
    errors.seek(0)
    text = errors.read().decode(errors="replace").strip()
    return f"; it said:\n{text}" if text else ""


@contextlib.contextmanager
def _handing_on_signals(started: list[Started]) -> Iterator[list[int]]:
    """Hand SIGINT and SIGTERM on to those that are started; the signals that came."""
    came: list[int] = []

    def hand_on(signum: int, frame: Any) -> None:
        came.append(signum)
        for process, _ in started:
            process.send_signal(signum)

    before = {signum: signal.signal(signum, hand_on) for signum in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield came
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
