"""Who holds a run folder: one process at a time, and a dead one no longer.

The kernel's lock on the file ``lock`` ends with its owner, however that dies; processes that it forked do not keep it.
``lock.json`` beside it says who that is. Where a file system knows no locks, filelock warns, and goes by the process
that its file names.
"""

import json
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from minijaxnet._files import NotAFile, open_own, read_json, replace_file

LOCK, OWNER = "lock", "lock.json"
# Somebody who only looks may hold it for a moment.
_WAIT_S = 0.2


class RunInUse(OSError):
    """A run folder that another process holds."""


class HeldFolder(NamedTuple):
    """A run folder that this process holds, as ``hold`` gave it."""

    folder: Path


@contextmanager
def hold(folder: str | Path | HeldFolder) -> Iterator[HeldFolder]:
    """Hold a run folder within the ``with``; one that is held already, by whoever hands it on, stays so.

    Raises:
        RunInUse: a process that is alive holds it, this one included; the text names it and since when.
    """
    if isinstance(folder, HeldFolder):
        yield folder
        return
    from filelock import Timeout  # 70 ms: imported where used

    folder = Path(folder)
    lock = _lock(folder / LOCK)
    try:
        lock.acquire()
    except Timeout:
        other = read_json(folder / OWNER)
        who = f"process {other.get('pid', 'unknown')} on {other.get('host', 'an unknown machine')}"
        since = f" since {other['since_utc']}" if "since_utc" in other else ""
        raise RunInUse(f"{folder}: {who} holds this run{since}; expected a run that nobody carries out") from None
    pid = os.getpid()
    try:
        me = {"pid": pid, "host": platform.node(), "since_utc": datetime.now(UTC).isoformat(timespec="seconds")}
        replace_file(folder / OWNER, json.dumps(me).encode())
        yield HeldFolder(folder)
    finally:
        if os.getpid() == pid:  # a process that was forked meanwhile holds nothing
            for name in (OWNER, LOCK):
                with suppress(OSError):  # Windows removes no open file: filelock does so afterwards
                    (folder / name).unlink()
            lock.release()


def owner(folder: str | Path) -> dict[str, Any] | None:
    """Who holds a run folder, ``{"pid", "host", "since_utc"}``; None if nobody does that is alive.

    To read the files is enough to know; what a file system without locks knows, only those can ask who may write.
    """
    folder = Path(folder)
    return (read_json(folder / OWNER) or {"host": platform.node()}) if _is_locked(folder / LOCK) else None


def _lock(path: Path) -> Any:
    from filelock import FileLock

    if not path.parent.is_dir():  # filelock would make it
        raise FileNotFoundError(f"{path.parent}: there is no such folder; expected the folder of a run")
    if path.is_symlink():
        raise NotAFile(f"{path}: got a symbolic link; expected the file itself")
    return FileLock(path, timeout=_WAIT_S, poll_interval=0.01, thread_local=False)


def _is_locked(path: Path) -> bool:
    try:
        with open(path, "rb", opener=open_own) as file:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # shared: those who look do not see one another
            return False
    except BlockingIOError:
        return True
    except (FileNotFoundError, PermissionError, NotAFile):
        return False
    except (ImportError, OSError):  # on Windows, or a file system without locks
        from filelock import Timeout
    try:
        with _lock(path):
            return False
    except (Timeout, OSError):  # who may not ask cannot tell
        return True
