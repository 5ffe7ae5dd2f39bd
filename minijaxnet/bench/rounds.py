"""Paired rounds: one block of each arm, a millisecond long, in a new order and at new memory addresses each time.

The blocks of a round are a few milliseconds apart, so that the ratio of two does not depend on how the machine's speed
changes over seconds. Where code and data lie in memory makes a step faster or slower for as long as they stay there,
and more rounds would not remove that. So each block has new copies of state and batch, and one of several compilations
of its loop, drawn at random: a bias becomes noise.

Source: Kalibera and Jones, "Rigorous benchmarking in reasonable time", 2013 (repetitions on each level that has noise);
Curtsinger and Berger, "Stabilizer: statistically sound performance evaluation", 2013 (addresses drawn anew).
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.stages import Compiled

from minijaxnet._loops import block_on, repeated
from minijaxnet._trees import own_copy
from minijaxnet.bench.blocks import placed, seconds_of, steps_for
from minijaxnet.bench.intervals import median_interval

BLOCK_S = 0.001  # long against the clock's resolution; short, so that there are many
_CALLS = 10  # a block is at least as long as so many calls without a step
WARM_CALLS = 3  # on a GPU the first call of a program is plain, the second builds a graph, the third replays it
_CALL_EVERY, _SENTINEL_EVERY = 2, 8  # rounds to a call without a step, and to a run of the fixed workload
_SENTINEL_S = 0.002
_KEPT, _KEPT_BYTES = 16, 2**27  # copies that are kept, so that new ones get other addresses
_CALL_RISK = 0.002  # of taking the cost of an arm's call for another than the baseline's
# When the measurement may end, as shares of the time, and the risk at each of these looks: together 5 % (Bonferroni),
# so that the intervals hold whenever it ends.
LOOKS = {1 / 8: 0.002, 1 / 4: 0.006, 1 / 2: 0.012, 1: 0.03}


def block_length(name: str, program: Compiled, start: tuple[Any, Any]) -> tuple[int, float]:
    """How many steps of an arm take a millisecond or more, and much longer than a call; and their seconds.

    Args:
        name: of the arm.
        program: ``run(state, batch, steps)``, compiled.
        start: state and batch.
    """

    def seconds(steps: int) -> float:
        return seconds_of(lambda: program(*start, steps))

    call_s = min(seconds(0) for _ in range(WARM_CALLS))
    return steps_for(max(BLOCK_S, _CALLS * call_s), seconds, f"arms[{name!r}]")


class Block:
    """Times blocks of an arm, each of the same number of steps.

    Attributes:
        steps: of a block.
        calls_s: seconds of a call that takes no step, measured at every other block.
    """

    def __init__(self, programs: Sequence[Compiled], start: tuple[Any, Any], steps: int, seed: int = 0):
        """Warm the programs up.

        Args:
            programs: ``run(state, batch, steps)``, compiled once or several times.
            start: state and batch; they are copied.
            steps: the same for all arms of about the same speed, so that a call is the same share of their times.
            seed: of the random draws.
        """
        self._programs, self._start, self._draw = programs, start, np.random.default_rng(seed)
        self.steps = steps
        self._copies: list[Any] = []
        self._taken = 0
        self.calls_s: list[float] = []
        for program in programs:
            for _ in range(WARM_CALLS):
                jax.block_until_ready(program(*start, 1))
        self._copy()
        block_s = seconds_of(lambda: programs[0](*start, steps))
        self._new_every = math.ceil(4 * seconds_of(self._copy) / block_s)

    def _copy(self) -> Any:
        """New copies; some of the earlier ones are kept, so that the new ones do not get their addresses."""
        copy = jax.block_until_ready(placed(self._programs[0], *own_copy(self._start)))
        most = _KEPT_BYTES // max(1, sum(leaf.nbytes for leaf in jax.tree.leaves(copy)))
        while len(self._copies) >= max(1, min(_KEPT, most)):
            del self._copies[int(self._draw.integers(len(self._copies)))]
        self._copies.append(copy)
        return copy

    def __call__(self) -> float:
        """The seconds of a block, its call included."""
        program = self._programs[int(self._draw.integers(len(self._programs)))]
        copy = self._copies[-1] if self._taken % self._new_every else self._copy()
        if self.steps > 1:  # otherwise the first timed step would fetch the copies into the caches
            jax.block_until_ready(program(*copy, 1))
        if self._taken % _CALL_EVERY == 0:
            self.calls_s.append(seconds_of(lambda: program(*copy, 0)))
        self._taken += 1
        return seconds_of(lambda: program(*copy, self.steps))


def calls_of(calls_s: np.ndarray, baselines: Sequence[int]) -> np.ndarray:
    """What a call without steps costs each arm: that part of a block's time is not its steps'.

    It is the median of the baseline's entries, for all arms, so that its noise makes no arm slower than another. An
    arm has its own only where that certainly differs, as where its state has more leaves.

    >>> calls_of(np.array([[1.0, 1.0, 9.0]] * 20 + [[1.0, 1.1, 9.2]]), [0, 1])
    array([1., 1., 9.])
    """
    common = float(np.median(calls_s[:, baselines]))
    more = [median_interval(own[:, None] - calls_s[:, baselines], _CALL_RISK) for own in calls_s.T]
    return np.array([common + (one.median if one.low > 0 or one.high < 0 else 0.0) for one in more])


def in_turns(runs: Sequence[Callable[[], float]]) -> Iterator[list[float]]:
    """Round after round: what each run returns, all of them in a new order each time.

    >>> next(in_turns([lambda: 1.0, lambda: 2.0]))
    [1.0, 2.0]
    """
    draw = np.random.default_rng(0)
    while True:
        times = [0.0] * len(runs)
        for turn in draw.permutation(len(runs)):
            times[turn] = runs[turn]()
        yield times


def take_rounds(
    runs: Sequence[Callable[[], float]], fixed: Callable[[], float], needed: Callable[[float], int], seconds: float
) -> Iterator[tuple[float, float, np.ndarray, np.ndarray]]:
    """Take rounds of all runs; at each of ``LOOKS`` yield what was measured so far.

    Args:
        runs: each returns the seconds of a block.
        fixed: returns the seconds of a fixed workload; it runs every few rounds.
        needed: how many rounds an interval needs at a risk. A look with fewer rounds is left out, but the last look
            waits for them.
        seconds: for how long.

    Yields:
        The risk of this look, the seconds so far, the times ``(rounds, runs)``, and those of the fixed workload.

    Raises:
        ValueError: the rounds that are needed would take more than half a minute longer, and ten times as long.
    """
    turns = in_turns(runs)
    least = needed(LOOKS[1])
    rounds: list[list[float]] = []
    fixed_s: list[float] = []
    began, elapsed, shortest = time.perf_counter(), 0.0, math.inf
    for share, risk in LOOKS.items():
        while (share == 1 and len(rounds) < least) or elapsed * (1 + 1 / max(1, len(rounds))) < share * seconds:
            if len(rounds) % _SENTINEL_EVERY == 0:
                fixed_s.append(fixed())
            rounds.append(next(turns))
            before, elapsed = elapsed, time.perf_counter() - began
            # The shortest of at least two: a machine that is busy for a moment is no reason to refuse.
            shortest = min(shortest, elapsed - before)
            if len(rounds) > 1 and shortest * least > max(10 * seconds, seconds + 30):
                raise ValueError(
                    f"seconds: got {seconds:g}; expected at least {shortest * least:.1f}, "
                    f"for the {least} rounds that an interval needs"
                )
        if len(rounds) >= needed(risk):
            yield risk, elapsed, np.array(rounds), np.array(fixed_s)


def sentinel() -> Callable[[], float]:
    """A function that times a fixed workload: products of small matrices in one compiled loop, always the same."""
    matrix = jax.device_put(np.random.default_rng(0).normal(size=(64, 64)).astype(np.float32) / 64)
    block = block_on(matrix)

    def products(matrix: jax.Array, times: jax.Array) -> jax.Array:
        return repeated(times, lambda _, x: matrix @ x + matrix, matrix, block)

    program = jax.jit(products).lower(matrix, 1).compile()

    def seconds(times: int) -> float:
        return seconds_of(lambda: program(matrix, times))

    times, _ = steps_for(_SENTINEL_S, seconds, "sentinel")
    return lambda: seconds(times) / times
