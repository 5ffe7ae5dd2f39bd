"""Results on disk, and what an earlier one says of a later: never as much as arms timed side by side."""

import json
import math
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from minijaxnet._tables import significant, text_table
from minijaxnet.bench.intervals import RISK, Interval, median_interval
from minijaxnet.bench.machine import SAME

KIND, VERSION = "comparison of steps", 1


class SinceThen(NamedTuple):
    """What ``StepComparison.against`` found; print it.

    Attributes:
        path: of the earlier result.
        ratios: ``{name: time now over time then}``, for the arms in both, with 95 % intervals that hold together.
        sentinel: the same of the fixed workload: what the machine itself has become. Of too few samples for an
            interval it is as far as any of them can be from one another.
        changes: ``{what: (then, now)}`` of the software and the settings that differ.
    """

    path: str
    ratios: dict[str, Interval]
    sentinel: Interval
    changes: dict[str, tuple[Any, Any]]

    @property
    def verdicts(self) -> dict[str, str]:
        """``{name: "faster", "slower" or "undecided"}``: beyond 1 and beyond the fixed workload's own ratio."""
        low, high = min(1.0, self.sentinel.low), max(1.0, self.sentinel.high)
        words = {name: "faster" if ratio.high < low else "slower" for name, ratio in self.ratios.items()}
        beyond = {name: ratio.high < low or ratio.low > high for name, ratio in self.ratios.items()}
        return {name: word if beyond[name] else "undecided" for name, word in words.items()}

    def __str__(self) -> str:
        """A table of the arms, and how far it can be trusted."""
        rows = [(name, *_cells(ratio), self.verdicts[name]) for name, ratio in self.ratios.items()]
        rows.append(("(a fixed workload)", *_cells(self.sentinel), ""))
        lines = [text_table(("now over then", "ratio", "95 % interval", "verdict"), rows), f"then: {self.path}"]
        lines += [f"{what} was {then}, is {now}" for what, (then, now) in self.changes.items()]
        lines.append("Weaker than arms timed side by side: what else changed between the two runs is in these ratios.")
        return "\n".join(lines)


def write_result(path: str | Path, content: Mapping[str, Any]) -> None:
    """Write a comparison as JSON, whole or not at all."""
    path = Path(path)
    text = json.dumps({"kind": KIND, "version": VERSION, **content}, indent=1, allow_nan=False)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def read_result(path: str | Path) -> dict[str, Any]:
    """A comparison that was written before.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is truncated, of another kind or of another version.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not a whole JSON file ({error}); expected a saved {KIND}") from None
    found = content.get("kind") if isinstance(content, dict) else type(content).__name__
    if found != KIND:
        raise ValueError(f"{path}: got {found!r}; expected a saved {KIND}")
    if content.get("version") != VERSION:
        raise ValueError(f"{path}: got version {content.get('version')!r}; expected version {VERSION}")
    return content


def since_then(
    path: str | Path,
    content: Mapping[str, Any],
    samples: Mapping[str, np.ndarray],
    sentinel_s: np.ndarray,
    machine: Mapping[str, Any],
    *,
    other_machine: bool,
) -> SinceThen:
    """Samples of now over those of a saved result.

    Raises:
        ValueError: a part is missing; another machine, unless that is allowed; no arm in common.
    """
    try:
        then = {name: _samples(arm["samples_s"]) for name, arm in content["arms"].items()}
        before, machine_then = _samples(content["sentinel_s"]), content["machine"]
        same = {what: (machine_then.get(what), machine[what]) for what in machine}
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: a part is missing ({error}); expected a saved result") from None
    changes = {what: pair for what, pair in same.items() if pair[0] != pair[1] and what != "load"}
    if (elsewhere := [what for what in SAME if what in changes]) and not other_machine:
        what = elsewhere[0]
        was, now = changes[what]
        raise ValueError(
            f"{path}: measured on another machine ({what} was {was!r}, is {now!r}); "
            "expected the same one, or other_machine=True"
        )
    names = [name for name in samples if name in then]
    if not names:
        raise ValueError(f"{path}: holds {', '.join(then)}; expected one of {', '.join(samples)}")
    # Each ratio rests on two intervals, and all of them have to hold together.
    risk = RISK / (2 * (len(names) + 1))
    ratios = {n: median_interval(samples[n], risk).over(median_interval(then[n], risk)) for n in names}
    sentinel = _median_or_range(sentinel_s, risk).over(_median_or_range(before, risk))
    return SinceThen(str(path), ratios, sentinel, changes)


def _median_or_range(samples: np.ndarray, risk: float) -> Interval:
    """The median's interval; of too few samples, as where a comparison ended early, all that they were."""
    found = median_interval(samples, risk)
    return Interval(found.median, float(np.min(samples)), float(np.max(samples))) if math.isnan(found.low) else found


def _samples(values: Any) -> np.ndarray:
    array = np.asarray(values, np.float64)
    if array.ndim != 1 or not array.size or not (np.isfinite(array) & (array > 0)).all():
        raise TypeError("samples that are no positive times")
    return array


def _cells(ratio: Interval) -> tuple[str, str]:
    interval = "too few rounds" if math.isnan(ratio.low) else f"{significant(ratio.low)} to {significant(ratio.high)}"
    return significant(ratio.median), interval
