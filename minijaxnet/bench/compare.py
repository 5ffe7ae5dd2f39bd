"""Which of several steps is faster? Timed in pairs of blocks, with a control, and with intervals.

All arms run in turn, so that a round's ratio of an arm to the baseline is taken within a few milliseconds. The baseline
enters twice: it is compiled several times, and one half of its programs is compared with the other half. So in a round
each arm's time has a rank among three; these ranks alone give the interval of the median of its ratios; and the
baseline's ratio to itself shows whether equal steps come out equal. The answer may be clear early: there is a look
after an eighth, a quarter and half of the time, too, at risks that together with the last look are 5 %.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.stages import Compiled

from minijaxnet._checks import is_number
from minijaxnet._loops import block_on, platform_of
from minijaxnet._machine import product_epsilon
from minijaxnet._trees import named_leaves, structure_difference
from minijaxnet.bench.blocks import check_seconds, checked, compilations, fused, placed, start_state
from minijaxnet.bench.comparison import ArmTiming, StepComparison, workload_of
from minijaxnet.bench.device import clock_reader
from minijaxnet.bench.intervals import fewest_samples
from minijaxnet.bench.rounds import WARM_CALLS, Block, block_length, calls_of, sentinel, take_rounds
from minijaxnet.data import numbers
from minijaxnet.descent import Descent, check_descent
from minijaxnet.losses import check_labels

SAME_STEPS = 3
_MOST_PROGRAMS = 4
_LONG_S = 0.03  # an arm has its own number of steps in a block where the common number would take longer than this


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

    Each arm makes its own state from the same params and is timed inside a compiled loop, in which the state goes from
    step to step, and with it what the step reports. Compilation comes first and is reported separately.

    Arms have the same result if after three steps no leaf differs from the baseline's by more than rounding explains::

        sqrt(eps) * largest update of the leaf + 4 eps * largest parameter of the leaf + eps * largest update of all

    An update is what the baseline's three steps changed in a leaf, and ``eps`` is that of the leaf's dtype; for updates
    it is that of a matrix product where this is larger, as for float32 on a GPU. So a wrong gradient is found at a
    small learning rate, too, unless the updates themselves are lost in the rounding of the params. NaN equals NaN.

    Equal steps that are compiled separately can differ by up to one per cent throughout a process, by where they lie in
    memory. So each arm is compiled up to four times, where that takes at most half of its time, and its state and batch
    are copied to new addresses before each block. The cost of a call without steps is subtracted. What is measured is a
    millisecond of steps after other work. In a loop of seconds caches and threads may be warmer, by a few per cent more
    for one program than for another; ``time_step`` has longer blocks.

    Args:
        arms: ``{name: descent}``, at least two.
        params: where each starts.
        batch: what each step uses. Where it or the params are placed on several devices, so are the steps. An arm may
            place its state by its ``init`` and its batch as ``on_mesh`` does. Nothing is moved during the rounds.
        baseline: the name of the arm that the others are compared with.
        seconds: how long to measure at most, without compilation; it ends early where every verdict is clear.
        key: for arms whose objective takes one.
        same_result: whether to refuse arms that compute another result than the baseline.
        width: an arm is the same as the baseline where its ratio is certainly within so much of 1.

    Returns:
        Ratios with intervals, wide enough that all of them hold together with 95 % confidence whenever it ended.

    Raises:
        TypeError: a name that is not text, ``seconds`` or ``width`` that is not a number.
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
        for name, state in states.items():
            if difference := structure_difference(state.params, states[baseline].params):
                raise ValueError(f"arms[{name!r}]: params: {difference}, as {baseline!r} has it, or same_result=False")
    loops = {name: _compiled(descent.step, states[name], batch, f"arms[{name!r}]") for name, descent in arms.items()}
    if same_result:
        _check_same(loops, baseline)
    return _timed(loops, _blocks(loops, baseline, seconds), baseline, seconds, width, workload_of(params, batch))


class _Loop(NamedTuple):
    """A loop of an arm's steps, ``run(state, batch, steps)``, and its compiled programs.

    ``start`` holds state and batch.
    """

    run: Callable[..., Any]
    programs: list[Compiled]
    compile_s: float
    start: tuple[Any, Any]


def _compiled(step: Callable[..., Any], state: Any, batch: Any, where: str) -> _Loop:
    began = time.perf_counter()
    # A new function, otherwise JAX would find the trace of an equal step again.
    traced = checked(jax.jit(lambda state, batch: step(state, batch)).trace(state, batch), state, where)
    run = fused(traced, block_on(state))
    program = _program(run, state, batch)
    return _Loop(run, [program], time.perf_counter() - began, placed(program, state, batch))


def _program(run: Callable[..., Any], state: Any, batch: Any) -> Compiled:
    def repeat(state: Any, batch: Any, steps: Any) -> Any:  # again a new function, so that it is compiled again
        return run(state, batch, steps)

    return jax.jit(repeat).lower(state, batch, 1).compile()


def _blocks(loops: Mapping[str, _Loop], baseline: str, seconds: float) -> list[Block]:
    """The blocks of each arm, and last those of the baseline's second entry; each has several compiled programs."""
    lengths = {name: block_length(name, loop.programs[0], loop.start) for name, loop in loops.items()}
    most = max(steps for steps, _ in lengths.values())
    steps = {name: most if block_s / n * most < _LONG_S else n for name, (n, block_s) in lengths.items()}
    for name, loop in loops.items():
        n, block_s = lengths[name]
        each_s = loop.compile_s + WARM_CALLS * block_s / n
        more = max(int(name == baseline), int(seconds / 2 / len(loops) / each_s))
        loop.programs.extend(_program(loop.run, *loop.start) for _ in range(min(_MOST_PROGRAMS - 1, more)))
    first, second = loops[baseline].programs[::2], loops[baseline].programs[1::2]
    entries = [(first if name == baseline else loop.programs, loop.start, steps[name]) for name, loop in loops.items()]
    entries.append((second, loops[baseline].start, steps[baseline]))
    return [Block(*entry, seed) for seed, entry in enumerate(entries)]


