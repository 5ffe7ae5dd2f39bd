"""Which of several steps is faster? Paired by the millisecond, with a control, and with an interval instead of a guess.

All arms run in turn, so that a round's ratio of an arm to the baseline is taken within a few milliseconds. The baseline
enters twice: it is compiled several times, and half of its programs are held against the other half. So each arm's time
has a rank among three in a round, the median of its ratios an interval from these ranks alone, and the baseline's ratio
to itself shows whether what is equal comes out equal. The answer may be clear early: it is looked at after an eighth, a
quarter and half of the time, too, at risks that together with the last one are 5 %.
"""

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from minijaxnet._loops import block_on, platform_of
from minijaxnet._machine import product_epsilon
from minijaxnet._trees import is_number, named_leaves, structure_difference
from minijaxnet.bench.blocks import check_seconds, checked, compilations, fused, placed, start_state
from minijaxnet.bench.comparison import ArmTiming, StepComparison, workload_of
from minijaxnet.bench.device import clock_reader
from minijaxnet.bench.intervals import fewest_samples
from minijaxnet.bench.machine import sentinel
from minijaxnet.bench.rounds import WARM_CALLS, Block, block_length, calls_of, take_rounds
from minijaxnet.data import numbers
from minijaxnet.descent import Descent, check_descent
from minijaxnet.losses import check_labels

SAME_STEPS = 3
_MOST_PROGRAMS = 4
_LONG_S = 0.03  # a block that were longer with as many steps as the others' has its own number


def compare_steps(
    arms: Mapping[str, Descent],
    params: Any,
    batch: Any,
    *,
    baseline: str,
    seconds: float = 10.0,
    key: jax.Array | None = None,
    same_result: bool = True,
    width: float = 0.01,
) -> StepComparison:
    """Time the steps of several descents against one of them, all in one run.

    Each arm makes its own state from the same params and is timed inside a compiled loop, the state going from step to
    step, and with it what the step reports. Compilation comes first and is reported apart.

    Arms are the same if after three steps no leaf differs from the baseline's by more than rounding explains::

        sqrt(eps) * largest update of the leaf + 4 eps * largest parameter of the leaf + eps * largest update of all

    An update is what the baseline's three steps made of a leaf, ``eps`` that of the leaf's dtype, or for updates that
    of a matrix product, where that is larger, as for float32 on a GPU. So a wrong slope is
    found at a small learning rate too, unless the updates themselves are lost in the rounding of the params. NaN is
    the same as NaN in the same place.

    Equal steps that are compiled apart can differ by up to a per cent all through a process, by where they lie in
    memory. So each arm is compiled up to four times, where that takes no more than half of its time, and its state and
    batch are copied to a new place before each block. A call's own cost, that of a call without steps, is taken off.
    What is measured is a millisecond of steps after others' work. In a loop of seconds caches and threads may be
    warmer, by a few per cent more for one program than for another; ``time_step`` has longer blocks.

    Args:
        arms: ``{name: descent}``, two at least, under any names.
        params: where each starts.
        batch: what each step looks at. Where it or the params are placed on several devices, so are the steps; an arm
            may place for itself, too, by its ``init`` and as ``on_mesh`` does. Nothing is moved while the clock runs.
        baseline: the arm that the others are held against.
        seconds: how long to measure at most, compilation not counted; it ends early where every verdict is clear.
        key: for arms whose objective takes one.
        same_result: whether to refuse arms that compute another thing than the baseline.
        width: arms whose ratio is surely within so much of 1 are the same.

    Returns:
        Ratios with intervals, widened so that all of them hold together with 95 % confidence whenever it ended.

    Raises:
        TypeError: a name that is not text, ``seconds`` or ``width`` that are not a number.
        ValueError: fewer than two arms, an empty name, a baseline that is none of the arms, ``seconds`` that are not
            positive or too short for the rounds an interval needs, a step that does nothing, has side effects or
            returns another structure than it took; a ``width`` that is not between 0 and 1; with ``same_result``, arms
            whose params have another structure, shape or dtype than the baseline's or become others.

    Example:
        >>> from minijaxnet.descent import gradient_descent
        >>> descent = gradient_descent(lambda weights, batch: jnp.sum((weights - batch) ** 2), 0.1)
        >>> result = compare_steps({"a": descent, "b": descent}, jnp.zeros(9), 1.0, baseline="a", seconds=0.5)
        >>> sorted(result.arms), result.verdicts["b"] in ("faster", "slower", "same", "undecided")
        (['a', 'b'], True)
    """
    _check_arguments(arms, baseline, seconds, width)
    batch = jax.device_put(numbers(batch, "batch"))
    for descent in arms.values():
        check_labels(descent.step, params, batch)
    states = {name: start_state(descent, params, key) for name, descent in arms.items()}
    if same_result:
        _check_alike(states, baseline)
    loops = {name: _compiled(descent.step, states[name], batch, f"arms[{name!r}]") for name, descent in arms.items()}
    if same_result:
        _check_same(loops, baseline)
    lengths = {name: block_length(name, loop.programs[0], loop.start) for name, loop in loops.items()}
    most = max(steps for steps, _ in lengths.values())
    each = {name: most if block_s / n * most < _LONG_S else n for name, (n, block_s) in lengths.items()}
    for name, loop in loops.items():
        of_block, block_s = lengths[name]
        each_s = loop.compile_s + WARM_CALLS * block_s / of_block
        more = max(int(name == baseline), int(seconds / 2 / len(arms) / each_s))
        loop.programs.extend(_program(loop.run, *loop.start) for _ in range(min(_MOST_PROGRAMS - 1, more)))
    first, second = loops[baseline].programs[::2], loops[baseline].programs[1::2]
    entries = [(first if name == baseline else loop.programs, loop.start) for name, loop in loops.items()]
    entries.append((second, loops[baseline].start))
    steps = [*each.values(), each[baseline]]
    blocks = [Block(*entry, n, seed) for seed, (entry, n) in enumerate(zip(entries, steps, strict=True))]
    return _timed(loops, blocks, baseline, seconds, width, workload_of(params, batch))


