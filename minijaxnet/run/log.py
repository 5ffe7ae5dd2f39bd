"""The log of a run: rows of metrics in ``metrics.jsonl``, and their times in ``timing.jsonl``.

A row is ``{"step", "loss", "gradient_norm", ...}``: the loss and the gradient norm before the step, and the numbers of
``measure``. It has no times, so two runs with equal numbers have equal files.
"""

import contextlib
import hashlib
import itertools
import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from minijaxnet._files import Lines, plain, read_own, replace_file
from minijaxnet._tables import significant
from minijaxnet._types import Params

METRICS, TIMING = "metrics.jsonl", "timing.jsonl"
# With at most this many weights the log has the value of each.
MOST_WATCHED = 2


class Progress(NamedTuple):
    """The progress of a fit after a chunk; steps are counted from the first start of the run."""

    step: int
    steps: int
    loss: float
    gradient_norm: float
    steps_per_s: float


class Sink(NamedTuple):
    """Functions that receive the logged rows of a ``fit``: for TensorBoard, Weights & Biases, MLflow or a progress bar.

    ``fit`` calls them between chunks of compiled steps, in the caller's thread; with several processes only the first
    process calls them. An exception that they raise ends the fit.

    Attributes:
        write: ``write(row)``, called once for each row, after it was written to ``metrics.jsonl``: every ``log_every``
            steps, and at the end. A row is ``{"step": int, "loss": float, "gradient_norm": float}`` with the numbers of
            ``measure``; steps increase.
        begin: ``begin(step)``, called once before the first row, with 0 or the step from which a fit is resumed. Rows
            from that step on may have been written by an earlier process; they are written again with equal numbers.
        progress: ``progress(progress)``, called after each chunk.

    Example:
        >>> import jax.numpy as jnp
        >>> import minijaxnet as mjn
        >>> descent = mjn.gradient_descent(lambda weight, batch: jnp.mean((weight - batch[1]) ** 2), learning_rate=0.5)
        >>> losses = {}
        >>> sink = mjn.Sink(lambda row: losses.update({row["step"]: row["loss"]}))
        >>> _ = mjn.fit(descent, descent.init(0.0), (jnp.ones(2), jnp.full(2, 3.0)), steps=1, log_every=1, sink=sink)
        >>> losses
        {0: 9.0, 1: 0.0}
    """

    write: Callable[[dict[str, Any]], None]
    begin: Callable[[int], None] = lambda step: None
    progress: Callable[[Progress], None] = lambda progress: None


class Log:
    """The logged rows, in memory and, if there is a folder, in files. To be used in a ``with`` statement."""

    def __init__(
        self,
        folder: str | Path | None,
        *,
        resume: bool = False,
        sink: Sink | None = None,
    ):
        """Make new files in the folder, or with ``resume`` read the existing ones; then call ``restart``."""
        self.rows: list[dict[str, Any]] = []
        self._sha256 = hashlib.sha256()
        self._sink = sink
        self._files = {}
        if folder is None:
            return
        self._path = Path(folder) / METRICS
        if self._path.exists() and not resume:
            raise FileExistsError(f"{self._path}: got the folder of a run; expected a new one, or resume=True")
        if resume:
            self.rows = read_rows(self._path)
        with contextlib.ExitStack() as opened:
            for path, mode in ((self._path, "a" if resume else "x"), (self._path.with_name(TIMING), "a")):
                self._files[path.name] = opened.enter_context(Lines(path, mode))
            opened.pop_all()

    def append(self, step: int, numbers: Mapping[str, Any], run_s: float) -> None:
        """Add a row for a step, after ``run_s`` seconds of compiled steps, and write it."""
        self.rows.append({"step": step} | dict(numbers))
        line = _line(self.rows[-1])
        self._write(METRICS, line)
        self._sha256.update(line.encode())
        self._write(TIMING, _line({"step": step, "run_s": run_s, "time_s": time.time()}))
        if self._sink is not None:
            self._sink.write(self.rows[-1])

    def restart(self, step: int) -> None:
        """Remove the rows from a step on, as they will be logged again."""
        self.rows, content = [row for row in self.rows if row["step"] < step], self._content(step)
        self._sha256 = hashlib.sha256(content)
        if self._files:
            self._files[METRICS].close()
            replace_file(self._path, content)
            self._files[METRICS] = Lines(self._path)
        if self._sink is not None:
            self._sink.begin(step)

    def synced_sha256(self) -> str:
        """Flush all rows to the disk, and return their SHA-256."""
        self.sync()
        return self._sha256.hexdigest()

    def sha256_before(self, step: int) -> str:
        """The SHA-256 of the rows before a step."""
        return hashlib.sha256(self._content(step)).hexdigest()

    def _content(self, step: int) -> bytes:
        return "".join(_line(row) for row in self.rows if row["step"] < step).encode()

    @property
    def every(self) -> int | None:
        """Steps between two rows; None with fewer than three rows, since the last row may come earlier."""
        steps = [row["step"] for row in self.rows[:3]]
        return steps[1] - steps[0] if len(steps) == 3 else None

    def whole_until(self, every: int) -> int:
        """The first multiple of ``every`` without a row."""
        steps = {row["step"] for row in self.rows}
        return next(step for step in itertools.count(0, every) if step not in steps)

    def sync(self) -> None:
        """Flush the files to the disk."""
        for file in self._files.values():
            file.sync()

    def _write(self, name: str, line: str) -> None:
        if name in self._files:
            self._files[name].append(line)

    def __enter__(self) -> "Log":
        """Return the log."""
        return self

    def __exit__(self, *error: object) -> None:
        """Close the files."""
        for file in self._files.values():
            file.close()


