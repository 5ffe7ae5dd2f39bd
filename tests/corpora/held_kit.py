"""What a held-out slip is: a rule wrong in a way that people have gone wrong, and what a hint may say of it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np


class HeldOut(NamedTuple):
    """A wrong rule; ``hand`` is None where ``fun`` has it as a custom rule.

    ``words``: a pattern that a hint must match; "" where there is nothing to say. ``never``: one that none may match.
    """

    name: str
    fun: Callable[..., Any]
    hand: Callable[..., Any] | None
    args: tuple[Any, ...]
    words: str = ""
    never: str = ""
    argnums: Any = 0
    reference: Callable[..., Any] | None = None


def array(seed: int, *shape: int, low: float | None = None, dtype: Any = jnp.float32) -> Any:
    """Normal numbers, or uniform ones from ``low`` to ``low + 1``."""
    draw = np.random.default_rng(seed)
    return jnp.asarray(draw.normal(size=shape) if low is None else draw.uniform(low, low + 1, shape), dtype)
