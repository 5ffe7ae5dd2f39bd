"""What does a step cost? Tracing, lowering, compiling, the first call and the steady step, each by itself."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from minijaxnet._loops import block_on
from minijaxnet._tables import html_result, significant, text_table
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
from minijaxnet.bench.cost import folded_loop
from minijaxnet.bench.device import Kernel, kernel_table, kernels_of
from minijaxnet.bench.intervals import Interval, median_interval
from minijaxnet.bench.rounds import WARM_CALLS
from minijaxnet.data import numbers
from minijaxnet.descent import Descent, check_descent
from minijaxnet.losses import check_labels

_BLOCK_S = 0.004  # of the shorter of two blocks; the longer one has three times the steps
_LONGER = 3
_MOST_ROUNDS = 1000


@dataclass(frozen=True)
class StepTiming:
    """What ``time_step`` found; print it.

    Attributes:
        trace_s: seconds to trace the step to a jaxpr.
        lower_s: to lower it to StableHLO.
        compile_s: for XLA to compile that.
        first_call_s: of the compiled step's first call.
        fused_compile_s: to trace, lower and compile a loop of steps.
        latency_s: seconds a step when each is waited for.
        pipelined_s: when many are called, and the last is waited for.
        fused_s: inside a compiled loop.
        rounds: how often each was measured.
        compilations: how often JAX compiled while the steady step was timed; 0 if all is well.
        folded: whether XLA made the compiled loop one native function, as it does on the CPU for the smallest steps;
            else each operation is a call of its own. None on other devices.
        weak: the leaves of the first state that are weakly typed, and make a jitted step compile twice.
        samples_s: ``{"latency", "pipelined", "fused": seconds a step, for each round}``.
        kernels: what a step has a GPU do, and how long that takes there; none where the device does not tell.
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

    def to_dict(self) -> dict[str, Any]:
        """The figures in JSON's own kinds, samples included."""
        once = ("trace_s", "lower_s", "compile_s", "first_call_s", "fused_compile_s")
        steady = {name: getattr(self, name)._asdict() for name in ("latency_s", "pipelined_s", "fused_s")}
        samples = {name: values.tolist() for name, values in self.samples_s.items()}
        plain = {name: getattr(self, name) for name in (*once, "rounds", "compilations", "folded")}
        kernels = [kernel._asdict() for kernel in self.kernels]
        return plain | steady | {"weak": [*self.weak], "sound": self.sound, "samples_s": samples, "kernels": kernels}

    def _repr_html_(self) -> str:
        verdict = f"A step takes {significant(1e6 * self.fused_s.median)} us inside a compiled loop"
        return html_result(verdict, (("once", "ms"), self.once()), self.cells(), remarks=self.conclusions())

    def once(self) -> list[tuple[str, str]]:
        """What is paid once, in milliseconds, a row each."""
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
        return ("each step", "us", "95 % interval"), [(name, *_cells(found)) for name, found in each]

    def __str__(self) -> str:
        """Two tables: what is paid once, and what each step costs."""
        tables = [text_table(("once", "ms"), self.once()), "", text_table(*self.cells())]
        kernels = kernel_table(self.kernels, self.fused_s.median)
        return "\n".join([*tables, *self.conclusions(), *(["", kernels] if kernels else [])])

    def conclusions(self) -> list[str]:
        """What to know of the tables, in sentences."""
        lines = [f"{self.rounds} round{'s' if self.rounds != 1 else ''}"]
        if self.folded is not None:
            lines.append(
                f"the compiled loop is {'one native function' if self.folded else 'a call for each operation'}"
            )
        if self.weak:
            lines.append(f"weakly typed at the start, so that a jitted step compiles twice: {', '.join(self.weak)}")
        if not self.sound:
            lines.append(f"UNSOUND: JAX compiled {self.compilations} times while the step was timed")
        return lines


