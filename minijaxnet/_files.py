"""Reading and writing files safely: writes are flushed to the disk, and links are not followed.

A folder may come from a stranger. A link, a pipe or a device in it is neither read nor written.
"""

import contextlib
import errno
import io
import json
import math
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import jax
import numpy as np


class NotAFile(ValueError):
    """A link, a folder, a pipe or a device where a file is expected."""


@contextlib.contextmanager
def naming(path: Path, what: str) -> Iterator[None]:
    """Add the file's path to an ``OSError``; the error of a full disk does not name it."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, f"{what}: {error.strerror}", str(path)) from error


def open_own(path: str | Path, flags: int) -> int:
    """Open a regular file; an ``opener`` for ``open``. A pipe or a device could block, and a link could lead anywhere.

    Another file may take the name between the check and the opening. So the flags forbid to follow a link or to wait
    for a pipe, except on Windows, which has no such flags.

    Raises:
        NotAFile: it is not a regular file.
        OSError: it cannot be opened.
    """
    with contextlib.suppress(FileNotFoundError):
        _check_regular(path, os.lstat(path).st_mode)
    descriptor = os.open(path, flags | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0), 0o666)
    try:
        _check_regular(path, os.fstat(descriptor).st_mode)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _check_regular(path: str | Path, mode: int) -> None:
    if not stat.S_ISREG(mode):
        names = {"l": "a symbolic link", "d": "a folder", "p": "a pipe", "s": "a socket"}
        raise NotAFile(f"{path}: got {names.get(stat.filemode(mode)[0], 'a device')}; expected the file itself")


def own_folder(path: Path) -> Path:
    """Make a folder if it does not exist, and return it.

    Raises:
        NotAFile: it is a link. Writing and deleting there would change another folder.
    """
    if path.is_symlink():
        raise NotAFile(f"{path}: got a symbolic link; expected the folder itself")
    path.mkdir(exist_ok=True)
    return path


def read_own(path: Path) -> bytes:
    """Read a regular file; raise as ``open_own`` does."""
    with open(path, "rb", opener=open_own) as file:
        return file.read()


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; {} if the file is missing, damaged, nested too deeply, or not an object."""
    try:
        found = json.loads(read_own(path))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


class Lines(io.FileIO):
    """A file to append lines to, without a buffer: when the disk is full, the write of that line fails."""

    def __init__(self, path: Path, mode: str = "a"):
        """Open the file; the mode "x" makes a new one."""
        self.path = path
        with naming(path, "file not opened"):
            super().__init__(path, mode, opener=open_own)

    def append(self, text: str) -> None:
        """Write the whole text.

        Raises:
            OSError: it cannot be written; the text names the file.
        """
        content = text.encode("utf-8", "backslashreplace")
        with naming(self.path, "line not written"):
            while content:
                content = content[self.write(content) :]

    def sync(self) -> None:
        """Flush everything written so far to the disk."""
        with naming(self.path, "file not written"):
            to_disk(self.fileno())


def to_disk(descriptor: int) -> None:
    """Flush a file to the disk; on macOS ``fsync`` alone does not flush the drive's own cache."""
    with contextlib.suppress(ImportError, AttributeError, OSError):  # not macOS, or a network drive
        import fcntl

        fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)  # pyright: ignore[reportAttributeAccessIssue]
        return
    os.fsync(descriptor)


def folder_to_disk(folder: Path) -> None:
    """Flush the names in a folder. Windows cannot do this; there a power cut may lose the newest names."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        to_disk(descriptor)
    except OSError as error:
        if error.errno not in (errno.EBADF, errno.EINVAL):  # some file systems do not support it
            raise
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def replacing(path: Path, part: Path) -> Iterator[BinaryIO]:
    """Open a temporary file to write; when the ``with`` ends, it replaces the file at ``path``.

    The content is flushed to the disk before the renaming, since otherwise a power cut may leave the new name without
    content. The new name is flushed before this returns. After an error or a crash ``path`` holds either all of the old
    content or all of the new.

    Args:
        path: the file to replace, in a folder that exists.
        part: the temporary file, in the same folder.

    Raises:
        NotAFile: ``part`` exists and is not a regular file.

    Source: Pillai et al., "All file systems are not created equal", OSDI 2014.
    """
    with contextlib.suppress(FileNotFoundError):
        _check_regular(part, os.lstat(part).st_mode)
        part.unlink()  # left by a process that was killed
    try:
        with open(part, "xb", opener=open_own) as file:
            yield file
            file.flush()
            to_disk(file.fileno())
        os.replace(part, path)
    except BaseException:
        with contextlib.suppress(OSError):
            part.unlink()
        raise
    folder_to_disk(path.parent)


def replace_file(path: Path, content: bytes) -> None:
    """Write a file as a whole, and flush it to the disk."""
    with naming(path, "file not written"), replacing(path, path.with_name(path.name + ".part")) as file:
        file.write(content)


def plain(value: Any) -> Any:
    """A value in JSON's own kinds: arrays as lists or numbers, what is not finite as None."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, jax.Array | np.ndarray | np.generic):
        return plain(np.asarray(value).tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, str | int | bool | None) else str(value)
