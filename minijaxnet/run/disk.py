"""Files that are on the disk when they are said to be."""

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


@contextlib.contextmanager
def naming(path: Path, what: str) -> Iterator[None]:
    """A full disk or a failing one does not know of which file it speaks."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, f"{what}: {error.strerror}", str(path)) from error


def to_disk(descriptor: int) -> None:
    """Flush a file through all caches; macOS keeps those of the drive back from ``fsync``."""
    import fcntl

    full = getattr(fcntl, "F_FULLFSYNC", None)
    if full is not None:
        with contextlib.suppress(OSError):  # network drives do not know it
            fcntl.fcntl(descriptor, full)
            return
    os.fsync(descriptor)


def folder_to_disk(folder: Path) -> None:
    """Flush the names in a folder."""
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

    Source: Pillai et al., "All file systems are not created equal", OSDI 2014.
    """
    try:
        with part.open("wb") as file:
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