class _Loop(NamedTuple):
    """A loop of an arm's steps, ``run(state, batch, steps)``, as it is and compiled."""

    run: Callable[..., Any]
    programs: list[Any]
    compile_s: float
    start: tuple[Any, Any]


def _compiled(step: Callable[..., Any], state: Any, batch: Any, where: str) -> _Loop:
    began = time.perf_counter()
    # A function of its own, lest JAX find an equal step's trace again.
    traced = checked(jax.jit(lambda state, batch: step(state, batch)).trace(state, batch), state, where)
    run = fused(traced, block_on(state))
    program = _program(run, state, batch)
    return _Loop(run, [program], time.perf_counter() - began, placed(program, state, batch))


def _program(run: Callable[..., Any], state: Any, batch: Any) -> Any:
    # Again a function of its own, for a loop that is compiled several times.
    def repeat(state: Any, batch: Any, steps: Any) -> Any:
        return run(state, batch, steps)

    return jax.jit(repeat).lower(state, batch, 1).compile()


def _timed(
    loops: Mapping[str, _Loop], blocks: Sequence[Block], baseline: str, seconds: float, width: float, workload: str
) -> StepComparison:
    """Take rounds until all is clear, or the time is up."""
    found, fixed, baselines = None, sentinel(), [[*loops].index(baseline), -1]
    clock, clocks = clock_reader(), []

    def on_the_side() -> float:
        if clock is not None:
            clocks.append(clock())
        return fixed()

    with compilations() as compiled:
        needed = functools.partial(_needed, len(loops))
        for risk, measured_s, rounds, wandering in take_rounds(blocks, on_the_side, needed, seconds):
            calls_s = calls_of(np.transpose([block.calls_s for block in blocks]), baselines)
            *samples_s, control_s = (np.maximum(rounds - calls_s, rounds / 10) / [block.steps for block in blocks]).T
            timings = {
                name: ArmTiming(loop.compile_s, call_s, taken)
                for (name, loop), call_s, taken in zip(loops.items(), calls_s.tolist(), samples_s, strict=False)
            }
            found = StepComparison(
                baseline,
                timings,
                control_s,
                wandering,
                risk,
                width,
                measured_s,
                tuple(compiled),
                tuple(clocks),
                workload,
            )
            if found.is_clear:
                break
    assert found is not None, "the last look is always taken"
    return found


