"""The checkpoints of a fit, from which it can be resumed."""

import math
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

from minijaxnet._checks import check_count
from minijaxnet._files import own_folder
from minijaxnet.descent import DescentState
from minijaxnet.parallel.processes import broadcast, broadcast_arrays, to_host
from minijaxnet.run.checkpoint import write_checkpoint
from minijaxnet.run.checkpoint_folder import checkpoint_path, checkpoints, keep_newest, load_latest
from minijaxnet.run.checkpoint_format import UNFINISHED, Header
from minijaxnet.run.log import Log

CHECKPOINTS = "checkpoints"

_KEPT = 3
EACH_MINUTE = timedelta(minutes=1)


class Keeper:
    """Saves the checkpoints of one fit, and restores the newest when it is resumed.

    With several processes each has a keeper, but only that of the first process has the folder.

    Attributes:
        notes: texts on checkpoints that could not be used.
        read: how many batches of a stream had been read at the restored checkpoint.
    """

    def __init__(self, folder: str | Path | None, *, every: int | timedelta, resume: bool):
        """Check the arguments of ``fit``; nothing is written yet."""
        if resume and folder is None:
            raise ValueError("resume: got True without run_dir; expected the folder of the run to resume")
        self._every, self._seconds, self._resume = None, math.inf, resume
        if isinstance(every, timedelta):
            self._seconds = every.total_seconds()
            if self._seconds < 0:
                raise ValueError(f"checkpoint_every: got {every}; expected a time of at least 0")
        else:
            self._every = check_count("checkpoint_every", every, least=1)
        self._folder = None if folder is None else Path(folder) / CHECKPOINTS
        if self._folder is not None and self._folder.is_dir() and checkpoints(self._folder) and not resume:
            raise FileExistsError(f"{self._folder}: got the folder of a run; expected a new one, or resume=True")
        self._saved, self._last_s, self.notes, self.read = 0, time.monotonic(), [], 0

    def restore(self, state: DescentState, log: Log, log_every: int) -> tuple[int, DescentState]:
        """Return the step and the state to start from: those of the newest checkpoint, or 0 and the given state.

        If rows of the log are missing or changed, it is the newest checkpoint before these rows, which are then logged
        again.
        """
        step, found = self._newest(to_host(state), log, log_every)
        if (step := broadcast(step)) is None:
            return 0, state
        self._saved = step
        return step, broadcast_arrays(found, state)

    def _newest(self, like: DescentState, log: Log, log_every: int) -> tuple[int | None, Any]:
        """The step and the state of the newest usable checkpoint; None and None if there is none."""
        if self._folder is None:
            return None, None
        for path in (*own_folder(self._folder).iterdir(), *self._folder.parent.iterdir()):
            if UNFINISHED.fullmatch(path.name):  # left by a process that was killed
                path.unlink()
        if not self._resume:
            return None, None
        rows_until, rejected = log.whole_until(log_every), []

        def fits(header: Header) -> bool:
            if header.step > rows_until:
                why = f"the row of step {rows_until:,} is lost"
            elif header.rows_sha256 not in ("", log.sha256_before(header.step)):  # older versions saved no checksum
                why = f"the rows before step {header.step:,} have been changed"
            else:
                return True
            rejected.append((header.step, why))
            return False

        step, state, self.notes, self.read = load_latest(self._folder, like, fits) or (None, None, [], 0)
        if rejected:
            newest, why = rejected[0]
            self.notes = [*self.notes, f"{why}: the fit continues from step {step or 0:,}, not {newest:,}"]
        return step, state

    def steps_left(self, step: int) -> int:
        """The number of steps until the next checkpoint that is due by count."""
        return 2**31 - 1 if self._every is None else self._every - step % self._every

    def is_due(self, step: int) -> bool:
        """Whether a checkpoint is due at this step."""
        by_count = self._every is not None and step % self._every == 0
        return self._folder is not None and (by_count or time.monotonic() - self._last_s >= self._seconds)

    def keep(self, step: int, state: DescentState, rows_sha256: str = "", read: int = 0) -> None:
        """Save a checkpoint, with a SHA-256 of the rows before it and the number of batches read; delete the oldest."""
        if step == self._saved:
            return
        state = to_host(state)
        if self._folder is not None:
            path = checkpoint_path(self._folder, step)
            write_checkpoint(path, state, step=step, rows_sha256=rows_sha256, read=read)
            keep_newest(self._folder, _KEPT)
        self._saved, self._last_s = step, time.monotonic()
