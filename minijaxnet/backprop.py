"""Backpropagation by hand: every derivative of a multilayer perceptron beside its equation.

Notation: a dense layer computes ``z = h @ W + b`` and ``h' = f(z)`` for a whole batch, one point a row. ``delta`` is
the derivative of the loss with respect to z, of z's shape. The backward pass carries delta from the loss to the input
and reads off each layer's gradient on the way (Rumelhart, Hinton and
Williams, 1986; Goodfellow et al., 2016, section 6.5).
"""

import functools
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from minijaxnet.losses import Loss, binary_cross_entropy, mean_squared_error, softmax_cross_entropy
from minijaxnet.network import Activation, check_sizes
from minijaxnet.pytrees import pair, structure_difference

ValueAndGradient = Callable[[Any, Any], tuple[jax.Array, Any]]


# --- Activations: f'(z), from z and h = f(z) -----------------------------------------------------------------------


def relu_slope(z: jax.Array, h: jax.Array) -> jax.Array:
    """``f(z) = max(z, 0)``, so ``f'(z) = 1 where z > 0, else 0``; at the kink 0, as ``jax.nn.relu`` has it."""
    return (z > 0).astype(z.dtype)


def tanh_slope(z: jax.Array, h: jax.Array) -> jax.Array:
    """``f(z) = tanh(z)``, so ``f'(z) = 1 - tanh(z)^2 = (1 - h) (1 + h)``, which cancels less as h nears 1."""
    return (1 - h) * (1 + h)


def sigmoid_slope(z: jax.Array, h: jax.Array) -> jax.Array:
    """``f(z) = 1 / (1 + exp(-z))``, so ``f'(z) = f(z) (1 - f(z))``; and ``1 - f(z) = f(-z)`` loses no digits."""
    return h * jax.nn.sigmoid(-z)


def identity_slope(z: jax.Array, h: jax.Array) -> jax.Array:
    """``f(z) = z``, so ``f'(z) = 1``."""
    return jnp.ones_like(z)


_SLOPES: dict[Any, Callable[[jax.Array, jax.Array], jax.Array]] = {
    jax.nn.relu: relu_slope,
    jnp.tanh: tanh_slope,
    jax.nn.tanh: tanh_slope,
    jax.lax.tanh: tanh_slope,
    jax.nn.sigmoid: sigmoid_slope,
    jax.nn.identity: identity_slope,
    None: identity_slope,
}


# --- Losses: dL/dy, from the predictions y and the targets ---------------------------------------------------------


def mean_squared_error_slope(predictions: jax.Array, targets: Any) -> jax.Array:
    """``L = mean_i((y_i - t_i)^2)`` over n elements, so ``dL/dy_i = 2 (y_i - t_i) / n``."""
    return (predictions - targets) * (2 / predictions.size)


def softmax_cross_entropy_slope(logits: jax.Array, labels: Any) -> jax.Array:
    """``L = -mean_i(sum_c t_ic log p_ic)``, ``p = softmax(z)``, over n points, so ``dL/dz = (p sum_c t_c - t) / n``.

    ``log p_c = z_c - log(sum_k exp(z_k))``, whose derivative by ``z_k`` is ``[c = k] - p_k``. A class given as an
    integer stands for its one-hot row, which sums to 1.
    """
    p = jax.nn.softmax(logits, axis=-1)
    if jnp.ndim(labels) == 1:
        slope = p - jax.nn.one_hot(labels, logits.shape[-1], dtype=p.dtype)
    else:
        slope = p * jnp.sum(labels, axis=-1, keepdims=True) - labels
    return slope * (1 / logits.shape[0])


def binary_cross_entropy_slope(logits: jax.Array, labels: Any) -> jax.Array:
    """``L = mean_i(log(1 + exp(z_i)) - t_i z_i)`` over n elements, so ``dL/dz_i = (sigmoid(z_i) - t_i) / n``.

    ``sigmoid(z) - t = (1 - t) sigmoid(z) - t sigmoid(-z)``, where nothing cancels for a sure right answer.
    """
    return ((1 - labels) * jax.nn.sigmoid(logits) - labels * jax.nn.sigmoid(-logits)) * (1 / logits.size)


_LOSS_SLOPES: dict[Any, Callable[[jax.Array, Any], jax.Array]] = {
    mean_squared_error: mean_squared_error_slope,
    softmax_cross_entropy: softmax_cross_entropy_slope,
    binary_cross_entropy: binary_cross_entropy_slope,
}


# --- The dense layer, and the network made of them -----------------------------------------------------------------


class DenseSlopes(NamedTuple):
    """What the backward pass of a dense layer yields."""

    params: dict[str, jax.Array]
    x: jax.Array


