"""The best weights of a run by a number that it measures, and whether it is time to stop."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from minijaxnet._checks import check_count
from minijaxnet._trees import own_copy
from minijaxnet._types import Params
from minijaxnet.goal import goal_of
from minijaxnet.parallel.processes import to_host
from minijaxnet.run.checkpoint import read_checkpoint, write_checkpoint
from minijaxnet.run.checkpoint_format import CheckpointError
from minijaxnet.run.folder import BEST


class Best(NamedTuple):
    """The best weights of a run.

    Attributes:
        params: the weights.
        step: at which they were measured.
        value: the number that was measured there.
    """

    params: Params
    step: int
    value: float


class BestKeeper:
    """Keeps the best weights of a fit, in memory and in its folder.

    Attributes:
        goal: what is best; None where nothing is to be kept.
        best: so far; None before the first measurement.
    """

    def __init__(self, keep_best: str | None, patience: int | None, folder: str | Path | None):
        """Check what is asked for."""
        if not isinstance(keep_best, str | None) or keep_best == "":
            raise TypeError(
                f"keep_best: got {keep_best!r}; expected the name of a measured number, such as 'test_loss'"
            )
        if patience is not None and keep_best is None:
            raise ValueError("patience: got a number without keep_best; expected keep_best='test_loss' or the like")
        self.goal = None if keep_best is None else goal_of(keep_best)
        self.best: Best | None = None
        self._patience = None if patience is None else check_count("patience", patience, least=1)
        self._path = None if folder is None else Path(folder) / BEST
        self._rows_since = 0

    def restore(self, params: Params, rows: list[dict[str, Any]], first: int, *, resume: bool) -> list[str]:
        """Take up what an earlier process has kept until the step it goes on from; notes on what could not be used.

        The best may be of a later step: it is better than all before, so it is found again if the fit comes there
        again. At another rate it never does, and what is kept would be of weights that are none of this descent's.
        """
        if self.goal is None or self._path is None or not resume or not self._path.is_file():
            return []
        like = Best(to_host(params), 0, 0.0)
        try:
            _, found, difference = read_checkpoint(self._path, like)
        except CheckpointError as error:
            found, difference = None, str(error)
        if found is None:
            return [f"the best weights so far could not be read, and are sought anew: {difference}"]
        if found.step > first:
            self._path.unlink()
            return []
        self.best = found
        self._rows_since = sum(row["step"] > found.step for row in rows)
        return []

    def update(self, step: int, params: Params, measured: Mapping[str, float] | None) -> None:
        """Look at what was measured of some weights, and keep these if they are the best.

        Raises:
            ValueError: nothing of that name was measured.
        """
        if self.goal is None:
            return
        if self.goal.name not in (measured or {}):
            names = ", ".join(measured or {}) or "nothing, for want of measure="
            raise ValueError(f"keep_best: got {self.goal.name!r}; expected one of what is measured: {names}")
        value = float((measured or {})[self.goal.name])
        if self.best is not None and not self.goal.better(value, self.best.value):
            self._rows_since += step > self.best.step
            return
        self.best, self._rows_since = Best(own_copy(params), step, value), 0
        if self._path is not None:
            write_checkpoint(self._path, self.best._replace(params=to_host(self.best.params)), step=step)

    @property
    def is_over(self) -> bool:
        """Whether it has not become better for as many rows as patience allows."""
        return self._patience is not None and self._rows_since >= self._patience
