"""The checkpoints of a run in their folder: the newest that is whole, and which may go."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from minijaxnet._checks import check_count
from minijaxnet.run.checkpoint import checkpoint_step, read_checkpoint
from minijaxnet.run.checkpoint_format import CheckpointError, Header

_NAME = re.compile(r"step-([0-9]{8,18})\.safetensors")


class LoadedCheckpoint(NamedTuple):
    """The newest checkpoint that is whole.

    Attributes:
        step: at which it was saved.
        tree: what was saved.
        skipped: why each newer one could not be used, a text each.
        read: how many batches of a stream had been read; 0 where the data is no stream.
    """

    step: int
    tree: Any
    skipped: list[str]
    read: int = 0


def checkpoint_path(folder: str | Path, step: int) -> Path:
    """Where in a folder the checkpoint of a step is.

    >>> checkpoint_path("run", 1234).name
    'step-00001234.safetensors'
    """
    return Path(folder) / f"step-{check_count('step', step):08d}.safetensors"


def checkpoints(folder: str | Path) -> list[tuple[int, Path]]:
    """The checkpoints in a folder by their names, the newest first; nothing is opened.

    Raises:
        FileNotFoundError: there is no such folder.
    """
    found = [(int(match[1]), path) for path in Path(folder).iterdir() if (match := _NAME.fullmatch(path.name))]
    return sorted(((step, path) for step, path in found if path == checkpoint_path(folder, step)), reverse=True)


def load_latest(
    folder: str | Path, like: Any, fits: Callable[[Header], bool] = lambda header: True
) -> LoadedCheckpoint | None:
    """The newest checkpoint in a folder that is whole, and fits; None if there is none of any kind, or none fits.

    Args:
        folder: of the checkpoints.
        like: as for ``load_checkpoint``.
        fits: whether one that is whole may be the one, by its header.

    Raises:
        CheckpointError: there are checkpoints, and none is whole (to start anew would throw them away); or the newest
            whole one is of another tree than ``like``.
        FileNotFoundError: there is no such folder.

    Example:
        >>> import tempfile
        >>> from minijaxnet.run.checkpoint import save_checkpoint
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_checkpoint(checkpoint_path(folder, 20), {"weight": 10.0}, step=20)
        ...     load_latest(folder, like={"weight": 0.0})
        LoadedCheckpoint(step=20, tree={'weight': 10.0}, skipped=[], read=0)
    """
    skipped, all_fit = [], True
    for named, path in checkpoints(folder):
        try:
            header, tree, difference = read_checkpoint(path, like)
        except (CheckpointError, OSError) as error:
            skipped.append(str(error))
            continue
        if header.step != named:
            skipped.append(f"{path}: got the checkpoint of step {header.step}; expected that of step {named}")
        elif difference:
            raise CheckpointError(difference)
        elif not fits(header):
            all_fit = False
        else:
            return LoadedCheckpoint(header.step, tree, skipped, header.read)
    if skipped and all_fit:
        raise CheckpointError(f"{folder}: got no checkpoint that is whole; expected one\n  " + "\n  ".join(skipped))
    return None


def keep_newest(folder: str | Path, count: int) -> list[Path]:
    """Delete old checkpoints, but never the last one that is whole.

    Kept are the newest ``count``, and older ones down to the first that is whole if none of these is: before anything
    is deleted, one that stays has been read from end to end.

    Args:
        folder: of the checkpoints.
        count: how many stay, at least 1.

    Returns:
        What was deleted, the oldest first.

    Raises:
        FileNotFoundError: there is no such folder.
        OSError: a file cannot be deleted.
    """
    check_count("count", count, least=1)
    found = checkpoints(folder)
    if len(found) <= count:
        return []
    first_whole = next((at for at, (step, path) in enumerate(found) if _is_whole(path, step)), len(found))
    deleted = [path for _, path in found[max(count, first_whole + 1) :][::-1]]
    for path in deleted:
        path.unlink(missing_ok=True)
    return deleted


def _is_whole(path: Path, step: int) -> bool:
    try:
        return checkpoint_step(path) == step
    except (CheckpointError, OSError):
        return False