def dense_slopes(params: dict[str, jax.Array], x: jax.Array, delta: jax.Array) -> DenseSlopes:
    """Back through ``z = x @ W + b``, given ``delta = dL/dz`` of shape ``(batch, n_out)``.

    ``z_ij = sum_k x_ik W_kj + b_j``, hence

    - ``dL/dW_kj = sum_i x_ik delta_ij``, that is ``dL/dW = x^T @ delta``;
    - ``dL/db_j = sum_i delta_ij``, the column sums of delta;
    - ``dL/dx_ik = sum_j delta_ij W_kj``, that is ``dL/dx = delta @ W^T``.

    Each slope has the dtype of what it belongs to.
    """
    slopes = {"weights": x.T @ delta}
    if "bias" in params:
        slopes["bias"] = jnp.sum(delta, axis=0)
    slopes = {name: slope.astype(params[name].dtype) for name, slope in slopes.items()}
    return DenseSlopes(slopes, delta @ params["weights"].T)


def mlp_gradient(
    sizes: Sequence[int],
    *,
    activation: Activation,
    loss: Loss,
    output_activation: Activation | None = None,
    bias: bool = True,
) -> ValueAndGradient:
    """The gradient of ``objective(mlp(sizes, ...), loss)``, derived by hand, with the shape of ``jax.value_and_grad``.

    Forward, keeping each z and h: ``z_l = h_{l-1} @ W_l + b_l``, ``h_l = f_l(z_l)``, ``L = loss(h_last, y)``. Backward:
    ``delta_last = dL/dh * f'(z_last)``, then for each layer its own gradient from delta, and
    ``delta_{l-1} = (delta_l @ W_l^T) * f'(z_{l-1})``.

    Args:
        sizes: widths from the input to the output, as given to ``mlp``.
        activation: ``jax.nn.relu``, ``jnp.tanh``, ``jax.nn.sigmoid`` or ``jax.nn.identity``.
        loss: ``mean_squared_error``, ``softmax_cross_entropy`` or ``binary_cross_entropy``.
        output_activation: one of the activations, or None.
        bias: as given to ``mlp``.

    Returns:
        ``value_and_gradient(params, batch) -> (loss, gradient)``; the gradient is like ``params``.

    Raises:
        ValueError: an activation or a loss for which no rule is written here; params that are not of ``mlp(sizes)``.

    Example:
        >>> import minijaxnet as mjn
        >>> by_hand = mlp_gradient((2, 1), activation=jax.nn.identity, loss=mjn.mean_squared_error, bias=False)
        >>> params = ({"weights": jnp.array([[1.0], [2.0]])},)
        >>> loss, gradient = by_hand(params, (jnp.array([[3.0, 4.0]]), jnp.array([[6.0]])))
        >>> print(loss, gradient[0]["weights"].ravel())
        25.0 [30. 40.]

    Source: Rumelhart, Hinton and Williams, "Learning representations by back-propagating errors", 1986.
    """
    sizes = check_sizes("mlp_gradient", sizes)
    for name, rules, chosen in (
        ("activation", _SLOPES, activation),
        ("output_activation", _SLOPES, output_activation),
        ("loss", _LOSS_SLOPES, loss),
    ):
        if not isinstance(chosen, Hashable) or chosen not in rules:
            known = sorted({getattr(rule, "__name__", str(rule)) for rule in rules})
            raise ValueError(f"mlp_gradient: {name}: got {chosen!r}; expected one of {', '.join(known)}")
    return _MlpGradient(sizes, activation, loss, output_activation, bias)


@dataclass(frozen=True)
class _MlpGradient:
    """What ``mlp_gradient`` returns: equal for equal arguments, so that compiled steps are found again."""

    sizes: tuple[int, ...]
    activation: Activation
    loss: Loss
    output_activation: Activation | None
    bias: bool

    def __call__(self, params: Any, batch: Any) -> tuple[jax.Array, Any]:
        self._check(params)
        x, y = pair(batch)
        hidden = [self.activation] * (len(self.sizes) - 2)
        activations = [jax.nn.identity if f is None else f for f in (*hidden, self.output_activation)]

        if jnp.ndim(x) != 2 or jnp.shape(x)[1] != self.sizes[0]:
            raise ValueError(f"x: got shape {jnp.shape(x)}; expected (n, {self.sizes[0]}), to fit mlp({self.sizes})")

        h, inputs, pre_activations = jnp.asarray(x), [], []
        for layer, activation in zip(params, activations, strict=True):
            inputs.append(h.astype(layer["weights"].dtype))
            z = inputs[-1] @ layer["weights"]
            z = z + layer["bias"] if self.bias else z
            h = activation(z)
            pre_activations.append((z, h))
        loss = self.loss(h, y)

        slope, gradient = _LOSS_SLOPES[self.loss](h, jnp.asarray(y)), []
        layers = zip(params, inputs, pre_activations, activations, strict=True)
        for layer, x, (z, h), f in reversed(list(layers)):
            # A silent unit stays silent: 0 times a slope that overflowed would be NaN.
            f_slope = _SLOPES[f](z, h)
            delta = jnp.where(f_slope == 0, 0, slope * f_slope).astype(z.dtype)
            slopes = dense_slopes(layer, x, delta)
            gradient.append(slopes.params)
            slope = slopes.x
        return loss, tuple(reversed(gradient))

    def _check(self, params: Any) -> None:
        expected = [
            {"weights": (n_in, n_out)} | ({"bias": (n_out,)} if self.bias else {})
            for n_in, n_out in zip(self.sizes, self.sizes[1:], strict=False)
        ]
        got = [jax.tree.map(jnp.shape, layer) for layer in params]
        if got != expected:
            raise ValueError(f"params: got shapes {got}; expected {expected}, those of mlp({self.sizes})")


