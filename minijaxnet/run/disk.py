"""Files that are on the disk when they are said to be."""

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path


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


def replace_file(path: Path, content: bytes) -> None:
    """Put a file in the place of another, whole or not at all, and on the disk."""
    temporary = path.with_name(path.name + ".part")
    with naming(path, "file not written"):
        try:
            with temporary.open("wb") as file:
                file.write(content)
                file.flush()
                to_disk(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        folder_to_disk(path.parent)
