"""A folder of checkpoints: loading the newest valid one, and deleting old ones."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from minijaxnet._checks import check_count
from minijaxnet._types import PyTree
from minijaxnet.run.checkpoint import checkpoint_step, read_checkpoint
from minijaxnet.run.checkpoint_format import CheckpointError, Header

_NAME = re.compile(r"step-([0-9]{8,18})\.safetensors")


class LoadedCheckpoint(NamedTuple):
    """The newest valid checkpoint.

    Attributes:
        step: at which it was saved.
        tree: the saved tree.
        skipped: for each newer one a text why it could not be used.
        read: how many batches of a stream had been read; 0 if the data is not a stream.
    """

    step: int
    tree: PyTree
    skipped: list[str]
    read: int = 0


def checkpoint_path(folder: str | Path, step: int) -> Path:
    """The path of the checkpoint of a step.

    >>> checkpoint_path("run", 1234).name
    'step-00001234.safetensors'
    """
    return Path(folder) / f"step-{check_count('step', step):08d}.safetensors"


def checkpoints(folder: str | Path) -> list[tuple[int, Path]]:
    """The steps and paths of the checkpoints in a folder, the newest first; no file is opened.

    Raises:
        FileNotFoundError: there is no such folder.
    """
    found = [(int(match[1]), path) for path in Path(folder).iterdir() if (match := _NAME.fullmatch(path.name))]
    return sorted(((step, path) for step, path in found if path == checkpoint_path(folder, step)), reverse=True)


def load_latest(
    folder: str | Path, like: PyTree, fits: Callable[[Header], bool] = lambda header: True
) -> LoadedCheckpoint | None:
    """Load the newest valid checkpoint in a folder that fits; None if there are no checkpoints, or none fits.

    Args:
        folder: of the checkpoints.
        like: as for ``load_checkpoint``.
        fits: whether a valid checkpoint may be used, by its header.

    Raises:
        CheckpointError: there are checkpoints, but all are damaged (a new start would overwrite them); or the newest
            valid one has another tree than ``like``.
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
        raise CheckpointError(f"{folder}: got no valid checkpoint; expected one\n  " + "\n  ".join(skipped))
    return None


def keep_newest(folder: str | Path, count: int) -> list[Path]:
    """Delete old checkpoints, but never the newest valid one.

    The newest ``count`` are kept. If all of these are damaged, the older ones down to the newest valid one are kept,
    too. A valid one has been read completely before any file is deleted.

    Args:
        folder: of the checkpoints.
        count: how many to keep, at least 1.

    Returns:
        The deleted paths, the oldest first.

    Raises:
        FileNotFoundError: there is no such folder.
        OSError: a file cannot be deleted.
    """
    check_count("count", count, least=1)
    found = checkpoints(folder)
    if len(found) <= count:
        return []
    newest_valid = next((at for at, (step, path) in enumerate(found) if _is_valid(path, step)), len(found))
    deleted = [path for _, path in found[max(count, newest_valid + 1) :][::-1]]
    for path in deleted:
        path.unlink(missing_ok=True)
    return deleted


def _is_valid(path: Path, step: int) -> bool:
    try:
        return checkpoint_step(path) == step
    except (CheckpointError, OSError):
        return False
