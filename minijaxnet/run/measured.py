"""The numbers of a logged row: what a step saw, and what was measured beside it."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from minijaxnet._types import Params
from minijaxnet.parallel.processes import to_host


def row_of(seen: Any, measured: dict[str, float]) -> dict[str, float]:
    """What the first of some steps saw."""
    return {"loss": float(seen.loss[0]), "gradient_norm": float(seen.gradient_norm[0])} | measured


def measured_by(measure: Callable[[Any], dict[str, Any]] | None, params: Params) -> dict[str, float]:
    """What a ``measure`` returns of some params, as numbers of Python.

    Raises:
        TypeError: it returns no dictionary of numbers.
        ValueError: a name that ``fit`` itself logs.
    """
    returned = {} if measure is None else measure(params)
    if not isinstance(returned, Mapping) or not all(isinstance(name, str) for name in returned):
        got = f"the names {[*returned]}" if isinstance(returned, Mapping) else type(returned).__name__
        raise TypeError(f"measure: got {got}; expected a dictionary of numbers by their names, such as {{'norm': 1.0}}")
    measured = {name: _number(f"measure: {name}", value) for name, value in returned.items()}
    if taken := {"step", "loss", "gradient_norm"} & set(measured):
        raise ValueError(f"measure: got the name {taken.pop()!r}; expected another, fit itself logs that one")
    return measured


def _number(name: str, value: Any) -> float:
    try:
        if not isinstance(value, str | bytes) and np.ndim(value) == 0 and not np.iscomplexobj(value):
            return float(value)
    except (TypeError, ValueError, OverflowError):
        pass
    dtype = getattr(value, "dtype", None)
    got = type(value).__name__ if dtype is None else f"{dtype}[{','.join(map(str, np.shape(value)))}]"
    raise TypeError(f"{name}: got {got}; expected a number")


def lost_updates(before: Any, after: Any, steps: int) -> list[str]:
    """A note where of the weights of few digits hardly one has moved; one that is 0 always does, however little."""
    pairs = zip(jax.tree.leaves(to_host(before)), jax.tree.leaves(to_host(after)), strict=True)
    pairs = [(np.asarray(a), np.asarray(b)) for a, b in pairs if jnp.finfo(a.dtype).bits < 32]
    count = sum(int(np.sum(a != 0)) for a, _ in pairs)
    moved = sum(int(np.sum((a != 0) & (a != b))) for a, b in pairs)
    if steps < 2 or not count or moved > count / 100:
        return []
    dtypes = ", ".join(sorted({str(a.dtype) for a, _ in pairs}))
    return [
        f"{moved:,} of {count:,} weights have moved: if the others are not meant to stay, the learning rate times the "
        f"gradient is below half a unit in their last place ({dtypes}); take float32 weights, a larger rate, or "
        "stochastic rounding"
    ]
