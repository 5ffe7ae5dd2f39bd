"""What many networks say together."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from minijaxnet.pytrees import named_leaves


class Ensemble(NamedTuple):
    """The predictions of several members at the same points.

    Attributes:
        mean: ``1/n sum_m y_m``, of the shape of one member's predictions.
        spread: the standard deviation between members, ``sqrt(sum_m (y_m - mean)^2 / (n - 1))``, of that shape.
    """

    mean: jax.Array
    spread: jax.Array


def ensemble(predict: Callable[[Any, Any], jax.Array], params: Any, x: Any) -> Ensemble:
    """The mean of what several members predict, and how far they differ.

    Args:
        predict: ``predict(params, x)`` of one member, such as ``network.apply``; for probabilities, their softmax.
        params: those of all members, each leaf with the axis of members in front, as a sweep over seeds returns them.
        x: what each member looks at.

    Returns:
        Mean and spread, of the shape and dtype of one member's predictions.

    Raises:
        ValueError: leaves without an axis of members, or with axes of unequal length; fewer than two members.

    Example:
        >>> slopes = jnp.array([1.0, 2.0, 3.0])
        >>> ensemble(lambda slope, x: slope * x, slopes, jnp.array([1.0, 10.0]))
        Ensemble(mean=Array([ 2., 20.], dtype=float32), spread=Array([ 1., 10.], dtype=float32))

    Source: Lakshminarayanan et al., "Simple and scalable predictive uncertainty estimation using deep ensembles", 2017.
    """
    members = {name: jnp.shape(leaf)[:1] for name, leaf in named_leaves(params).items()}
    if len(set(members.values())) != 1 or min(members.values(), default=()) < (2,):
        raise ValueError(f"params: got leading axes {members}; expected the same for all leaves, of at least 2 members")
    predictions = jax.vmap(predict, in_axes=(0, None))(params, x)
    return Ensemble(jnp.mean(predictions, axis=0), jnp.std(predictions, axis=0, ddof=1))