# --- A hand-derived gradient in the place of autodiff's -------------------------------------------------------------


def with_gradient(objective: Callable[[Any, Any], Any], value_and_gradient: ValueAndGradient) -> Callable[..., Any]:
    """The same objective, whose gradient with respect to the params is computed by your rule.

    Everything that differentiates it runs the rule: ``jax.grad``, a descent, Hessian-vector products, ``jax.hessian``.
    The forward pass is the rule's own, and is run once. The batch is left to autodiff: where a derivative with respect
    to it is asked for, that one is taken through the plain objective.

    The rule gives ``dL/dparams`` itself, so the cotangent ``g`` of the loss only scales it: ``g * dL/dparams``.

    Args:
        objective: ``f(params, batch)``, a scalar; any further arguments, such as a key, go to both functions, and any
            may be given by name.
        value_and_gradient: ``(params, batch) -> (loss, gradient)``, the gradient like ``params``.

    Returns:
        ``f(params, batch)``. Forward mode straight through it (``jax.jvp``) is refused by JAX, as for any
        ``custom_vjp``; forward over reverse works.

    Raises:
        TypeError: on differentiation, a gradient whose structure, shapes or dtypes are not those of ``params``, or a
            loss that is not a scalar.

    Example:
        >>> square = lambda weight, batch: (weight - batch) ** 2
        >>> by_hand = lambda weight, batch: (square(weight, batch), 2 * (weight - batch))
        >>> square = with_gradient(square, by_hand)
        >>> print(jax.grad(square)(3.0, 1.0), jax.grad(square, argnums=1)(3.0, 1.0))
        4.0 -4.0

    Source: the JAX documentation, "Custom derivative rules".
    """
    return _WithGradient(objective, value_and_gradient)


@dataclass(frozen=True)
class _WithGradient:
    """What ``with_gradient`` returns: equal for an equal objective and rule."""

    objective: Callable[[Any, Any], Any]
    value_and_gradient: ValueAndGradient

    def __call__(self, params: Any, *batch: Any, **named: Any) -> jax.Array:
        return _with_gradient(self.objective, self.value_and_gradient, params, (batch, named))


# What follows the params goes through the rule's functions as one tree, ``rest = (positional, named)``.
@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _with_gradient(objective: Any, value_and_gradient: Any, params: Any, rest: Any) -> jax.Array:
    return objective(params, *rest[0], **rest[1])


def _forward(objective: Any, value_and_gradient: Any, params: Any, rest: Any) -> tuple[jax.Array, Any]:
    perturbed = any(primal.perturbed for primal in jax.tree.leaves(rest))
    params, rest = jax.tree.map(lambda primal: primal.value, (params, rest))
    returned = value_and_gradient(params, *rest[0], **rest[1])
    if not (isinstance(returned, tuple) and len(returned) == 2 and _is_scalar(returned[0])):
        raise TypeError(
            f"value_and_gradient: got a {type(returned).__name__}; expected (loss, gradient), loss a scalar"
        )
    loss, gradient = returned
    if difference := structure_difference(gradient, params):
        raise TypeError(f"value_and_gradient: the gradient is not like params: {difference}")
    pull_back = jax.vjp(lambda rest: objective(params, *rest[0], **rest[1]), rest)[1] if perturbed else None
    return loss, (gradient, pull_back)


def _backward(objective: Any, value_and_gradient: Any, residuals: Any, cotangent: Any) -> tuple[Any, Any]:
    gradient, pull_back = residuals
    params_cotangent = jax.tree.map(lambda slope: (cotangent * slope).astype(slope.dtype), gradient)
    return params_cotangent, None if pull_back is None else pull_back(cotangent)[0]


def _is_scalar(loss: Any) -> bool:
    return jax.tree.structure(loss) == jax.tree.structure(0) and jnp.shape(loss) == ()


_with_gradient.defvjp(_forward, _backward, symbolic_zeros=True)