def _timed(
    loops: Mapping[str, _Loop], blocks: Sequence[Block], baseline: str, seconds: float, width: float, workload: str
) -> StepComparison:
    """Take rounds until every verdict is clear, or the time is up."""
    found, fixed, baselines = None, sentinel(), [[*loops].index(baseline), -1]
    clock, clocks = clock_reader(), []

    def every_few_rounds() -> float:
        if clock is not None:
            clocks.append(clock())
        return fixed()

    def needed(risk: float) -> int:  # for the ratios, each against two entries, and for the control
        return max(fewest_samples(others, risk / len(loops)) for others in (1, 2))

    with compilations() as compiled:
        for risk, measured_s, rounds, sentinel_s in take_rounds(blocks, every_few_rounds, needed, seconds):
            calls_s = calls_of(np.transpose([block.calls_s for block in blocks]), baselines)
            *samples_s, control_s = (np.maximum(rounds - calls_s, rounds / 10) / [block.steps for block in blocks]).T
            timings = {
                name: ArmTiming(loop.compile_s, call_s, taken)
                for (name, loop), call_s, taken in zip(loops.items(), calls_s.tolist(), samples_s, strict=False)
            }
            found = StepComparison(
                baseline=baseline,
                arms=timings,
                control_s=control_s,
                sentinel_s=sentinel_s,
                risk=risk,
                width=width,
                measured_s=measured_s,
                compiled=tuple(compiled),
                clocks=tuple(clocks),
                workload=workload,
            )
            if found.is_clear:
                break
    assert found is not None, "the last look is always taken"
    return found


def _check_arguments(arms: Mapping[str, Any], baseline: str, seconds: float, width: float) -> None:
    if not isinstance(arms, Mapping):
        raise TypeError(f"arms: got {type(arms).__name__}; expected {{name: descent}}")
    if len(arms) < 2:
        raise ValueError(f"arms: got {len(arms)}; expected at least two")
    for name, descent in arms.items():
        if not isinstance(name, str):
            raise TypeError(f"arms: got the name {name!r}; expected text")
        if not name.strip():
            raise ValueError(f"arms: got the name {name!r}; expected one that is not blank")
        check_descent(descent, f"arms[{name!r}]")
    if baseline not in arms:
        raise ValueError(f"baseline: got {baseline!r}; expected one of {', '.join(arms)}")
    check_seconds(seconds)
    if not is_number(width):
        raise TypeError(f"width: got {width!r}; expected a share such as 0.01, one per cent")
    if not 0 < float(width) < 1:
        raise ValueError(f"width: got {width}; expected a share between 0 and 1, such as 0.01 for one per cent")


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
    """The first leaf in which two results of a few steps differ by more than rounding explains: see ``compare_steps``.

    Args:
        start: the params before the steps.
        end: the baseline's params after them.
        other: those of another arm.

    Returns:
        The leaf's path, its difference and the largest that is allowed; None if there is no such leaf.

    Example:
        >>> one, two = jnp.float32(1.0), jnp.float32(2.0)
        >>> beyond_rounding(one, two, two * (1 + 1e-6)), beyond_rounding(one, two, two * 1.01)[0]
        (None, '(leaf)')
    """
    platform = platform_of(end)
    starts, ends, others = map(_wide_leaves, (start, end, other))
    with np.errstate(invalid="ignore"):
        updates = {path: _largest(leaf - starts[path]) for path, leaf in ends.items()}
        # A gradient that cancels to zero is only rounding error, that of its terms; other leaves show their size.
        most = max(updates.values(), default=0.0)
        for path, leaf in named_leaves(end).items():
            expected, got = ends[path], others[path]
            eps = of_product = 0.0  # for whole numbers, such as a counter among the params
            if jnp.issubdtype(leaf.dtype, jnp.inexact):
                eps, of_product = float(jnp.finfo(leaf.dtype).eps), product_epsilon(leaf.dtype, platform)
            same = (got == expected) | (np.isnan(got) & np.isnan(expected))
            difference = np.max(np.where(same, 0, np.abs(got - expected)), initial=0)
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
