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

# The end of a pipe whose other end the supervisor holds, and the file that names the run's folder.
_ALIVE, _NOTE = "MINIJAXNET_SUPERVISOR", "MINIJAXNET_RUN_FOLDER"
# How long the others have to notice that one is dead, before they are killed.
_GRACE_S = 5.0


class Process(NamedTuple):
    """One that is watched over, and where it says what went wrong; None if on the supervisor's own stderr."""

    rank: int
    process: subprocess.Popen[bytes]
    complaints: IO[bytes] | None


def supervised() -> bool:
    """Whether this process is watched over."""
    return _ALIVE in os.environ


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
    with tempfile.TemporaryDirectory() as folder, _signals_to(running := []) as stopped:
        note = Path(folder, "run")
        for restart in range(restarts + 1):
            code, cause = _once(commands(), note, running)
            if cause is None:
                return code
            print(f"minijaxnet: {cause}", file=sys.stderr, flush=True)
            if code != LOST or stopped:
                return code
            if restart < restarts:
                print(f"minijaxnet: all start again ({restart + 1} of {restarts})", file=sys.stderr, flush=True)
                time.sleep(pause_s)
        if note.exists():
            print(f"minijaxnet resume {note.read_text(encoding='utf-8')} goes on", file=sys.stderr)
        return LOST


def noted_folder() -> Path | None:
    """The folder that an earlier start of this run made, if it did."""
    note = Path(os.environ.get(_NOTE, ""))
    folder = Path(note.read_text(encoding="utf-8")) if note.is_file() else None
    return folder if folder is not None and folder.is_dir() else None


def note_folder(folder: Path) -> None:
    """Have the supervisor know the folder of this run."""
    if _NOTE in os.environ:
        Path(os.environ[_NOTE]).write_text(str(folder), encoding="utf-8")


def stop_with_supervisor() -> None:
    """Have this process stop, as by SIGTERM, when its supervisor is gone."""
    pipe = int(os.environ[_ALIVE])

    def wait() -> None:
        os.read(pipe, 1)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, daemon=True).start()


def _once(commands: dict[int, list[str]], note: Path, running: list[Process]) -> tuple[int, str | None]:
    """Start all and wait for all; the exit code, and what went wrong, if something did."""
    pipe, held = os.pipe()
    try:
        for rank, arguments in commands.items():
            running.append(_start(rank, arguments, pipe, note, quiet=rank > 0 and len(commands) > 1))
        codes = _wait(running)
    finally:
        for each in running:
            each.process.kill()
            each.process.wait()
        complaints = {each.rank: each.complaints for each in running}
        running.clear()
        os.close(pipe)
        os.close(held)
    rank, code = max(codes.items(), key=lambda found: (_blame(found[1]), -found[0]))
    if _blame(code) == 0 or (code == 2 and complaints[rank] is None):  # which has said so itself
        return code, None
    cause = f"process {rank} {_ending(code)}"
    if (text := complaints[rank]) is not None:
        text.seek(0)
        said = text.read().decode(errors="replace").strip()
        cause += f"; it said:\n{said}" if said else ""
    return (code if code > 0 and code != LOST else LOST), cause


def _start(rank: int, arguments: Sequence[str], pipe: int, note: Path, *, quiet: bool) -> Process:
    path = os.pathsep.join([str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])])
    complaints = tempfile.TemporaryFile() if quiet else None
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "minijaxnet", *arguments],
        env=os.environ | {"PYTHONPATH": path, _ALIVE: str(pipe), _NOTE: str(note)},
        pass_fds=[pipe],
        start_new_session=True,  # Ctrl-C on a terminal reaches the supervisor alone
        stdout=subprocess.DEVNULL if quiet else None,
        stderr=complaints,
    )
    return Process(rank, process, complaints)


def _wait(running: Sequence[Process]) -> dict[int, int]:
    """The exit code of each that ended; after one that went wrong the others have little time."""
    codes: dict[int, int] = {}
    deadline = float("inf")
    while len(codes) < len(running) and time.monotonic() < deadline:
        time.sleep(0.02)
        for rank, process, _ in running:
            if rank not in codes and (code := process.poll()) is not None:
                codes[rank] = code
                if _blame(code):
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
            each.process.send_signal(signum)

    before = {signum: signal.signal(signum, hand_on) for signum in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield came
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