def time_step(
    descent: Descent, params: Any, batch: Any, *, seconds: float = 3.0, key: jax.Array | None = None
) -> StepTiming:
    """Time a step of a descent: what is paid once, and what each step costs in three ways of running it.

    The state goes from step to step and is donated, everything is on the device before the clock starts and waited for
    before it stops, and what a step reports is kept. Pipelined and fused are slopes: of two blocks of n and of m steps,
    ``(time(m) - time(n)) / (m - n)``, so that what a block costs once drops out. Blocks come in a new order each round.

    Args:
        descent: ``(init, step)``.
        params: where it starts; stays as it is.
        batch: what each step looks at. Where it or the params are placed on several devices, so is the step.
        seconds: how long to time the steady step, compilation not counted.
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

    jitted = jax.jit(lambda state, batch: descent.step(state, batch), donate_argnums=0)
    clock = time.perf_counter
    stages = [clock()]
    traced = checked(jitted.trace(start, batch), start, "descent")
    stages.append(clock())
    lowered = traced.lower()
    stages.append(clock())
    compiled = lowered.compile()
    stages.append(clock())
    start, batch = placed(compiled, start, batch)
    first = _copy(start)
    first_call_s = seconds_of(lambda: compiled(first, batch))
    before_fused = clock()
    loop = jax.jit(fused(traced, block_on(start))).lower(start, batch, 1).compile()
    fused_compile_s = clock() - before_fused

    def called(steps: int) -> float:
        state, report = _copy(start), None
        began = clock()
        for _ in range(steps):
            state, report = jitted(state, batch)
        jax.block_until_ready((state, report))
        return clock() - began

    def waited_for(steps: int) -> float:
        state, took = _copy(start), []
        for _ in range(steps):
            began = clock()
            state, _report = jax.block_until_ready(jitted(state, batch))
            took.append(clock() - began)
        return float(np.median(took))

    def in_loop(steps: int) -> float:
        return seconds_of(lambda: loop(start, batch, steps))

    called(WARM_CALLS)
    n_called, n_fused = (steps_for(_BLOCK_S, block, "descent") for block in (called, in_loop))
    plan: dict[str, Callable[[], float]] = {
        "latency": lambda: waited_for(n_called),
        "pipelined": lambda: called(n_called),
        "pipelined, long": lambda: called(_LONGER * n_called),
        "fused": lambda: in_loop(n_fused),
        "fused, long": lambda: in_loop(_LONGER * n_fused),
    }
    found: dict[str, list[float]] = {name: [] for name in plan}
    draw, began, rounds = np.random.default_rng(0), clock(), 0
    with compilations() as compiled_meanwhile:
        while not rounds or ((clock() - began) * (1 + 1 / rounds) < seconds and rounds < _MOST_ROUNDS):
            for name in draw.permutation(list(plan)):
                found[name].append(plan[name]())
            rounds += 1
    samples = {
        "latency": found["latency"],
        "pipelined": slope(found["pipelined"], found["pipelined, long"], n_called, _LONGER * n_called),
        "fused": slope(found["fused"], found["fused, long"], n_fused, _LONGER * n_fused),
    }
    arrays = {name: np.array(values) for name, values in samples.items()}
    trace_s, lower_s, compile_s = np.diff(stages).tolist()
    return StepTiming(
        trace_s=trace_s,
        lower_s=lower_s,
        compile_s=compile_s,
        first_call_s=first_call_s,
        fused_compile_s=fused_compile_s,
        latency_s=median_interval(arrays["latency"]),
        pipelined_s=median_interval(arrays["pipelined"]),
        fused_s=median_interval(arrays["fused"]),
        rounds=rounds,
        compilations=len(compiled_meanwhile),
        folded=folded_loop(loop),
        weak=weak,
        samples_s=arrays,
        kernels=kernels_of(lambda state, batch: descent.step(state, batch), start, batch),
    )


def _copy(state: Any) -> Any:
    """A state whose buffers may be donated."""
    return jax.block_until_ready(jax.tree.map(lambda leaf: leaf.copy(), state))


def _cells(found: Interval) -> tuple[str, str]:
    interval = (
        "too few rounds"
        if np.isnan(found.low)
        else f"{significant(1e6 * found.low)} to {significant(1e6 * found.high)}"
    )
    return significant(1e6 * found.median), interval
