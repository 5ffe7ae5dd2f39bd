"""What a comparison of steps found: ratios with intervals, and what may be concluded from them."""

import functools
import math
import textwrap
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from minijaxnet._tables import html_result, percent, significant, text_table
from minijaxnet._trees import array_type
from minijaxnet.bench.intervals import RISK, Interval, median_interval
from minijaxnet.bench.machine import machine
from minijaxnet.bench.saved import SinceThen, read_result, since_then, write_result

_COLUMNS = 100
_AN_HOUR_S = 3600


# Programs that were compiled from the same code differed by about 0.1 %, for as long as they were kept (blocks of a
# millisecond, two x86-64 cores). No difference below this one is a verdict.
ALIKE = 0.002


class ArmTiming(NamedTuple):
    """What was measured of one arm.

    Attributes:
        compile_s: seconds to trace, lower and compile the loop of steps, anew for each arm. What JAX keeps of jitted
            functions inside the step, and its cache on disk where that is on, still shorten it.
        call_s: seconds of a call that takes no step.
        samples_s: seconds a step inside a compiled loop, for each round; the call is taken off.
    """

    compile_s: float
    call_s: float
    samples_s: np.ndarray

    @property
    def step_s(self) -> float:
        """The median over rounds."""
        return float(np.median(self.samples_s))


