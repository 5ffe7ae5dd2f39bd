"""A step made ready for the clock: checked, chained, with nothing dead in it and nothing left to move or to convert."""

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from minijaxnet._loops import repeated
from minijaxnet._trees import is_number, named_leaves, side_effects, structure_difference
from minijaxnet.descent import Descent

_MOST_STEPS = 2**26  # of a block: were it still too short, a step would take less than a processor's cycle


def check_seconds(seconds: Any) -> None:
    """Refuse what is no time to measure for, and a JAX that does not compile."""
    if not is_number(seconds):
        raise TypeError(f"seconds: got {seconds!r}; expected a positive number")
    if not 0 < float(seconds) < math.inf:
        raise ValueError(f"seconds: got {seconds}; expected a positive number")
    if jax.config.jax_disable_jit:  # pyright: ignore[reportAttributeAccessIssue] - not in the stubs
        raise ValueError("JAX_DISABLE_JIT: got true; expected false, since compiled steps are timed")


def start_state(descent: Descent, params: Any, key: Any) -> Any:
    """A state of its own on the device, as the step itself will return it: not weakly typed, no NumPy arrays."""
    state = jax.device_put(descent.init(params, key))
    return jax.tree.map(lambda leaf: lax.convert_element_type(leaf, leaf.dtype) if _is_weak(leaf) else leaf, state)


def placed(program: Any, state: Any, batch: Any) -> tuple[Any, Any]:
    """State and batch where a compiled step or loop of several devices wants them; as they are for one device.

    A step that divides its batch by itself, or a state of which only the params have been placed, would else have them
    moved at each call, which the clock would see.
    """
    wanted = program.input_shardings[0][:2]
    if all(len(sharding.device_set) == 1 for sharding in jax.tree.leaves(wanted)):
        return state, batch
    return jax.device_put((state, batch), wanted)


def weak_leaves(state: Any) -> list[str]:
    """The leaves that would make a jitted step compile twice: for the first state, and for those it returns."""
    return [
        name for name, leaf in named_leaves(state).items() if _is_weak(leaf) or isinstance(leaf, bool | int | float)
    ]


def _is_weak(leaf: Any) -> bool:
    return bool(getattr(getattr(leaf, "aval", None), "weak_type", False))


def checked(traced: Any, state: Any, where: str) -> Any:
    """A traced step, ``jax.jit(step).trace(state, batch)``, if it can be timed.

    Raises:
        TypeError: it does not return a pair.
        ValueError: the next state has another structure, shape or dtype than the one it took, or the step has side
            effects, such as printing: the clock would see these.
    """
    results = traced.out_info
    if not isinstance(results, tuple) or len(results) != 2:
        raise TypeError(f"{where}: its step returns {type(results).__name__}; expected a pair (state, info)")
    if difference := structure_difference(results[0], state):
        raise ValueError(f"{where}: its step returns another state than it took: {difference}")
    if effects := side_effects(traced):
        raise ValueError(f"{where}: its step has side effects ({effects}), which the clock would see; expected none")
    return traced


def fused(traced: Any, block: int = 1) -> Callable[..., Any]:
    """Of a traced step, ``repeat(state, batch, steps) -> (state, info)``: so many of them in one program, by blocks.

    What a step reports goes from step to step, too: were it dropped, XLA would not compute it. And state and
    batch, as far as XLA can see, are others in each step: work on the batch alone would else be done once, before the
    loop, and so would work on weights that stay. A function of
    its own for each call: JAX would find an equal step's program again, and compiling would seem to take no time.
    """
    from jax.extend.core import jaxpr_as_fun  # 17 ms: imported where used

    step, tree = jaxpr_as_fun(traced.jaxpr), jax.tree.structure(traced.out_info)
    count, jaxpr = len(jax.tree.leaves(traced.out_info[0])), traced.jaxpr.jaxpr
    idle = jaxpr.outvars[:count] == jaxpr.invars[:count]  # a loop of nothing may go

    def repeat(state: Any, batch: Any, steps: Any) -> Any:
        nothing = jax.tree.map(lambda info: jnp.zeros(info.shape, info.dtype), traced.out_info[1])

        def body(k: Any, carry: Any) -> Any:
            _, *given = (k, carry[0], batch) if idle else lax.optimization_barrier((k, carry[0], batch))
            return jax.tree.unflatten(tree, step(*jax.tree.leaves(given)))

        return repeated(steps, body, (state, nothing), block)

    return repeat


@contextlib.contextmanager
def compilations() -> Iterator[list[str]]:
    """The names of what JAX compiles meanwhile, as it goes on."""
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
    """How long a call takes until all that it returns is there."""
    start = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - start


def steps_for(block_s: float, seconds: Callable[[int], float], where: str) -> int:
    """How many steps take about as long as a block should, at least half of it.

    Raises:
        ValueError: no number of steps takes any time.
    """
    steps, took = 1, 0.0
    # Long three times running: once may be a hiccup of the machine, and a block that is short times but the call.
    while any((took := seconds(steps)) < block_s / 2 for _ in range(3)):
        if steps == _MOST_STEPS:
            raise ValueError(
                f"{where}: got a step that does nothing, {steps:,} of them took {took:.1g} s "
                "(XLA removed the loop); expected one with work to do"
            )
        steps = min(_MOST_STEPS, steps * max(2, min(1000, int(block_s / max(took, 1e-6)) // 2)))
    return steps


def slope(short: Sequence[float], long: Sequence[float], steps: int, more: int) -> list[float]:
    """Seconds a step, round by round, by the difference of two blocks: what a block costs once drops out.

    >>> slope([1.5], [3.5], 1, 3)
    [1.0]
    """
    return [(b - a) / (more - steps) for a, b in zip(short, long, strict=True)]
