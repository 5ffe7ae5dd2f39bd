"""The numbers of a logged row, and a warning on weights that did not change."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from minijaxnet._types import Params
from minijaxnet.descent import StepInfo
from minijaxnet.parallel.processes import to_host


def row_of(info: StepInfo, measured: dict[str, float]) -> dict[str, float]:
    """A row from the first of some steps and the measured numbers."""
    return {"loss": float(info.loss[0]), "gradient_norm": float(info.gradient_norm[0])} | measured


def measured_by(measure: Callable[[Any], dict[str, Any]] | None, params: Params) -> dict[str, float]:
    """Call ``measure`` and convert its numbers to floats.

    Raises:
        TypeError: it does not return a dictionary of numbers.
        ValueError: it returns a name that ``fit`` itself logs.
    """
    returned = {} if measure is None else measure(params)
    if not isinstance(returned, Mapping) or not all(isinstance(name, str) for name in returned):
        got = f"the names {[*returned]}" if isinstance(returned, Mapping) else type(returned).__name__
        raise TypeError(f"measure: got {got}; expected a dictionary of numbers by their names, such as {{'norm': 1.0}}")
    measured = {name: _number(f"measure: {name}", value) for name, value in returned.items()}
    if taken := {"step", "loss", "gradient_norm"} & set(measured):
        raise ValueError(f"measure: got the name {taken.pop()!r}; expected another name, as fit logs this one")
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
    """A note if at most 1 % of the weights of 16 bits or fewer have changed. Weights of 0 are not counted.

    A small update is lost in rounding, but never when it is added to 0.
    """
    pairs = zip(jax.tree.leaves(to_host(before)), jax.tree.leaves(to_host(after)), strict=True)
    pairs = [(np.asarray(a), np.asarray(b)) for a, b in pairs if jnp.finfo(a.dtype).bits < 32]
    count = sum(int(np.sum(a != 0)) for a, _ in pairs)
    changed = sum(int(np.sum((a != 0) & (a != b))) for a, b in pairs)
    if steps < 2 or not count or changed > count / 100:
        return []
    dtypes = ", ".join(sorted({str(a.dtype) for a, _ in pairs}))
    return [
        f"{changed:,} of {count:,} weights have changed: unless the others are meant to stay, the learning rate times "
        f"the gradient is below half a unit in their last place ({dtypes}); use float32 weights, a larger rate, or "
        "stochastic rounding"
    ]
