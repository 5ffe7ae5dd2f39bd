"""Watch over the processes of a run: start them, end all when one dies, and start all again where they had come to."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

from minijaxnet.processes import LOST
from minijaxnet.run.signals import heard_within

# The end of a pipe whose other end the supervisor holds, its own process, and the file that names the run's folder.
_PIPE, _SUPERVISOR, _NOTE = "MINIJAXNET_PIPE", "MINIJAXNET_SUPERVISOR", "MINIJAXNET_RUN_FOLDER"
# How long the others have to notice that one is dead, before they are killed.
_GRACE_S = 5.0
# A signal may reach a process itself, too, where one stops all of a job: then it is not to hear of it twice.
_ECHO_S = 0.3


class Process(NamedTuple):
    """One that is watched over.

    Attributes:
        rank: its process id among the others.
        process: it.
        pipe: through which it is told of signals; when it is closed, the process stops by itself.
        complaints: what it says went wrong; None if it does so on the supervisor's own stderr.
    """

    rank: int
    process: subprocess.Popen[bytes]
    pipe: int
    complaints: IO[bytes] | None


def supervised() -> bool:
    """Whether this process is watched over; those that it starts are not."""
    return os.environ.get(_SUPERVISOR) == str(os.getppid())


def free_port() -> int:
    """A port that nobody listens at."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def supervise(commands: Callable[[], dict[int, list[str]]], *, restarts: int, pause_s: float) -> int:
    """Carry out processes of one run until all of them are done; the exit code.

    When one is killed, or loses the others, all are ended; they are started again so often, and go on from the last
    checkpoint. SIGINT and SIGTERM are handed on; if the supervisor itself is killed, they stop by themselves.

    Args:
        commands: what to start, ``{process_id: arguments of minijaxnet}``, anew for each start.
        restarts: how often to start again.
        pause_s: seconds before that.
    """
    with tempfile.TemporaryDirectory() as folder, _signals_to(running := []) as came:
        note = Path(folder, "run")
        for restart in range(restarts + 1):
            code, cause = _once(commands(), note, running, came)
            if came and code not in (0, 1):
                return 128 + came[0]
            if cause is None:
                return code
            print(f"minijaxnet: {cause}", file=sys.stderr, flush=True)
            if code != LOST:
                return code
            if restart < restarts:
                print(f"minijaxnet: all start again ({restart + 1} of {restarts})", file=sys.stderr, flush=True)
                until = time.monotonic() + pause_s
                while not came and time.monotonic() < until:
                    time.sleep(0.1)
                if came:
                    return 128 + came[0]
        if (folder_left := _noted(note)) is not None:
            print(f"minijaxnet resume {folder_left} goes on", file=sys.stderr)
        return LOST


def noted_folder() -> Path | None:
    """The folder that an earlier start of this run made, if it did."""
    return _noted(Path(os.environ[_NOTE])) if supervised() else None


def note_folder(folder: Path) -> None:
    """Have the supervisor know the folder of this run."""
    if supervised():
        Path(os.environ[_NOTE]).write_text(str(folder), encoding="utf-8")


def stop_with_supervisor() -> None:
    """Have this process hear what its supervisor hears, and stop, as by SIGTERM, when that is gone."""
    pipe = int(os.environ[_PIPE])

    def listen() -> None:
        while told := os.read(pipe, 1):
            time.sleep(_ECHO_S)
            if not heard_within(2 * _ECHO_S):
                os.kill(os.getpid(), told[0])
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=listen, daemon=True).start()


def _noted(note: Path) -> Path | None:
    folder = Path(note.read_text(encoding="utf-8")) if note.is_file() else None
    return folder if folder is not None and folder.is_dir() else None


def _once(
    commands: dict[int, list[str]], note: Path, running: list[Process], came: Sequence[int]
) -> tuple[int, str | None]:
    """Start all and wait for all; the exit code, and what went wrong, if something did."""
    try:
        for rank, arguments in commands.items():
            if came:
                break
            running.append(_start(rank, arguments, note, quiet=rank > 0 and len(commands) > 1))
            for signum in came:  # while it was being started
                os.write(running[-1].pipe, bytes([signum]))
        codes = _wait(running, came)
    finally:
        for each in running:
            each.process.kill()
            each.process.wait()
            os.close(each.pipe)
        complaints = {each.rank: each.complaints for each in running}
        running.clear()
    if not codes:  # stopped before anything was started
        return LOST, None
    rank, code = max(codes.items(), key=lambda found: (_blame(found[1]), -found[0]))
    if _blame(code) == 0 or (code == 2 and complaints[rank] is None):  # which has said so itself
        return code, None
    cause = f"process {rank} {_ending(code)}"
    if (text := complaints[rank]) is not None:
        text.seek(0)
        said = text.read().decode(errors="replace").strip()
        cause += f"; it said:\n{said}" if said else ""
    return code if code > 0 else LOST, cause


def _start(rank: int, arguments: Sequence[str], note: Path, *, quiet: bool) -> Process:
    path = os.pathsep.join([str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])])
    ours = {"PYTHONPATH": path, _SUPERVISOR: str(os.getpid()), _NOTE: str(note)}
    complaints = tempfile.TemporaryFile() if quiet else None
    theirs, pipe = os.pipe()
    try:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "minijaxnet", *arguments],
            env=os.environ | ours | {_PIPE: str(theirs)},
            pass_fds=[theirs],
            start_new_session=True,  # Ctrl-C on a terminal reaches the supervisor alone
            stdout=subprocess.DEVNULL if quiet else None,
            stderr=complaints,
        )
    finally:
        os.close(theirs)
    return Process(rank, process, pipe, complaints)


def _wait(running: Sequence[Process], came: Sequence[int]) -> dict[int, int]:
    """The exit code of each that ended; after one that went wrong, or was stopped, the others have little time."""
    codes: dict[int, int] = {}
    deadline = float("inf")
    while len(codes) < len(running) and time.monotonic() < deadline:
        time.sleep(0.02)
        for each in running:
            if each.rank not in codes and (code := each.process.poll()) is not None:
                codes[each.rank] = code
                if _blame(code) or came:
                    deadline = min(deadline, time.monotonic() + _GRACE_S)
    return codes


def _blame(code: int) -> int:
    """How much a process that ended so is to blame: one that only lost the others less than who was lost."""
    if code in (0, 1, 128 + signal.SIGINT, 128 + signal.SIGTERM):
        return 0
    return {LOST: 1, -signal.SIGABRT: 2}.get(code, 3)


def _ending(code: int) -> str:
    if code in (LOST, -signal.SIGABRT):  # JAX aborts a process that no longer hears from another one
        return "lost another process"
    return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"failed with exit code {code}"


@contextlib.contextmanager
def _signals_to(running: list[Process]) -> Iterator[list[int]]:
    """Hand SIGINT and SIGTERM on; those that came."""
    came: list[int] = []

    def hand_on(signum: int, frame: Any) -> None:
        came.append(signum)
        for each in running:
            with contextlib.suppress(BrokenPipeError):  # it has just ended
                os.write(each.pipe, bytes([signum]))

    before = {signum: signal.signal(signum, hand_on) for signum in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield came
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
