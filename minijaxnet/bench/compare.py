"""Which of several steps is faster? Interleaved, with a control, and with an interval instead of a guess.

A machine drifts: two measurements minutes apart compare its moods. Here all arms run in turn, in a new order each
round, so that a round's ratio of an arm to the baseline is taken within a fraction of a second. The median of these
ratios, with the interval that order statistics give it, needs no assumption on the noise but that rounds are alike
(Gibbons and Chakraborti, "Nonparametric statistical inference", section 5.2). The baseline enters twice: its ratio to
itself shows what this machine cannot tell apart.
"""

import functools
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from minijaxnet.descent import Descent, DescentState
from minijaxnet.pytrees import named_leaves
from minijaxnet.tables import figure, text_table

_CONTROL = "baseline again"
_BLOCK_S = 0.02  # long against the clock and the call, short against the machine's drift
_SAME_STEPS = 3
_CONFIDENCE = 0.95


class Ratio(NamedTuple):
    """An arm's time over the baseline's: the median over rounds, and its interval."""

    median: float
    low: float
    high: float


class ArmTiming(NamedTuple):
    """What was measured of one arm.

    Attributes:
        compile_s: seconds to trace, lower and compile the loop of steps.
        step_s: seconds a step inside a compiled loop, the median over rounds.
        samples_s: the same for each round.
    """

    compile_s: float
    step_s: float
    samples_s: np.ndarray


@dataclass(frozen=True)
class StepComparison:
    """What ``compare_steps`` found; print it.

    Attributes:
        baseline: the name of the arm that the others are held against.
        arms: ``{name: ArmTiming}``.
        ratios: ``{name: Ratio}`` of each arm's time to the baseline's.
        control: the ratio of the baseline to itself.
        rounds: how often each arm was timed.
    """

    baseline: str
    arms: dict[str, ArmTiming]
    ratios: dict[str, Ratio]
    control: Ratio
    rounds: int

    @property
    def sound(self) -> bool:
        """Whether the baseline equals itself; where it does not, no verdict can be believed."""
        return self.control.low <= 1 <= self.control.high

    @property
    def verdicts(self) -> dict[str, str]:
        """``{name: "faster", "slower" or "indistinguishable"}``: whether the interval is beyond 1 and the control's."""
        return {name: self._verdict(ratio) for name, ratio in self.ratios.items()}

    def _verdict(self, ratio: Ratio) -> str:
        if not self.sound:
            return "indistinguishable"
        if ratio.high < min(1.0, self.control.low):
            return "faster"
        return "slower" if ratio.low > max(1.0, self.control.high) else "indistinguishable"

    def to_dict(self) -> dict[str, Any]:
        """The figures in JSON's own kinds, without the samples."""
        arms = {name: {"compile_s": arm.compile_s, "step_us": 1e6 * arm.step_s} for name, arm in self.arms.items()}
        return {
            "baseline": self.baseline,
            "sound": self.sound,
            "rounds": self.rounds,
            "control": self.control._asdict(),
            "ratios": {name: ratio._asdict() for name, ratio in self.ratios.items()},
            "verdicts": self.verdicts,
            "arms": arms,
        }

    def __str__(self) -> str:
        """A table of the arms, and whether it can be believed."""
        rows = [
            (
                name,
                f"{arm.compile_s:.2f}",
                figure(1e6 * arm.step_s),
                *_interval_cells(self.ratios.get(name)),
                self.verdicts.get(name, "baseline"),
            )
            for name, arm in self.arms.items()
        ]
        columns = ("step", "compile s", "us a step", "ratio", "95 % interval", "verdict")
        median, interval = _interval_cells(self.control)
        sound = "" if self.sound else ": UNSOUND, the machine is too noisy for a verdict"
        rounds = f"{self.rounds} interleaved rounds; the baseline against itself: {median} ({interval}){sound}"
        return f"{text_table(columns, rows)}\n{rounds}"