@dataclass(frozen=True)
class StepComparison:
    """What ``compare_steps`` found; print it.

    Attributes:
        baseline: the name of the arm that the others are held against.
        arms: ``{name: ArmTiming}``.
        control_s: seconds a step of the baseline's second entry, for each round.
        sentinel_s: seconds of a fixed workload, every few rounds.
        risk: how likely one of the intervals is wrong.
        width: arms whose ratio is surely within so much of 1 are the same.
        measured_s: seconds that the rounds took.
        compiled: what JAX compiled while the clock ran.
        clocks: a GPU's clock in MHz, and what limited it, every few rounds; none where nobody tells.
        workload: the dtypes and shapes of params and batch.
        machine: what was measured on, as ``machine()`` tells.
    """

    baseline: str
    arms: dict[str, ArmTiming]
    control_s: np.ndarray
    sentinel_s: np.ndarray
    risk: float = RISK
    width: float = 0.01
    measured_s: float = 1.0
    compiled: tuple[str, ...] = ()
    clocks: tuple[tuple[float, str], ...] = ()
    workload: str = ""
    machine: dict[str, Any] = field(default_factory=machine)

    @property
    def rounds(self) -> int:
        """How often each arm was timed."""
        return len(self.control_s)

    @functools.cached_property
    def ratios(self) -> dict[str, Interval]:
        """``{name: ratio of its time to the baseline's}``, with intervals that hold together with 95 % confidence."""
        entries = np.stack([self.arms[self.baseline].samples_s, self.control_s], axis=1)
        return {n: self._ratio(arm.samples_s, entries) for n, arm in self.arms.items() if n != self.baseline}

    @functools.cached_property
    def control(self) -> Interval:
        """The ratio of the baseline's second entry to its first."""
        return self._ratio(self.control_s, self.arms[self.baseline].samples_s[:, None])

    def _ratio(self, samples_s: np.ndarray, others_s: np.ndarray) -> Interval:
        # The logarithm makes the ratio and its inverse alike: the median of an even number of rounds lies in between.
        logs = np.log(samples_s[:, None] / others_s)
        return Interval(*map(math.exp, median_interval(logs, self.risk / len(self.arms))))

    @property
    def drift(self) -> float:
        """By how much the fixed workload's time went up and down: the slowest quarter of the run over the fastest."""
        quarters = [float(np.median(part)) for part in np.array_split(self.sentinel_s, 4) if part.size]
        return max(quarters) / min(quarters)

    @property
    def sound(self) -> bool:
        """Whether the baseline equals itself, and nothing was compiled while the clock ran."""
        return not self.compiled and _beyond(self.control, ALIKE) is None

    @property
    def resolution(self) -> float:
        """The least ratio that is a verdict, upwards or downwards: more where the baseline differs from itself."""
        return 1 + ALIKE if self.sound else max(self.control.high, 1 / self.control.low, 1 + ALIKE)

    @property
    def verdicts(self) -> dict[str, str]:
        """``{name: "faster", "slower", "same" or "undecided"}``.

        Faster and slower: the interval is beyond ``resolution``. The same: it is within ``width`` of 1.
        """
        return {name: self._verdict(ratio) for name, ratio in self.ratios.items()}

    def _verdict(self, ratio: Interval) -> str:
        if verdict := _beyond(ratio, self.resolution - 1):
            return verdict
        is_same = self.sound and distance(ratio) <= self.width
        return "same" if is_same else "undecided"

    @property
    def is_clear(self) -> bool:
        """Whether more rounds would change no verdict."""
        return self.sound and "undecided" not in self.verdicts.values()

    def seconds_needed(self, name: str) -> float:
        """About how many seconds would decide: an interval narrows as the root of the number of rounds grows."""
        log = [math.log(x) for x in self.ratios[name]]
        off, half = abs(log[0]), (log[2] - log[1]) / 2
        room = max(off - math.log(self.resolution), math.log1p(self.width) - off)
        return self.measured_s * (half / room) ** 2 if room > 0 else math.inf

    def to_dict(self) -> dict[str, Any]:
        """The figures in JSON's own kinds, without the samples."""
        arms = {
            name: {"compile_s": arm.compile_s, "call_us": 1e6 * arm.call_s, "step_us": 1e6 * arm.step_s}
            for name, arm in self.arms.items()
        }
        return {
            "baseline": self.baseline,
            "sound": self.sound,
            "resolution": self.resolution,
            "width": self.width,
            "risk": self.risk,
            "rounds": self.rounds,
            "measured_s": self.measured_s,
            "control": self.control._asdict(),
            "drift": self.drift,
            "ratios": {name: ratio._asdict() for name, ratio in self.ratios.items()},
            "verdicts": self.verdicts,
            "clocks": [[*clock] for clock in self.clocks],
            "arms": arms,
        }

    def save(self, path: str | Path) -> None:
        """Write it as JSON, with every sample and what it was measured on, for ``against``."""
        arms = {
            n: {"compile_s": arm.compile_s, "call_s": arm.call_s, "samples_s": arm.samples_s.tolist()}
            for n, arm in self.arms.items()
        }
        samples = {"arms": arms, "control_s": self.control_s.tolist(), "sentinel_s": self.sentinel_s.tolist()}
        told = {"found": self.to_dict(), "baseline": self.baseline, "machine": self.machine, "workload": self.workload}
        write_result(path, told | samples)

    def against(self, path: str | Path, *, other_machine: bool = False) -> SinceThen:
        """Hold it against one that was saved before: weaker than arms timed side by side, and it says so.

        Args:
            path: where ``save`` wrote the earlier one.
            other_machine: whether to accept one of another machine.

        Returns:
            ``.ratios`` of the times now to those then, with ``.verdicts``; print it.

        Raises:
            FileNotFoundError: no such file.
            ValueError: it is truncated, of another version, of another machine, of other params or another batch, or
                has no arm in common.
        """
        samples = {name: arm.samples_s for name, arm in self.arms.items()}
        content = read_result(path)
        if (then := content.get("workload")) and then != self.workload:
            raise ValueError(f"{path}: measured on {then}; expected {self.workload}")
        return since_then(path, content, samples, self.sentinel_s, self.machine, other_machine=other_machine)

    def _repr_html_(self) -> str:
        verdicts = ", ".join(f"{name} is {word}" for name, word in self.verdicts.items()) or "nothing to compare"
        return html_result(f"Steps, against {self.baseline}: {verdicts}", self.cells(), remarks=self.conclusions())

    def cells(self) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
        """The table of the arms: its columns, and a row an arm."""
        rows = [
            (
                name,
                f"{arm.compile_s:.2f}",
                significant(1e6 * arm.step_s),
                *_interval_cells(self.ratios.get(name)),
                "baseline" if name == self.baseline else self._verdict_cell(name),
            )
            for name, arm in self.arms.items()
        ]
        return ("step", "compile s", "us a step", "ratio", "95 % interval", "verdict"), rows

    def _verdict_cell(self, name: str) -> str:
        verdict = self.verdicts[name]
        return f"same within {percent(distance(self.ratios[name]))}" if verdict == "same" else verdict

    def conclusions(self) -> list[str]:
        """What to know of the table, in sentences."""
        median, interval = _interval_cells(self.control)
        lines = [
            f"{self.rounds:,} paired rounds in {significant(self.measured_s, 2)} s; "
            f"the baseline against itself: {median} ({interval})",
            f"a call's own {significant(1e6 * self.arms[self.baseline].call_s, 3)} us are taken off; meanwhile a fixed "
            f"workload's time wandered by {percent(self.drift - 1)}",
        ]
        if self.clocks:
            lowest, highest = min(self.clocks)[0], max(self.clocks)[0]
            limits = (
                f"; limited by {limits}"
                if (limits := ", ".join(sorted({why for _, why in self.clocks if why})))
                else ""
            )
            lines.append(f"the device's clock went between {lowest:,.0f} and {highest:,.0f} MHz{limits}")
        if products := self.machine.get("products"):
            lines.append(products)
        for name, verdict in self.verdicts.items():
            if verdict == "undecided" and self.sound:
                needed_s = self.seconds_needed(name)
                more = f"about {significant(needed_s, 2)} s" if needed_s < _AN_HOUR_S else "more than an hour"
                lines.append(f"undecided: {more} would settle {name}, at this noise")
        if self.compiled:
            lines.append(f"UNSOUND: JAX compiled {', '.join(self.compiled)} while the clock ran")
        elif not self.sound:
            beyond = as_ratio(self.resolution)
            lines.append(f"UNSOUND: the baseline differs from itself; a verdict needs more than {beyond} times as long")
        return lines

    def __str__(self) -> str:
        """A table of the arms, and whether it can be believed."""
        (_, *columns), cells = self.cells()
        room = _COLUMNS - len(text_table(("", *columns), [("", *row) for _, *row in cells]).splitlines()[1])
        rows = []
        for name, *row in cells:
            first, *rest = textwrap.wrap(name, room, subsequent_indent="  ")
            rows += [(first, *row), *((part, *[""] * len(row)) for part in rest)]
        return "\n".join([text_table(("step", *columns), rows), *self.conclusions()])


