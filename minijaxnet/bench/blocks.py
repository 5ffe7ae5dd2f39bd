"""A step prepared for timing: checked, in a loop where no work is skipped, with its arrays on the device."""

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.stages import Compiled, Traced

from minijaxnet._checks import is_number
from minijaxnet._loops import repeated
from minijaxnet._trees import named_leaves, side_effects, structure_difference
from minijaxnet.descent import Descent

_MOST_STEPS = 2**26  # of a block; if that is still too short, a step takes less than a processor's cycle


def check_seconds(seconds: Any) -> None:
    """Check the time to measure for, and that JAX compiles."""
    if not is_number(seconds):
        raise TypeError(f"seconds: got {seconds!r}; expected a positive number")
    if not 0 < float(seconds) < math.inf:
        raise ValueError(f"seconds: got {seconds}; expected a positive number")
    if jax.config.jax_disable_jit:  # pyright: ignore[reportAttributeAccessIssue] - not in the stubs
        raise ValueError("JAX_DISABLE_JIT: got true; expected false, since compiled steps are timed")


def start_state(descent: Descent, params: Any, key: Any) -> Any:
    """A new state on the device, as the step itself will return it: not weakly typed, no NumPy arrays."""
    state = jax.device_put(descent.init(params, key))
    return jax.tree.map(lambda leaf: lax.convert_element_type(leaf, leaf.dtype) if _is_weak(leaf) else leaf, state)


def placed(program: Compiled, state: Any, batch: Any) -> tuple[Any, Any]:
    """State and batch placed as a compiled step or loop of several devices takes them; unchanged for one device.

    Otherwise each call would move them, and its time would include that: where a step divides its batch itself, or
    only the params of a state have been placed.
    """
    shardings = program.input_shardings[0][:2]
    if all(len(sharding.device_set) == 1 for sharding in jax.tree.leaves(shardings)):
        return state, batch
    return jax.device_put((state, batch), shardings)


def weak_leaves(state: Any) -> list[str]:
    """The leaves for which a jitted step compiles twice: for the first state, and for those that it returns."""
    return [
        name for name, leaf in named_leaves(state).items() if _is_weak(leaf) or isinstance(leaf, bool | int | float)
    ]


def _is_weak(leaf: Any) -> bool:
    return bool(getattr(getattr(leaf, "aval", None), "weak_type", False))


def checked(traced: Traced, state: Any, where: str) -> Traced:
    """A traced step, ``jax.jit(step).trace(state, batch)``, if it can be timed.

    Raises:
        TypeError: it does not return a pair.
        ValueError: the next state has another structure, shape or dtype than the one it took, or the step has side
            effects, such as printing, which would be in its time.
    """
    results = traced.out_info
    if not isinstance(results, tuple) or len(results) != 2:
        raise TypeError(f"{where}: its step returns {type(results).__name__}; expected a pair (state, info)")
    if difference := structure_difference(results[0], state):
        raise ValueError(f"{where}: its step returns a state of another kind than it took: {difference}")
    if effects := side_effects(traced):
        raise ValueError(f"{where}: its step has side effects ({effects}); expected none, they would be in its time")
    return traced


def fused(traced: Traced, block: int = 1) -> Callable[..., Any]:
    """A function ``repeat(state, batch, steps) -> (state, info)`` of a traced step: so many steps in one program.

    XLA must not skip work. What a step reports is carried from step to step, otherwise XLA would not compute it. And
    XLA cannot see that the batch, or a weight that stays, is the same in each step; otherwise it would do the work on
    these alone only once, before the loop. Each call makes a new function: JAX would find the program of an equal step
    again, and compiling would seem to take no time.

    Args:
        traced: from ``checked``.
        block: steps in a block, as ``block_on`` says.
    """
    from jax.extend.core import jaxpr_as_fun  # 17 ms: imported where used

    step, tree = jaxpr_as_fun(traced.jaxpr), jax.tree.structure(traced.out_info)
    count, jaxpr = len(jax.tree.leaves(traced.out_info[0])), traced.jaxpr.jaxpr
    is_idle = jaxpr.outvars[:count] == jaxpr.invars[:count]  # XLA may remove a loop that does nothing

    def repeat(state: Any, batch: Any, steps: Any) -> Any:
        info = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), traced.out_info[1])

        def body(k: Any, carry: Any) -> Any:
            _, *arguments = (k, carry[0], batch) if is_idle else lax.optimization_barrier((k, carry[0], batch))
            return jax.tree.unflatten(tree, step(*jax.tree.leaves(arguments)))

        return repeated(steps, body, (state, info), block)

    return repeat


@contextlib.contextmanager
def compilations() -> Iterator[list[str]]:
    """A list to which the name of each program is added that JAX compiles inside the ``with``."""
    names: list[str] = []

    def listen(event: str, duration_secs: float, **kwargs: str | int) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            names.append(str(kwargs.get("fun_name", "")))

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield names
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def seconds_of(call: Callable[[], Any]) -> float:
    """How long a call takes, until its results are computed."""
    start = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - start


def steps_for(block_s: float, seconds: Callable[[int], float], where: str) -> tuple[int, float]:
    """How many steps take about as long as a block should, at least half of it; and their seconds.

    Raises:
        ValueError: no number of steps takes any time.
    """
    steps, took = 1, 0.0
    # Long enough three times in a row: a single time may be a delay of the machine, and a block must not be too short.
    while any((took := seconds(steps)) < block_s / 2 for _ in range(3)):
        if steps == _MOST_STEPS:
            raise ValueError(
                f"{where}: got a step that does nothing, {steps:,} of them took {took:.1g} s "
                "(XLA removed the loop); expected one with work to do"
            )
        steps = min(_MOST_STEPS, steps * max(2, min(1000, int(block_s / max(took, 1e-6)) // 2)))
    return steps, took


def slope(short: np.ndarray, long: np.ndarray, steps: int, more: int) -> np.ndarray:
    """Seconds a step in each round, from the difference of two blocks, so that a block's constant cost cancels.

    >>> slope(np.array([1.5]), np.array([3.5]), 1, 3)
    array([1.])
    """
    return (long - short) / (more - steps)
