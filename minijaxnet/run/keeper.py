"""The checkpoints of a fit, from which it goes on after whatever ended it."""

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
    """The checkpoints of one fit: when one is due, and where it goes on.

    With several processes each has a keeper, and the first one's has the folder.

    Attributes:
        notes: why checkpoints could not be used, a text each.
        read: how many batches of a stream had been read at the checkpoint that it goes on from.
    """

    def __init__(self, folder: str | Path | None, *, every: int | timedelta, resume: bool):
        """Check what is asked for; nothing is written yet."""
        if resume and folder is None:
            raise ValueError("resume: got True without run_dir; expected the folder of the run to go on with")
        self._every, self._seconds, self._resume = None, math.inf, resume
        if isinstance(every, timedelta):
            self._seconds = every.total_seconds()
            if self._seconds < 0:
                raise ValueError(f"checkpoint_every: got {every}; expected a time from one to the next, at least 0")
        else:
            self._every = check_count("checkpoint_every", every, least=1)
        self._folder = None if folder is None else Path(folder) / CHECKPOINTS
        if self._folder is not None and self._folder.is_dir() and checkpoints(self._folder) and not resume:
            raise FileExistsError(f"{self._folder}: there is a run in this folder; expected a new one, or resume=True")
        self._saved, self._last_s, self.notes, self.read = 0, time.monotonic(), [], 0

    def restore(self, state: DescentState, log: Log, log_every: int) -> tuple[int, DescentState]:
        """The step and the state to go on with: 0 and the one given, or those of the newest checkpoint.

        Where the log lacks a row, or has others than those that were written, that is one from which it is seen again.
        """
        step, found = self._newest(to_host(state), log, log_every)
        if (step := broadcast(step)) is None:
            return 0, state
        self._saved = step
        return step, broadcast_arrays(found, state)

    def _newest(self, like: DescentState, log: Log, log_every: int) -> tuple[int | None, Any]:
        """The step and the state of the newest checkpoint to go on from; None and None if there is none."""
        if self._folder is None:
            return None, None
        for path in (*own_folder(self._folder).iterdir(), *self._folder.parent.iterdir()):
            if UNFINISHED.fullmatch(path.name):  # by a process that is dead, for the folder is ours
                path.unlink()
        if not self._resume:
            return None, None
        rows_until, passed = log.whole_until(log_every), []

        def fits(header: Header) -> bool:
            lost = header.step > rows_until
            if lost or header.rows_sha256 not in ("", log.sha256_before(header.step)):  # older runs have none
                why = (
                    f"the row of step {rows_until:,} is lost"
                    if lost
                    else (f"the rows before step {header.step:,} are not those that were written")
                )
                passed.append((header.step, why))
                return False
            return True

        step, state, self.notes, self.read = load_latest(self._folder, like, fits) or (None, None, [], 0)
        if passed:
            newest, why = passed[0]
            self.notes = [*self.notes, f"{why}: it goes on from step {step or 0:,}, not {newest:,}"]
        return step, state

    def steps_left(self, step: int) -> int:
        """How many steps may be taken before the next checkpoint by count."""
        return 2**31 - 1 if self._every is None else self._every - step % self._every

    def is_due(self, step: int) -> bool:
        """Whether a checkpoint is due after so many steps."""
        by_count = self._every is not None and step % self._every == 0
        return self._folder is not None and (by_count or time.monotonic() - self._last_s >= self._seconds)

    def keep(self, step: int, state: DescentState, rows_sha256: str = "", read: int = 0) -> None:
        """Save a checkpoint, with a SHA-256 over the rows before it and the batches read, and have the oldest go."""
        if step == self._saved:  # it is there
            return
        state = to_host(state)
        if self._folder is not None:
            path = checkpoint_path(self._folder, step)
            write_checkpoint(path, state, step=step, rows_sha256=rows_sha256, read=read)
            keep_newest(self._folder, _KEPT)
        self._saved, self._last_s = step, time.monotonic()
