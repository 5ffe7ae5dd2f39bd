"""Type aliases. A tree is a JAX pytree: nested containers of arrays."""

from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import numpy as np
from jax.typing import DTypeLike as DTypeLike

Array: TypeAlias = jax.Array | np.ndarray
# A tree of arrays.
PyTree: TypeAlias = Any
# A tree of floating arrays, which a descent changes.
Params: TypeAlias = Any
# f(params, batch), or f(params, batch, key): the loss, a scalar, or (loss, aux).
Objective: TypeAlias = Callable[..., Any]
# f(params, batch), or f(params, batch, key): (loss, gradient), as from ``jax.value_and_grad`` of an objective.
ValueAndGradient: TypeAlias = Callable[..., tuple[Any, Any]]
