"""The lock of a run folder: one process at a time holds it.

The kernel releases the lock on the file ``lock`` when its owner ends, in any way; forked processes do not inherit it.
``lock.json`` beside it describes the owner. On a file system without locks filelock warns, and uses the process id in
its file instead.
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
# A process that only checks the lock may hold it for a moment.
_WAIT_S = 0.2


class RunInUse(OSError):
    """An error: another process holds the run folder."""


class HeldFolder(NamedTuple):
    """A run folder that this process holds; ``hold`` makes it."""

    folder: Path


@contextmanager
def hold(folder: str | Path | HeldFolder) -> Iterator[HeldFolder]:
    """Hold a run folder within the ``with``. A ``HeldFolder`` is passed through and stays held.

    Raises:
        RunInUse: a running process, which may be this one, holds it; the text has the process and the time.
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
        raise RunInUse(f"{folder}: {who} holds this run{since}; expected a run that is not running") from None
    pid = os.getpid()
    try:
        me = {"pid": pid, "host": platform.node(), "since_utc": datetime.now(UTC).isoformat(timespec="seconds")}
        replace_file(folder / OWNER, json.dumps(me).encode())
        yield HeldFolder(folder)
    finally:
        if os.getpid() == pid:  # a forked process does not hold it
            for name in (OWNER, LOCK):
                with suppress(OSError):  # Windows cannot remove an open file; there filelock removes it afterwards
                    (folder / name).unlink()
            lock.release()


def owner(folder: str | Path) -> dict[str, Any] | None:
    """The running process that holds a run folder, ``{"pid", "host", "since_utc"}``; None if there is none.

    This needs only read access to the files, but write access on a file system without locks.
    """
    folder = Path(folder)
    return (read_json(folder / OWNER) or {"host": platform.node()}) if _is_locked(folder / LOCK) else None


def _lock(path: Path) -> Any:
    from filelock import FileLock

    if not path.parent.is_dir():  # otherwise filelock would make the folder
        raise FileNotFoundError(f"{path.parent}: there is no such folder; expected the folder of a run")
    if path.is_symlink():
        raise NotAFile(f"{path}: got a symbolic link; expected the file itself")
    return FileLock(path, timeout=_WAIT_S, poll_interval=0.01, thread_local=False)


def _is_locked(path: Path) -> bool:
    try:
        with open(path, "rb", opener=open_own) as file:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # shared, so that two checks do not block each other
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
    except (Timeout, OSError):  # without write access it is unknown, and counts as held
        return True