def compare_steps(
    arms: Mapping[str, Descent],
    params: Any,
    batch: Any,
    *,
    baseline: str,
    seconds: float = 10.0,
    key: jax.Array | None = None,
    same_result: bool = True,
) -> StepComparison:
    """Time the steps of several descents against one of them, all in one run.

    Each arm makes its own state from the same params and is timed inside a compiled loop, the state going from step to
    step. Compilation comes first and is reported apart.

    Args:
        arms: ``{name: descent}``, two at least.
        params: where each starts.
        batch: what each step looks at.
        baseline: the arm that the others are held against.
        seconds: how long to measure, compilation not counted.
        key: for arms whose objective takes one.
        same_result: whether to refuse arms whose params differ from the baseline's after three steps by more than the
            square root of the dtype's epsilon, relative to each leaf's largest element.

    Returns:
        Ratios with intervals, widened so that all of them hold together with 95 % confidence.

    Raises:
        ValueError: fewer than two arms, a baseline that is none of them, ``seconds`` too short for the rounds an
            interval needs, arms that compute different things.

    Example:
        >>> from minijaxnet.descent import gradient_descent
        >>> descent = gradient_descent(lambda weights, batch: jnp.sum((weights - batch) ** 2), 0.1)
        >>> result = compare_steps({"a": descent, "b": descent}, jnp.zeros(9), 1.0, baseline="a", seconds=0.5)
        >>> sorted(result.arms), result.verdicts["b"] in ("faster", "slower", "indistinguishable")
        (['a', 'b'], True)
    """
    if len(arms) < 2:
        raise ValueError(f"arms: got {len(arms)}; expected at least two")
    if baseline not in arms:
        raise ValueError(f"baseline: got {baseline!r}; expected one of {', '.join(arms)}")
    batch = jax.device_put(batch)
    states = {name: descent.init(params, key) for name, descent in arms.items()}
    programs, compile_s = {}, {}
    for name, descent in arms.items():
        start = time.perf_counter()
        programs[name] = _repeat.lower(descent.step, states[name], batch, 1).compile()
        compile_s[name] = time.perf_counter() - start
    if same_result:
        _check_same(programs, states, batch, baseline)
    runs = {name: _block(program, states[name], batch) for name, program in programs.items()}
    names = [*arms, _CONTROL]
    runs[_CONTROL] = runs[baseline]

    needed = _fewest_rounds(len(arms))
    samples: dict[str, list[float]] = {name: [] for name in names}
    draw, began, slowest = np.random.default_rng(0), time.perf_counter(), 0.0
    while (elapsed := time.perf_counter() - began) + slowest < seconds or len(samples[baseline]) < needed:
        for name in draw.permutation(names):
            samples[name].append(runs[name]())
        slowest = max(slowest, time.perf_counter() - began - elapsed)
        if slowest * needed > max(2 * seconds, seconds + 1):
            raise ValueError(
                f"seconds: got {seconds:g}; expected at least {slowest * needed:.1f}, "
                f"the {needed} rounds that an interval needs"
            )
    timings = {name: np.array(samples[name]) for name in names}
    ratios = {name: _ratio(timings[name] / timings[baseline], len(arms)) for name in names if name != baseline}
    control = ratios.pop(_CONTROL)
    arm_timings = {name: ArmTiming(compile_s[name], float(np.median(timings[name])), timings[name]) for name in arms}
    return StepComparison(baseline, arm_timings, ratios, control, len(samples[baseline]))


@functools.partial(jax.jit, static_argnames="step")
def _repeat(step: Callable[..., Any], state: DescentState, batch: Any, steps: Any) -> DescentState:
    """So many steps in one program; what a step reports and nobody reads is not computed."""
    return lax.fori_loop(0, steps, lambda _, state: step(state, batch)[0], state)


def _block(program: Any, state: DescentState, batch: Any) -> Callable[[], float]:
    """A function that times one block of steps, in seconds a step; blocks are about equally long for all arms."""

    def seconds(steps: int) -> float:
        start = time.perf_counter()
        jax.block_until_ready(program(state, batch, steps))
        return time.perf_counter() - start

    steps = 1
    seconds(steps)
    while (took := seconds(steps)) < _BLOCK_S / 2:
        steps *= max(2, min(1000, int(_BLOCK_S / max(took, 1e-6)) // 2))
    return lambda: seconds(steps) / steps


def _check_same(programs: Mapping[str, Any], states: Mapping[str, Any], batch: Any, baseline: str) -> None:
    ends = {name: named_leaves(programs[name](states[name], batch, _SAME_STEPS).params) for name in programs}
    for name, leaves in ends.items():
        for path, leaf in leaves.items():
            expected = ends[baseline][path]
            tolerance = float(jnp.finfo(expected.dtype).eps) ** 0.5
            got, want = np.asarray(leaf, np.float64), np.asarray(expected, np.float64)
            difference = np.max(np.abs(got - want), initial=0) / max(np.max(np.abs(want), initial=0), 1e-300)
            if not difference <= tolerance:
                raise ValueError(
                    f"arms[{name!r}]: params{path} differs from that of {baseline!r} by {difference:.2g} of its size "
                    f"after {_SAME_STEPS} steps; expected at most {tolerance:.2g}, or same_result=False"
                )


def _ratio(ratios: np.ndarray, n_arms: int) -> Ratio:
    """The median, and the order statistics that enclose the true one, with Bonferroni's share of the risk for each."""
    ordered = np.sort(ratios)
    rank = _rank(len(ordered), n_arms)
    return Ratio(float(np.median(ordered)), float(ordered[rank - 1]), float(ordered[-rank]))


def _rank(rounds: int, n_arms: int) -> int:
    """The largest r with ``2 P(X < r) <= risk`` for X binomial (rounds, 1/2); 0 if there is none.

    The true median lies below the r-th smallest of n values only if fewer than r of them fall below it.
    """
    from scipy.special import bdtr

    risk = (1 - _CONFIDENCE) / n_arms
    return int(sum(2 * bdtr(r - 1, rounds, 0.5) <= risk for r in range(1, rounds // 2 + 1)))


def _fewest_rounds(n_arms: int) -> int:
    return next(rounds for rounds in range(2, 100) if _rank(rounds, n_arms) > 0)


def _interval_cells(ratio: Ratio | None) -> tuple[str, str]:
    return ("1", "") if ratio is None else (f"{ratio.median:.3f}", f"{ratio.low:.3f} to {ratio.high:.3f}")
