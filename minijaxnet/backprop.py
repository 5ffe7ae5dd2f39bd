"""Backpropagation by hand: every derivative of a multilayer perceptron beside its equation.

Notation: a dense layer computes ``z = h @ W + b`` and ``h' = f(z)`` for a whole batch, one point per row. ``delta`` is
the derivative of the loss with respect to z, and has the shape of z. The backward pass computes delta for each layer,
from the last to the first, and from delta the layer's gradient (Rumelhart, Hinton and Williams, 1986; Goodfellow et
al., 2016, section 6.5). The layout of a batch in memory and the rules of the dense layer are in ``columns.py``.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from minijaxnet._checks import pair
from minijaxnet._types import Params, PyTree, ValueAndGradient
from minijaxnet.columns import faster_layout
from minijaxnet.losses import Loss, binary_cross_entropy, mean_squared_error, softmax_cross_entropy
from minijaxnet.network import Activation, check_sizes

# --- Activations: f'(z), from z and h = f(z) -----------------------------------------------------------------------


def relu_derivative(z: jax.Array, h: jax.Array) -> jax.Array:
    """``f(z) = max(z, 0)``, so ``f'(z) = 1 where z > 0, else 0``; at the kink it is 0, as for ``jax.nn.relu``."""
    return (z > 0).astype(z.dtype)


def tanh_derivative(z: jax.Array, h: jax.Array) -> jax.Array:
    """``f(z) = tanh(z)``, so ``f'(z) = 1 - tanh(z)^2 = (1 - h) (1 + h)``, which loses fewer digits near h = 1."""
    return (1 - h) * (1 + h)


def sigmoid_derivative(z: jax.Array, h: jax.Array) -> jax.Array:
    """``f(z) = 1 / (1 + exp(-z))``, so ``f'(z) = f(z) (1 - f(z))``; and ``1 - f(z) = f(-z)`` loses no digits."""
    return h * jax.nn.sigmoid(-z)


def identity_derivative(z: jax.Array, h: jax.Array) -> jax.Array:
    """``f(z) = z``, so ``f'(z) = 1``."""
    return jnp.ones_like(z)


_DERIVATIVES: dict[Any, Callable[[jax.Array, jax.Array], jax.Array]] = {
    jax.nn.relu: relu_derivative,
    jnp.tanh: tanh_derivative,
    jax.nn.tanh: tanh_derivative,
    jax.lax.tanh: tanh_derivative,
    jax.nn.sigmoid: sigmoid_derivative,
    jax.nn.identity: identity_derivative,
    None: identity_derivative,
}


# --- Losses: dL/dy, from the predictions y and the targets ---------------------------------------------------------


def mean_squared_error_derivative(predictions: jax.Array, targets: Any) -> jax.Array:
    """``L = mean_i((y_i - t_i)^2)`` over n elements, so ``dL/dy_i = 2 (y_i - t_i) / n``."""
    return (predictions - targets) * (2 / predictions.size)


def softmax_cross_entropy_derivative(logits: jax.Array, labels: Any) -> jax.Array:
    """``L = -mean_i(sum_c t_ic log p_ic)``, ``p = softmax(z)``, over n points, so ``dL/dz = (p sum_c t_c - t) / n``.

    ``log p_c = z_c - log(sum_k exp(z_k))``, whose derivative by ``z_k`` is ``[c = k] - p_k``. A class given as an
    integer stands for its one-hot row, which sums to 1.
    """
    p = jax.nn.softmax(logits, axis=-1)
    if jnp.ndim(labels) == 1:
        gradient = p - jax.nn.one_hot(labels, logits.shape[-1], dtype=p.dtype)
    else:
        gradient = p * jnp.sum(labels, axis=-1, keepdims=True) - labels
    return gradient * (1 / logits.shape[0])


def binary_cross_entropy_derivative(logits: jax.Array, labels: Any) -> jax.Array:
    """``L = mean_i(log(1 + exp(z_i)) - t_i z_i)`` over n elements, so ``dL/dz_i = (sigmoid(z_i) - t_i) / n``.

    ``sigmoid(z) - t = (1 - t) sigmoid(z) - t sigmoid(-z)``, where no digits cancel for a confident right answer.
    """
    return ((1 - labels) * jax.nn.sigmoid(logits) - labels * jax.nn.sigmoid(-logits)) * (1 / logits.size)


_LOSS_DERIVATIVES: dict[Any, Callable[[jax.Array, Any], jax.Array]] = {
    mean_squared_error: mean_squared_error_derivative,
    softmax_cross_entropy: softmax_cross_entropy_derivative,
    binary_cross_entropy: binary_cross_entropy_derivative,
}


