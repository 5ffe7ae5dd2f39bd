"""Which of several steps is faster? Interleaved, with a control, and with an interval instead of a guess.

A machine drifts: two measurements minutes apart compare its moods. Here all arms run in turn, in a new order each
round, so that a round's ratio of an arm to the baseline is taken within a fraction of a second. The median of these
ratios, with the interval that order statistics give it, needs no assumption on the noise but that rounds are alike. The
baseline enters twice, compiled twice: its ratio to itself shows what this machine cannot tell apart. A fixed workload
runs in every round, too: how its time wanders is the machine's own doing.
"""

import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from minijaxnet.bench.blocks import check_seconds, checked, fused, placed, start_state
from minijaxnet.bench.comparison import ArmTiming, StepComparison
from minijaxnet.bench.rounds import block, take_rounds
from minijaxnet.data import numbers
from minijaxnet.descent import Descent, check_descent
from minijaxnet.losses import check_labels
from minijaxnet.pytrees import named_leaves, structure_difference

SAME_STEPS = 3


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
    step, and with it what the step reports. Compilation comes first and is reported apart.

    Arms are the same if after three steps no leaf differs from the baseline's by more than rounding explains::

        sqrt(eps) * largest update of the leaf + 4 eps * largest parameter of the leaf + eps * largest update of all

    An update is what the baseline's three steps made of a leaf, ``eps`` that of the leaf's dtype. So a wrong slope is
    found at a small learning rate too, unless the updates themselves are lost in the rounding of the params. NaN is
    the same as NaN in the same place.

    Equal steps that are compiled apart can differ by up to a per cent all through a process, by where they lie in
    memory. The baseline's second entry, compiled by itself, shows some of that.

    Args:
        arms: ``{name: descent}``, two at least, under any names.
        params: where each starts.
        batch: what each step looks at. Where it or the params are placed on several devices, so are the steps; an arm
            may place for itself, too, by its ``init`` and as ``on_mesh`` does. Nothing is moved while the clock runs.
        baseline: the arm that the others are held against.
        seconds: how long to measure, compilation not counted.
        key: for arms whose objective takes one.
        same_result: whether to refuse arms that compute another thing than the baseline.

    Returns:
        Ratios with intervals, widened so that all of them hold together with 95 % confidence.

    Raises:
        TypeError: a name that is not text, ``seconds`` that are not a number.
        ValueError: fewer than two arms, an empty name, a baseline that is none of the arms, ``seconds`` that are not
            positive or too short for the rounds an interval needs, a step that does nothing, has side effects or
            returns another structure than it took; with ``same_result``, arms whose params have another
            structure, shape or dtype than the baseline's or become others.

    Example:
        >>> from minijaxnet.descent import gradient_descent
        >>> descent = gradient_descent(lambda weights, batch: jnp.sum((weights - batch) ** 2), 0.1)
        >>> result = compare_steps({"a": descent, "b": descent}, jnp.zeros(9), 1.0, baseline="a", seconds=0.5)
        >>> sorted(result.arms), result.verdicts["b"] in ("faster", "slower", "indistinguishable")
        (['a', 'b'], True)
    """
    _check_arguments(arms, baseline, seconds)
    batch = jax.device_put(numbers(batch, "batch"))
    for descent in arms.values():
        check_labels(descent.step, params, batch)
    states = {name: start_state(descent, params, key) for name, descent in arms.items()}
    if same_result:
        _check_alike(states, baseline)
    loops, programs, compile_s, starts = {}, {}, {}, {}
    for name, descent in arms.items():
        start = time.perf_counter()
        loops[name] = _loop(descent.step, states[name], batch, f"arms[{name!r}]")
        programs[name] = _compiled(loops[name], states[name], batch)
        compile_s[name] = time.perf_counter() - start
        starts[name] = placed(programs[name], states[name], batch)
    if same_result:
        _check_same(programs, starts, baseline)

    # The control is compiled anew, on a state of its own: of two equal programs one may lie better in memory.
    state, batch = starts[baseline]
    state = jax.tree.map(jnp.copy, state)
    control = _compiled(loops[baseline], state, batch)
    blocks = {name: _block(name, program, *starts[name]) for name, program in programs.items()}
    found = take_rounds(blocks, _block(baseline, control, state, batch), seconds=seconds)
    timings = {name: ArmTiming(compile_s[name], samples_s) for name, samples_s in found.arms.items()}
    return StepComparison(baseline, timings, found.control, found.sentinel)


def _block(name: str, program: Any, state: Any, batch: Any) -> Callable[[], float]:
    return block(name, lambda steps: program(state, batch, steps))


def _check_arguments(arms: Mapping[str, Any], baseline: str, seconds: float) -> None:
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


def _loop(step: Callable[..., Any], state: Any, batch: Any, where: str) -> Callable[..., Any]:
    # A function of its own, lest JAX find an equal step's trace again.
    return fused(checked(jax.jit(lambda state, batch: step(state, batch)).trace(state, batch), state, where))


def _compiled(loop: Callable[..., Any], state: Any, batch: Any) -> Any:
    # Again a function of its own, for a loop that is compiled twice.
    def repeat(state: Any, batch: Any, steps: Any) -> Any:
        return loop(state, batch, steps)

    return jax.jit(repeat).lower(state, batch, 1).compile()


def _check_alike(states: Mapping[str, Any], baseline: str) -> None:
    for name, state in states.items():
        if difference := structure_difference(state.params, states[baseline].params):
            raise ValueError(f"arms[{name!r}]: params: {difference}, as {baseline!r} has it, or same_result=False")


def _check_same(programs: Mapping[str, Any], starts: Mapping[str, Any], baseline: str) -> None:
    """Refuse arms whose params differ after a few steps by more than rounding explains: see ``compare_steps``."""
    ends = {name: programs[name](*starts[name], SAME_STEPS)[0].params for name in programs}
    for name, end in ends.items():
        if found := beyond_rounding(starts[baseline][0].params, ends[baseline], end):
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
    eps = {path: float(jnp.finfo(leaf.dtype).eps) for path, leaf in named_leaves(end).items()}
    starts, ends, others = map(_wide_leaves, (start, end, other))
    with np.errstate(invalid="ignore"):
        updates = {path: _largest(leaf - starts[path]) for path, leaf in ends.items()}
        # A slope that cancels to nothing is all rounding: that of the terms it is made of, which other leaves show.
        most = max(updates.values(), default=0.0)
        for path, got in others.items():
            want = ends[path]
            same = (got == want) | (np.isnan(got) & np.isnan(want))
            difference = np.max(np.where(same, 0, np.abs(got - want)), initial=0)
            tolerance = eps[path] ** 0.5 * updates[path] + eps[path] * (4 * _largest(starts[path]) + most)
            if not difference <= tolerance:
                return path, float(difference), tolerance
    return None


def _wide_leaves(tree: Any) -> dict[str, np.ndarray]:
    """The leaves in a dtype that holds every other, complex ones too."""
    return {path: np.asarray(leaf, np.complex128) for path, leaf in named_leaves(tree).items()}


def _largest(leaf: np.ndarray) -> float:
    """The largest absolute value, of those that are finite."""
    return float(np.max(np.abs(leaf), initial=0, where=np.isfinite(leaf)))
