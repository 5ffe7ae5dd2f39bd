"""How long does a step take? Tracing, lowering, compiling, the first call and the steady step, each separately."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import jax
import numpy as np
from jax.stages import Compiled, Wrapped

from minijaxnet._loops import block_on
from minijaxnet._tables import html_of, significant, text_table
from minijaxnet.bench.blocks import (
    check_seconds,
    checked,
    compilations,
    fused,
    placed,
    seconds_of,
    slope,
    start_state,
    steps_for,
    weak_leaves,
)
from minijaxnet.bench.device import Kernel, kernel_table, kernels_of
from minijaxnet.bench.hlo import folded_loop
from minijaxnet.bench.intervals import Interval, median_interval
from minijaxnet.bench.rounds import WARM_CALLS, in_turns
from minijaxnet.data import numbers
from minijaxnet.descent import Descent, check_descent
from minijaxnet.losses import check_labels

_BLOCK_S = 0.004  # of the shorter of two blocks; the longer one has three times the steps
_LONGER = 3
_MOST_ROUNDS = 1000
Result = TypeVar("Result")


@dataclass(frozen=True)
class StepTiming:
    """The result of ``time_step``; print it.

    Attributes:
        trace_s: seconds to trace the step to a jaxpr.
        lower_s: to lower it to StableHLO.
        compile_s: for XLA to compile that.
        first_call_s: of the compiled step's first call.
        fused_compile_s: to trace, lower and compile a loop of steps.
        latency_s: seconds a step where each is waited for.
        pipelined_s: where many are called, and the last is waited for.
        fused_s: inside a compiled loop.
        rounds: how often each was measured.
        compilations: how often JAX compiled while the steady step was timed; 0 in a sound measurement.
        folded: whether XLA made the compiled loop one native function, as it does on the CPU for the smallest steps;
            otherwise each operation is a call of its own. None on other devices.
        weak: the leaves of the first state that are weakly typed, for which a jitted step compiles twice.
        samples_s: ``{"latency", "pipelined", "fused": seconds a step, for each round}``.
        kernels: the kernels that a step launches on a GPU, and their times; empty where they cannot be measured.
    """

    trace_s: float
    lower_s: float
    compile_s: float
    first_call_s: float
    fused_compile_s: float
    latency_s: Interval
    pipelined_s: Interval
    fused_s: Interval
    rounds: int
    compilations: int
    folded: bool | None
    weak: tuple[str, ...]
    samples_s: dict[str, np.ndarray]
    kernels: tuple[Kernel, ...] = ()

    @property
    def sound(self) -> bool:
        """Whether nothing was compiled while the steady step was timed."""
        return self.compilations == 0

    def _repr_html_(self) -> str:
        return html_of(self)

    def once(self) -> list[tuple[str, str]]:
        """What is paid once, in milliseconds: a row for each."""
        once = [("trace", self.trace_s), ("lower", self.lower_s), ("compile", self.compile_s)]
        once += [("first call", self.first_call_s), ("compile a loop of steps", self.fused_compile_s)]
        return [(name, significant(1e3 * seconds)) for name, seconds in once]

    def cells(self) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
        """The table of what each step costs: its columns, and a row for each way of running it."""
        each = [
            ("each waited for (latency)", self.latency_s),
            ("many called, one wait (pipelined)", self.pipelined_s),
            ("inside a compiled loop (fused)", self.fused_s),
        ]
        return ("each step", "us", "95 % interval"), [(name, *time.cells(significant, 1e6)) for name, time in each]

    def __str__(self) -> str:
        """Two tables: what is paid once, and what each step costs."""
        tables = [text_table(("once", "ms"), self.once()), "", text_table(*self.cells())]
        kernels = kernel_table(self.kernels, self.fused_s.median)
        return "\n".join([*tables, *self.conclusions(), *(["", kernels] if kernels else [])])

    def conclusions(self) -> list[str]:
        """What to know about the tables, in sentences."""
        lines = [f"{self.rounds} round{'s' if self.rounds != 1 else ''}"]
        if self.folded is not None:
            made = "one native function" if self.folded else "a call for each operation"
            lines.append(f"the compiled loop is {made}")
        if self.weak:
            lines.append(f"weakly typed at the start, so that a jitted step compiles twice: {', '.join(self.weak)}")
        if not self.sound:
            lines.append(f"UNSOUND: JAX compiled {self.compilations} times while the step was timed")
        return lines


def time_step(
    descent: Descent, params: Any, batch: Any, *, seconds: float = 3.0, key: jax.Array | None = None
) -> StepTiming:
    """Time a step of a descent: what is paid once, and what each step costs in three ways of running it.

    The state goes from step to step and is donated. Everything is on the device before the clock starts, is computed
    before it stops, and what a step reports is kept. The pipelined and the fused time are slopes: of a block of n and
    one of m steps, ``(time(m) - time(n)) / (m - n)``, so that a block's constant cost cancels. Blocks come in a new
    order each round.

    Args:
        descent: ``(init, step)``.
        params: where it starts; they are not changed.
        batch: what each step uses. Where it or the params are placed on several devices, so is the step.
        seconds: how long to time the steady step, without compilation.
        key: for a descent whose objective takes one.

    Returns:
        Seconds, with 95 % intervals for the steady step.

    Raises:
        TypeError: ``seconds`` is not a number; a step that does not return a pair.
        ValueError: ``seconds`` is not positive; a step that returns another structure, shape or dtype than it took, has
            side effects, or does nothing.

    Example:
        >>> import jax.numpy as jnp
        >>> from minijaxnet.descent import gradient_descent
        >>> descent = gradient_descent(lambda weights, batch: jnp.sum((weights - batch) ** 2), 0.1)
        >>> timing = time_step(descent, jnp.zeros(9), 1.0, seconds=0.2)
        >>> timing.sound, timing.samples_s["fused"].shape == (timing.rounds,)
        (True, True)
    """
    check_seconds(seconds)
    check_descent(descent)
    batch = jax.device_put(numbers(batch, "batch"))
    check_labels(descent.step, params, batch)
    weak = tuple(weak_leaves(descent.init(params, key)))
    start = start_state(descent, params, key)

    def step(state: Any, batch: Any) -> Any:  # a new function, which JAX has not compiled before
        return descent.step(state, batch)

    jitted = jax.jit(step, donate_argnums=0)
    traced, trace_s = _timed(lambda: checked(jitted.trace(start, batch), start, "descent"))
    lowered, lower_s = _timed(traced.lower)
    compiled, compile_s = _timed(lowered.compile)
    start, batch = placed(compiled, start, batch)
    first = _copy(start)
    first_call_s = seconds_of(lambda: compiled(first, batch))
    make_loop = jax.jit(fused(traced, block_on(start)))
    loop, fused_compile_s = _timed(lambda: make_loop.lower(start, batch, 1).compile())
    samples_s, compilations = _steady(jitted, loop, start, batch, seconds)
    return StepTiming(
        trace_s=trace_s,
        lower_s=lower_s,
        compile_s=compile_s,
        first_call_s=first_call_s,
        fused_compile_s=fused_compile_s,
        latency_s=median_interval(samples_s["latency"]),
        pipelined_s=median_interval(samples_s["pipelined"]),
        fused_s=median_interval(samples_s["fused"]),
        rounds=len(samples_s["fused"]),
        compilations=compilations,
        folded=folded_loop(loop),
        weak=weak,
        samples_s=samples_s,
        kernels=kernels_of(step, start, batch),
    )


def _timed(call: Callable[[], Result]) -> tuple[Result, float]:
    began = time.perf_counter()
    return call(), time.perf_counter() - began


def _copy(state: Any) -> Any:
    """A state whose buffers may be donated."""
    return jax.block_until_ready(jax.tree.map(lambda leaf: leaf.copy(), state))


def _steady(
    jitted: Wrapped, loop: Compiled, start: Any, batch: Any, seconds: float
) -> tuple[dict[str, np.ndarray], int]:
    """Seconds a step in each round, for each way of running it; and how often JAX compiled meanwhile."""

    def waited_for(steps: int) -> float:
        state, took = _copy(start), []
        for _ in range(steps):
            began = time.perf_counter()
            state, _report = jax.block_until_ready(jitted(state, batch))
            took.append(time.perf_counter() - began)
        return float(np.median(took))

    def called(steps: int) -> float:
        state, report = _copy(start), None
        began = time.perf_counter()
        for _ in range(steps):
            state, report = jitted(state, batch)
        jax.block_until_ready((state, report))
        return time.perf_counter() - began

    def in_loop(steps: int) -> float:
        return seconds_of(lambda: loop(start, batch, steps))

    called(WARM_CALLS)
    (n_called, _), (n_fused, _) = (steps_for(_BLOCK_S, block, "descent") for block in (called, in_loop))
    blocks: dict[str, Callable[[], float]] = {
        "latency": lambda: waited_for(n_called),
        "pipelined": lambda: called(n_called),
        "pipelined, long": lambda: called(_LONGER * n_called),
        "fused": lambda: in_loop(n_fused),
        "fused, long": lambda: in_loop(_LONGER * n_fused),
    }
    turns, rounds = in_turns([*blocks.values()]), []
    began, elapsed = time.perf_counter(), 0.0
    with compilations() as names:
        while not rounds or (elapsed * (1 + 1 / len(rounds)) < seconds and len(rounds) < _MOST_ROUNDS):
            rounds.append(next(turns))
            elapsed = time.perf_counter() - began
    took = dict(zip(blocks, np.transpose(rounds), strict=True))
    samples_s = {
        "latency": took["latency"],
        "pipelined": slope(took["pipelined"], took["pipelined, long"], n_called, _LONGER * n_called),
        "fused": slope(took["fused"], took["fused, long"], n_fused, _LONGER * n_fused),
    }
    return samples_s, len(names)
