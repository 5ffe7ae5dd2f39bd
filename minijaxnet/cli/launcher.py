"""Run one command in several processes: start them on this machine, or join those that were started."""

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

import jax

from minijaxnet._machine import choose_deterministic
from minijaxnet.cli.errors import UsageError
from minijaxnet.cli.flags import PlaceFlags
from minijaxnet.parallel import divide_cpu, initialize
from minijaxnet.parallel.processes import LOST, all_gather

# The time in which the others may end by themselves when one has died; then they are killed.
_GRACE_S = 5.0
_GOOD = (0, 1, 128 + signal.SIGINT, 128 + signal.SIGTERM)


def launch_if_needed(arguments: Sequence[str], flags: PlaceFlags) -> int | None:
    """Run a command in processes of its own, if the flags say so: the exit code; None if this process is to run it."""
    for name in ("processes", "heartbeat_seconds"):
        if (value := getattr(flags, name)) < 1:
            raise UsageError(f"{name}: got {value}; expected at least 1")
    if flags.processes in (1, flags.num_processes):  # this process is one of them
        return None
    if flags.coordinator is not None:
        raise UsageError(f"processes: got {flags.processes}, and a coordinator; expected one of the two")
    return launch(arguments, flags.processes)


def join(flags: PlaceFlags) -> None:
    """Join the other processes, if there are any, and divide the CPU, before anything asks JAX for a device.

    Raises:
        UsageError: devices that the processes do not divide, or another number of them in each.
    """
    if flags.deterministic:
        choose_deterministic()
    count = flags.num_processes or 1
    if isinstance(flags.devices, int):
        if flags.devices % count:
            raise UsageError(f"devices: got {flags.devices}; expected a multiple of {count}, the processes")
        divide_cpu(flags.devices // count)
    if flags.coordinator is None:
        return
    initialize(
        None if flags.coordinator == "auto" else flags.coordinator,
        num_processes=flags.num_processes,
        process_id=flags.process_id,
        timeout_s=max(60, 2 * flags.heartbeat_seconds),  # a process that is started again may come before the others
        heartbeat_s=flags.heartbeat_seconds,
    )
    each = [len(jax.local_devices(process)) for process in range(jax.process_count())]
    if len(set(each)) > 1:
        raise UsageError(f"devices: got {', '.join(map(str, each))} in the processes; expected as many in each")
    all_gather([0])  # JAX waits only half a minute the first time: now, not when each has loaded its data


def free_port() -> int:
    """A port of this machine that is not in use."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


class Process(NamedTuple):
    """A process, and what it writes to stderr; None for the first one, which writes to this process's own."""

    process: subprocess.Popen[bytes]
    errors: IO[bytes] | None


def launch(arguments: Sequence[str], count: int) -> int:
    """Start so many processes of a command, and wait for all of them; the exit code.

    They receive SIGINT and SIGTERM, too. When one dies, the others are ended, and the first that died is named with its
    errors.

    Args:
        arguments: of ``minijaxnet``; the flags that number the processes are added.
        count: how many.
    """
    place = ["--coordinator", f"127.0.0.1:{free_port()}", "--num-processes", str(count), "--process-id"]
    started: list[Process] = []
    exits: dict[int, int] = {}  # in the order of their ends
    with _passing_on_signals(started) as signums, contextlib.ExitStack() as at_the_end:
        for rank in range(count):
            if signums:
                break
            started.append(_start([*arguments, *place, str(rank)], quiet=rank > 0))
            at_the_end.callback(started[-1].process.wait)
            at_the_end.callback(started[-1].process.kill)
        deadline = float("inf")
        while len(exits) < len(started) and time.monotonic() < deadline:
            time.sleep(0.02)
            for rank, (process, _) in enumerate(started):
                if rank not in exits and (code := process.poll()) is not None:
                    exits[rank] = code
                    if signums or code not in _GOOD:
                        deadline = min(deadline, time.monotonic() + _GRACE_S)
    failed = {rank: code for rank, code in exits.items() if code not in _GOOD}
    if signums and (failed or len(exits) < count):
        return 128 + signums[0]
    if not failed:
        return max(exits.values())
    # JAX aborts a process that has lost another one: the other one is named.
    rank = next((rank for rank, code in failed.items() if code not in (LOST, -signal.SIGABRT)), next(iter(failed)))
    code = failed[rank]
    how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"failed with exit code {code}"
    print(f"minijaxnet: process {rank} {how}{_errors_of(started[rank])}", file=sys.stderr)
    return code if code > 0 else LOST


def _start(arguments: Sequence[str], *, quiet: bool) -> Process:
    """Start this command with other arguments, whether it is installed or not."""
    path = os.pathsep.join([str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])])
    errors = tempfile.TemporaryFile() if quiet else None
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "minijaxnet", *arguments],
        env=os.environ | {"PYTHONPATH": path},
        start_new_session=True,  # Ctrl-C on a terminal reaches this process alone, which passes it on
        stdout=subprocess.DEVNULL if quiet else None,
        stderr=errors,
    )
    return Process(process, errors)


def _errors_of(process: Process) -> str:
    if process.errors is None:
        return ""
    process.errors.seek(0)
    text = process.errors.read().decode(errors="replace").strip()
    return f"; its errors:\n{text}" if text else ""


@contextlib.contextmanager
def _passing_on_signals(started: list[Process]) -> Iterator[list[int]]:
    """Pass SIGINT and SIGTERM on to the processes that are started; yields the signals received."""
    signums: list[int] = []

    def pass_on(signum: int, frame: Any) -> None:
        signums.append(signum)
        for process, _ in started:
            process.send_signal(signum)

    before = {signum: signal.signal(signum, pass_on) for signum in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield signums
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
