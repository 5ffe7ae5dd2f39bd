"""Comparisons on disk, and what an earlier one says about a later one: less than arms timed side by side."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from minijaxnet._files import plain, replace_file
from minijaxnet._tables import significant, text_table
from minijaxnet.bench.intervals import RISK, Interval, median_interval

KIND, VERSION = "comparison of steps", 1
# Two results are of the same machine where these are equal.
_SAME = ("processor", "cores", "devices")


class SinceThen(NamedTuple):
    """The result of ``StepComparison.against``; print it.

    Attributes:
        path: of the earlier result.
        ratios: ``{name: time now over time then}``, for the arms in both, with 95 % intervals that hold together.
        sentinel: the same of the fixed workload: how the machine itself has changed. Of too few samples for an
            interval it covers all ratios of them.
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
        return {
            name: "faster" if ratio.high < low else "slower" if ratio.low > high else "undecided"
            for name, ratio in self.ratios.items()
        }

    def __str__(self) -> str:
        """A table of the arms, and how far it can be trusted."""
        rows = [(name, *ratio.cells(significant), self.verdicts[name]) for name, ratio in self.ratios.items()]
        rows.append(("(a fixed workload)", *self.sentinel.cells(significant), ""))
        lines = [text_table(("now over then", "ratio", "95 % interval", "verdict"), rows), f"then: {self.path}"]
        lines += [f"{what} was {then}, is {now}" for what, (then, now) in self.changes.items()]
        lines.append("This is weaker than timing side by side: other changes between the two runs are in these ratios.")
        return "\n".join(lines)


def write_result(path: str | Path, content: Mapping[str, Any]) -> None:
    """Write a comparison as JSON, whole or not at all; an interval of too few rounds has null for its bounds."""
    text = json.dumps(plain({"kind": KIND, "version": VERSION, **content}), indent=1)
    replace_file(Path(path), f"{text}\n".encode())


def read_result(path: str | Path) -> dict[str, Any]:
    """Read a comparison that ``write_result`` wrote.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is truncated, of another kind or of another version.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        kind, version = content["kind"], content["version"]
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path}: got another file, or a part of one ({error!r}); expected a saved {KIND}") from None
    if (kind, version) != (KIND, VERSION):
        raise ValueError(f"{path}: got {kind!r}, version {version}; expected {KIND!r}, version {VERSION}")
    return content


def since_then(
    path: str | Path,
    content: Mapping[str, Any],
    samples: Mapping[str, np.ndarray],
    sentinel_s: np.ndarray,
    machine: Mapping[str, Any],
) -> SinceThen:
    """Compare samples of now with those of a saved result.

    Args:
        path: of the saved result.
        content: of the saved result.
        samples: ``{arm: seconds a step}`` of now.
        sentinel_s: of now, seconds of the fixed workload.
        machine: of now, from ``description``.

    Raises:
        ValueError: a part is missing; another machine; no arm in common.
    """
    try:
        then = {name: _samples(arm["samples_s"]) for name, arm in content["arms"].items()}
        sentinel_then, machine_then = _samples(content["sentinel_s"]), _flat(content["machine"])
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: got no or a wrong part ({error}); expected a saved {KIND}") from None
    pairs = {what: (machine_then.get(what), now) for what, now in _flat(machine).items()}
    changes = {what: (was, now) for what, (was, now) in pairs.items() if was != now}
    for what in _SAME:
        if what in changes:
            was, now = changes[what]
            raise ValueError(f"{path}: got another machine, its {what} was {was!r}; expected {now!r}")
    names = [name for name in samples if name in then]
    if not names:
        raise ValueError(f"{path}: got the arms {', '.join(then)}; expected one of {', '.join(samples)}")
    # Each ratio rests on two intervals, and all of them have to hold together.
    risk = RISK / (2 * (len(names) + 1))
    ratios = {n: median_interval(samples[n], risk).over(median_interval(then[n], risk)) for n in names}
    sentinel = _median_or_range(sentinel_s, risk).over(_median_or_range(sentinel_then, risk))
    return SinceThen(str(path), ratios, sentinel, changes)


def _flat(machine: Mapping[str, Any]) -> dict[str, Any]:
    """The machine with each version and each setting as an entry of its own."""
    plain = {name: value for name, value in machine.items() if not isinstance(value, dict)}
    return {**plain, **machine.get("versions", {}), **machine.get("settings", {})}


def _median_or_range(samples: np.ndarray, risk: float) -> Interval:
    """The median's interval; the range of the samples where they are too few, as where a comparison ended early."""
    found = median_interval(samples, risk)
    return Interval(found.median, float(np.min(samples)), float(np.max(samples))) if math.isnan(found.low) else found


def _samples(values: Any) -> np.ndarray:
    array = np.asarray(values, np.float64)
    if array.ndim != 1 or not array.size or not (np.isfinite(array) & (array > 0)).all():
        raise TypeError("samples that are not positive times")
    return array
