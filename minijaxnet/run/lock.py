"""Who holds a run folder: one process at a time, and a dead one no longer.

The kernel's lock on the file ends with its owner, however that dies. What is written in it says who that is, and
serves where the file system knows no locks.
"""

import itertools
import json
import os
import platform
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

LOCK = "lock"
_ATTEMPTS = 5


class RunInUse(OSError):
    """A run folder that another process holds."""


class Held(NamedTuple):
    """A run folder that this process holds, as ``hold`` gave it."""

    folder: Path


@contextmanager
def hold(folder: str | Path | Held) -> Iterator[Held]:
    """Hold a run folder within the ``with``; one that is held already, by whoever hands it on, stays so.

    Raises:
        RunInUse: a process that is alive holds it, this one included; the text names it and since when.
    """
    if isinstance(folder, Held):
        yield folder
        return
    path = Path(folder) / LOCK
    descriptor = _locked(path)
    try:
        me = {
            "pid": os.getpid(),
            "started": started(os.getpid()),
            "host": platform.node(),
            "since_utc": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(me).encode(), 0)
        try:
            yield Held(Path(folder))
        finally:
            path.unlink(missing_ok=True)
    finally:
        os.close(descriptor)


def owner(folder: str | Path) -> dict[str, Any] | None:
    """Who holds a run folder, ``{"pid", "started", "host", "since_utc"}``; None if nobody does that is alive."""
    try:
        descriptor = os.open(Path(folder) / LOCK, os.O_RDWR)
    except OSError:
        return None
    try:
        return _living_owner(descriptor)
    finally:
        os.close(descriptor)


def started(pid: int) -> str | None:
    """When a process was started, in the words of the system, which no other process of that pid shares; None if dead.

    >>> started(os.getpid()) == started(os.getpid()) != None
    True
    """
    try:
        status = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return None if Path("/proc/self/stat").exists() else _started_by_ps(pid)
    state, *fields = status.rpartition(")")[2].split()
    return None if state in "ZX" else f"{fields[18]} ticks after boot {boot}"  # field 22 of proc(5)


def _started_by_ps(pid: int) -> str | None:
    found = subprocess.run(["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return found.stdout.strip() or None


def _locked(path: Path) -> int:
    """The lock file, opened and ours."""
    for attempt in itertools.count(1):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            other = _living_owner(descriptor)
            with suppress(FileNotFoundError):
                if other is None and os.path.samestat(os.fstat(descriptor), os.stat(path)):
                    return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # held, be it by somebody who only looks; or just removed by its last owner
        if other is not None and attempt >= _ATTEMPTS:
            who = f"process {other.get('pid', 'unknown')} on {other.get('host', 'an unknown machine')}"
            since = f" since {other['since_utc']}" if "since_utc" in other else ""
            raise RunInUse(f"{path.parent}: {who} holds this run{since}; expected a run that nobody carries out")
        time.sleep(0.02)
    raise AssertionError("unreachable")


def _living_owner(descriptor: int) -> dict[str, Any] | None:
    """The owner that an open lock file names, if it is alive; if there is none, the file is now locked by us."""
    free = _lock(descriptor)
    if free:
        return None
    try:
        found = json.loads(os.pread(descriptor, 4096, 0))
    except ValueError:  # nothing in it yet, or no JSON
        found = None
    found = found if isinstance(found, dict) else {}
    if free is False:
        return found or {"host": platform.node()}
    pid = found.get("pid")
    if not isinstance(pid, int):
        return None
    if found.get("host") != platform.node():
        return found  # nobody here can tell
    now = started(pid)
    return found if now is not None and found.get("started") == now else None


def _lock(descriptor: int) -> bool | None:
    """Whether the kernel lets us lock a file; None where it knows no locks."""
    try:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except (ImportError, OSError):
        return None
    return True