def first_and_last(rows: list[dict[str, Any]]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """The headings and cells of a table of the first and the last row.

    >>> first_and_last([{"step": 0, "loss": 2.0}, {"step": 1_000, "loss": 0.5}])
    (('', 'at step 0', 'at step 1,000'), [('loss', '2', '0.5')])
    """
    ends = (rows[0], rows[-1]) if rows else ()
    names = [name for name in ends[0] if name != "step"] if ends else []
    cells = [(name, *(significant(row.get(name, math.nan)) for row in ends)) for name in names]
    return ("", *(f"at step {row['step']:,}" for row in ends)), cells


def read_rows(path: str | Path) -> list[dict[str, Any]]:
    """Read the rows of a metrics file up to the first damaged line; a killed run may leave a part of a line.

    NaN and infinity, which JSON does not have, are read as NaN.
    """
    try:
        lines = read_own(Path(path)).splitlines(keepends=True)
    except FileNotFoundError:
        return []
    try:  # all lines at once, which is four times as fast
        found = json.loads(b"[%b]" % b",".join(lines))
    except (ValueError, RecursionError):
        found = []
    if len(found) != len(lines) or not all(map(_is_row, found)) or not all(line.endswith(b"\n") for line in lines):
        found = list(_whole_rows(lines))
    for row in found:
        if None in row.values():
            row.update({name: float("nan") for name, value in row.items() if value is None})
    return found


def _is_row(row: Any) -> bool:
    """Whether this is a dictionary with a step and numbers only."""
    if not isinstance(row, dict) or type(row.get("step")) is not int:
        return False
    # Larger ints may not fit into a float.
    small = (value for value in row.values() if type(value) is not int or abs(value) < 1 << 63)
    return sum(isinstance(value, int | float | None) for value in small) == len(row)


def _whole_rows(lines: Iterable[bytes]) -> Iterator[dict[str, Any]]:
    """The rows before the first line that is not a row."""
    for line in lines:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            return
        if not line.endswith(b"\n") or not _is_row(row):
            return
        yield row


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(plain(dict(row))) + "\n"


def weights_of(params: Params) -> dict[str, jax.Array]:
    """Each number of the params by a name with slashes, as in TensorBoard's groups.

    >>> list(weights_of({"a": jnp.ones(2), "b": jnp.ones(())}))
    ['params/a/0', 'params/a/1', 'params/b']
    """
    named = {
        jax.tree_util.keystr((jax.tree_util.DictKey("params"), *path), simple=True, separator="/"): jnp.asarray(leaf)
        for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]
    }
    return {
        "/".join((name, *map(str, index))): leaf[index]
        for name, leaf in named.items()
        for index in np.ndindex(leaf.shape)
    }


def is_weight(name: str) -> bool:
    """Whether a logged number is a weight, according to its name.

    >>> is_weight("params"), is_weight("params/slope"), is_weight("params_norm")
    (True, True, False)
    """
    return name.split("/")[0] == "params"