def workload_of(params: Any, batch: Any) -> str:
    """The dtypes and shapes of params and batch, in words; of many leaves a digest.

    >>> workload_of({"w": np.zeros((2, 3), np.float32)}, np.zeros(4, np.int32))
    "params {'w': float32[2,3]}, batch int32[4]"
    """
    words = ", ".join(f"{name} {jax.tree.map(_Shown, tree)!s}" for name, tree in (("params", params), ("batch", batch)))
    return words if len(words) <= 200 else f"{words[:160]}... ({zlib.crc32(words.encode()):08x})"


class _Shown:
    """A leaf as its dtype and shape."""

    def __init__(self, leaf: Any):
        self.leaf = leaf

    def __repr__(self) -> str:
        return array_type(self.leaf)


def distance(ratio: Interval) -> float:
    """How far from 1 a ratio may be, as a share of the smaller time.

    >>> round(distance(Interval(1.0, 0.99, 1.005)), 4)
    0.0101
    """
    return max(ratio.high, 1 / ratio.low) - 1


def _beyond(ratio: Interval, share: float) -> str | None:
    """What a ratio is that surely is more than so much away from 1."""
    if ratio.high < 1 / (1 + share):
        return "faster"
    return "slower" if ratio.low > 1 + share else None


def _interval_cells(ratio: Interval | None) -> tuple[str, str]:
    return ("1", "") if ratio is None else (as_ratio(ratio.median), f"{as_ratio(ratio.low)} to {as_ratio(ratio.high)}")


def as_ratio(ratio: float) -> str:
    """A ratio with four digits.

    >>> as_ratio(0.88), as_ratio(12.3456)
    ('0.880', '12.35')
    """
    return f"{ratio:.3f}" if 0.1 <= ratio < 10 else significant(ratio)
