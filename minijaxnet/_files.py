"""Files that are on the disk when they are said to be, and are no links to others.

A folder may come from a stranger: what is a link in it, or a pipe or a device, is neither read nor written.
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
    """A full disk or a failing one does not know of which file it speaks."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, f"{what}: {error.strerror}", str(path)) from error


def open_own(path: str | Path, flags: int) -> int:
    """Open a regular file, to be an ``opener`` of ``open``. A pipe or a device could block, and a link lead anywhere.

    Between the look and the opening another file may take the name: it is neither followed nor waited for, but on
    Windows, which cannot be told so.

    Raises:
        NotAFile: it is something else; the text names it.
        OSError: of the kind that it is.
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
    """A folder, made if it is not there.

    Raises:
        NotAFile: a link is in its place: what is written and deleted there would be another's.
    """
    if path.is_symlink():
        raise NotAFile(f"{path}: got a symbolic link; expected the folder itself")
    path.mkdir(exist_ok=True)
    return path


def read_own(path: Path) -> bytes:
    """The content of a file; raises as ``open_own`` does."""
    with open(path, "rb", opener=open_own) as file:
        return file.read()


def read_json(path: Path) -> dict[str, Any]:
    """What a JSON file holds; nothing if it is not there, not whole, nested too deeply, or no object."""
    try:
        found = json.loads(read_own(path))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


class Lines(io.FileIO):
    """A file of lines to append to; nothing is kept back, so a full disk is told of with the line that it cost."""

    def __init__(self, path: Path, mode: str = "a"):
        """Open it; a new one with the mode "x"."""
        self.path = path
        with naming(path, "file not opened"):
            super().__init__(path, mode, opener=open_own)

    def append(self, text: str) -> None:
        """Write a text, whole, or raise ``OSError``, naming the file."""
        content = text.encode("utf-8", "backslashreplace")
        with naming(self.path, "line not written"):
            while content:
                content = content[self.write(content) :]

    def sync(self) -> None:
        """Have the disk hold all that was written."""
        with naming(self.path, "file not written"):
            to_disk(self.fileno())


def to_disk(descriptor: int) -> None:
    """Flush a file through all caches; macOS keeps those of the drive back from ``fsync``."""
    with contextlib.suppress(ImportError, AttributeError, OSError):  # elsewhere, and network drives, do not know it
        import fcntl

        fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)  # pyright: ignore[reportAttributeAccessIssue]
        return
    os.fsync(descriptor)


def folder_to_disk(folder: Path) -> None:
    """Flush the names in a folder; Windows cannot: there a power cut may take the newest names."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        to_disk(descriptor)
    except OSError as error:
        if error.errno not in (errno.EBADF, errno.EINVAL):  # some file systems have nothing to flush there
            raise
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def replacing(path: Path, part: Path) -> Iterator[BinaryIO]:
    """A new file to write; when the ``with`` ends it takes the place of another, whole or not at all.

    The content goes to the disk before the new name does (otherwise a power cut may leave the name and no content), and
    the name before this ends. Whatever goes wrong until then, the path holds what it held, or all that is new.

    Args:
        path: of the file, in a folder that exists.
        part: where it is written, in the same folder; gone afterwards.

    Raises:
        NotAFile: the part is there and no file.

    Source: Pillai et al., "All file systems are not created equal", OSDI 2014.
    """
    with contextlib.suppress(FileNotFoundError):
        _check_regular(part, os.lstat(part).st_mode)
        part.unlink()  # of a process that was killed
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
    """Put a file in the place of another, whole or not at all, and on the disk."""
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