def _needed(intervals: int, risk: float) -> int:
    """How many rounds the ratios and the control need, for so many intervals at a risk."""
    return max(fewest_samples(others, risk / intervals) for others in (1, 2))


def _check_arguments(arms: Mapping[str, Any], baseline: str, seconds: float, width: float) -> None:
    if not isinstance(arms, Mapping):
        raise TypeError(f"arms: got {type(arms).__name__}; expected {{name: descent}}")
    if len(arms) < 2:
        raise ValueError(f"arms: got {len(arms)}; expected at least two")
    for name in arms:
        if not isinstance(name, str):
            raise TypeError(f"arms: got the name {name!r}; expected text")
        if not name.strip():
            raise ValueError(f"arms: got the name {name!r}; expected one that can be seen")
        check_descent(arms[name], f"arms[{name!r}]")
    if baseline not in arms:
        raise ValueError(f"baseline: got {baseline!r}; expected one of {', '.join(arms)}")
    check_seconds(seconds)
    if not is_number(width):
        raise TypeError(f"width: got {width!r}; expected a share such as 0.01, one per cent")
    if not 0 < float(width) < 1:
        raise ValueError(f"width: got {width}; expected a share between 0 and 1, such as 0.01 for one per cent")


def _check_alike(states: Mapping[str, Any], baseline: str) -> None:
    for name, state in states.items():
        if difference := structure_difference(state.params, states[baseline].params):
            raise ValueError(f"arms[{name!r}]: params: {difference}, as {baseline!r} has it, or same_result=False")


def _check_same(loops: Mapping[str, _Loop], baseline: str) -> None:
    """Refuse arms whose params differ after a few steps by more than rounding explains: see ``compare_steps``."""
    ends = {name: loop.programs[0](*loop.start, SAME_STEPS)[0].params for name, loop in loops.items()}
    for name, end in ends.items():
        if found := beyond_rounding(loops[baseline].start[0].params, ends[baseline], end):
            path, difference, tolerance = found
            raise ValueError(
                f"arms[{name!r}]: params{path} differs from that of {baseline!r} by {difference:.2g} "
                f"after {SAME_STEPS} steps; expected at most {tolerance:.2g}, or same_result=False"
            )


def beyond_rounding(start: Any, end: Any, other: Any) -> tuple[str, float, float] | None:
    """The first leaf in which two ends of a few steps differ by more than rounding explains: see ``compare_steps``.

    Args:
        start: the params before the steps.
        end: the params that the baseline ended with.
        other: those that another arm ended with.

    Returns:
        The leaf's path, by how much it differs and the most that it may; None if there is no such leaf.

    Example:
        >>> one, two = jnp.float32(1.0), jnp.float32(2.0)
        >>> beyond_rounding(one, two, two * (1 + 1e-6)), beyond_rounding(one, two, two * 1.01)[0]
        (None, '(leaf)')
    """
    platform = platform_of(end)
    starts, ends, others = map(_wide_leaves, (start, end, other))
    with np.errstate(invalid="ignore"):
        updates = {path: _largest(leaf - starts[path]) for path, leaf in ends.items()}
        # A slope that cancels to nothing is all rounding: that of the terms it is made of, which other leaves show.
        most = max(updates.values(), default=0.0)
        for path, leaf in named_leaves(end).items():
            want, got = ends[path], others[path]
            eps = of_product = 0.0  # of whole numbers, such as a count among the params
            if jnp.issubdtype(leaf.dtype, jnp.inexact):
                eps, of_product = float(jnp.finfo(leaf.dtype).eps), product_epsilon(leaf.dtype, platform)
            same = (got == want) | (np.isnan(got) & np.isnan(want))
            difference = np.max(np.where(same, 0, np.abs(got - want)), initial=0)
            tolerance = of_product**0.5 * updates[path] + 4 * eps * _largest(starts[path]) + of_product * most
            if not difference <= tolerance:
                return path, float(difference), tolerance
    return None


def _wide_leaves(tree: Any) -> dict[str, np.ndarray]:
    """The leaves in a dtype that holds every other, complex ones too."""
    return {path: np.asarray(leaf, np.complex128) for path, leaf in named_leaves(tree).items()}


def _largest(leaf: np.ndarray) -> float:
    """The largest absolute value, of those that are finite."""
    return float(np.max(np.abs(leaf), initial=0, where=np.isfinite(leaf)))