# --- The network ---------------------------------------------------------------------------------------------------


def mlp_gradient(
    sizes: Sequence[int],
    *,
    activation: Activation,
    loss: Loss,
    output_activation: Activation | None = None,
    bias: bool = True,
) -> ValueAndGradient:
    """The gradient of ``objective(mlp(sizes, ...), loss)``, derived by hand, with the shape of ``jax.value_and_grad``.

    Forward, storing each z and h: ``z_l = h_{l-1} @ W_l + b_l``, ``h_l = f_l(z_l)``, ``L = loss(h_last, y)``. Backward:
    ``delta_last = dL/dh * f'(z_last)``, then for each layer its gradient from delta, and
    ``delta_{l-1} = (delta_l @ W_l^T) * f'(z_{l-1})``.

    Args:
        sizes: widths from the input to the output, as for ``mlp``.
        activation: ``jax.nn.relu``, ``jnp.tanh``, ``jax.nn.sigmoid`` or ``jax.nn.identity``.
        loss: ``mean_squared_error``, ``softmax_cross_entropy`` or ``binary_cross_entropy``.
        output_activation: one of the activations, or None.
        bias: as for ``mlp``.

    Returns:
        ``value_and_gradient(params, batch) -> (loss, gradient)``; the gradient has the structure of
        ``params``.

    Raises:
        ValueError: there is no rule here for an activation or the loss; params do not fit ``mlp(sizes)``.

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
        ("activation", _DERIVATIVES, activation),
        ("output_activation", _DERIVATIVES, output_activation),
        ("loss", _LOSS_DERIVATIVES, loss),
    ):
        if not isinstance(chosen, Hashable) or chosen not in rules:
            names = sorted({getattr(rule, "__name__", str(rule)) for rule in rules})
            raise ValueError(f"mlp_gradient: {name}: got {chosen!r}; expected one of {', '.join(names)}")
    return _MlpGradient(sizes, activation, loss, output_activation, bias)


@dataclass(frozen=True)
class _MlpGradient:
    """The function that ``mlp_gradient`` returns; equal for equal arguments, so that compiled steps are reused."""

    sizes: tuple[int, ...]
    activation: Activation
    loss: Loss
    output_activation: Activation | None
    bias: bool

    def __call__(self, params: Params, batch: PyTree) -> tuple[jax.Array, Any]:
        self._check(params)
        x, y = pair(batch)
        hidden = [self.activation] * (len(self.sizes) - 2)
        activations = [jax.nn.identity if f is None else f for f in (*hidden, self.output_activation)]

        if jnp.ndim(x) != 2 or jnp.shape(x)[1] != self.sizes[0]:
            raise ValueError(f"x: got shape {jnp.shape(x)}; expected (n, {self.sizes[0]}), to fit mlp({self.sizes})")

        if jnp.iscomplexobj(x):
            raise TypeError(f"x: got dtype {x.dtype}; expected real numbers")
        rearrange, forward, backward = faster_layout(len(x), self.sizes)
        h, inputs, pre_activations = rearrange(jnp.asarray(x)), [], []
        for layer, activation in zip(params, activations, strict=True):
            inputs.append(h.astype(layer["weights"].dtype))
            z = forward(layer, inputs[-1])
            h = activation(z)
            pre_activations.append((z, h))
        predictions = rearrange(h)
        loss = self.loss(predictions, y)

        cotangent, gradient = rearrange(_LOSS_DERIVATIVES[self.loss](predictions, jnp.asarray(y))), []
        layers = zip(params, inputs, pre_activations, activations, strict=True)
        for layer, x, (z, h), f in reversed(list(layers)):
            # Where f'(z) is 0, delta is 0: a product of 0 and a cotangent that overflowed would be NaN.
            f_derivative = _DERIVATIVES[f](z, h)
            delta = jnp.where(f_derivative == 0, 0, cotangent * f_derivative).astype(z.dtype)
            gradients = backward(layer, x, delta)
            gradient.append(gradients.params)
            cotangent = gradients.x
        return loss, tuple(reversed(gradient))

    def _check(self, params: Params) -> None:
        expected = [
            {"weights": (n_in, n_out)} | ({"bias": (n_out,)} if self.bias else {})
            for n_in, n_out in zip(self.sizes, self.sizes[1:], strict=False)
        ]
        got = [jax.tree.map(jnp.shape, layer) for layer in params]
        if got != expected:
            raise ValueError(f"params: got shapes {got}; expected {expected}, as for mlp({self.sizes})")
