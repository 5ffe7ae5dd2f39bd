"""Losses: the error of a batch of predictions as one number. Lower is better."""

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from minijaxnet._checks import check_callable, pair
from minijaxnet._trees import array_type
from minijaxnet._types import Params, PyTree
from minijaxnet.network import Network

Loss = Callable[[jax.Array, Any], jax.Array]


def prediction_errors(predictions: jax.Array, targets: Any) -> jax.Array:
    """The error at each point: ``predicted - actual``.

    Args:
        predictions: ``(batch, n_out)``, floating.
        targets: the actual values, of the same shape.

    Returns:
        The errors, of the same shape.

    Raises:
        ValueError: the shapes differ. They are not broadcast: ``(n, 1)`` and ``(n,)`` would give n x n errors.

    Example:
        >>> prediction_errors(jnp.array([[9.0]]), jnp.array([[13.0]]))
        Array([[-4.]], dtype=float32)
    """
    predictions, targets = jnp.asarray(predictions), jnp.asarray(targets)
    _check_same_shape("targets", targets, "predictions", predictions)
    return predictions - targets


def mean_squared_error(predictions: jax.Array, targets: Any) -> jax.Array:
    """The mean of the squared errors over all elements: ``mean((predicted - actual)^2)``.

    Args:
        predictions: ``(batch, n_out)``, floating.
        targets: the actual values, of the same shape.

    Returns:
        A scalar.

    Raises:
        ValueError: the shapes differ.

    Example:
        >>> mean_squared_error(jnp.array([10.0, 8.0, 6.0]), jnp.array([20.0, 3.0, 1.0]))
        Array(50., dtype=float32)
    """
    return jnp.mean(jnp.square(prediction_errors(predictions, targets)))


def softmax_cross_entropy(logits: jax.Array, labels: Any) -> jax.Array:
    """The mean cross-entropy of softmax probabilities: ``-mean_i(sum_c y_ic log p_ic)``, ``p_i = softmax(z_i)``.

    ``log p_c = (z_c - m) - log(sum_k exp(z_k - m))`` with m the largest logit: no logit overflows, and small losses
    keep their digits.

    Args:
        logits: ``(batch, classes)``, floating.
        labels: classes as integers ``(batch,)``, or their probabilities (one-hot) ``(batch, classes)``.
            If a class does not exist, the loss is NaN.

    Returns:
        A scalar, in nats.

    Raises:
        ValueError: the labels fit the logits neither as classes nor as probabilities.

    Example:
        >>> softmax_cross_entropy(jnp.zeros((1, 2)), jnp.array([1]))  # log(2)
        Array(0.6931472, dtype=float32)
    """
    logits, labels = jnp.asarray(logits), jnp.asarray(labels)
    _check_labels(logits, labels)
    log_probabilities = jax.nn.log_softmax(logits, axis=-1)
    if _are_classes(labels):
        labels = labels.astype(jnp.int32)
        exists = (labels >= 0) & (labels < logits.shape[-1])
        picked = jnp.take_along_axis(log_probabilities, jnp.where(exists, labels, 0)[:, None], axis=-1)[:, 0]
        return -jnp.mean(jnp.where(exists, picked, jnp.nan))
    # For a class of probability 0 that is not expected, 0 * -inf counts as 0.
    impossible = (labels == 0) & jnp.isneginf(log_probabilities)
    return -jnp.mean(jnp.sum(labels * jnp.where(impossible, 0, log_probabilities), axis=-1))


def binary_cross_entropy(logits: jax.Array, labels: Any) -> jax.Array:
    """The mean cross-entropy of two classes: ``mean(y log(1 + exp(-z)) + (1 - y) log(1 + exp(z)))``.

    That equals ``log(1 + exp(z)) - y z``, but loses no digits for a confident right answer. ``log(1 + exp(z))`` is
    computed as ``max(z, 0) + log1p(exp(-|z|))``, which never overflows.

    Args:
        logits: ``(batch, n_out)``, floating; ``sigmoid(z)`` is the probability of class 1.
        labels: 0 or 1 (or a probability), of the same shape.

    Returns:
        A scalar, in nats.

    Raises:
        ValueError: the shapes differ.

    Example:
        >>> binary_cross_entropy(jnp.array([[0.0], [1000.0]]), jnp.array([[1.0], [1.0]]))  # (log(2) + 0) / 2
        Array(0.3465736, dtype=float32)
    """
    logits, labels = jnp.asarray(logits), jnp.asarray(labels)
    _check_same_shape("labels", labels, "logits", logits)
    return jnp.mean(labels * jnp.logaddexp(-logits, 0) + (1 - labels) * jnp.logaddexp(logits, 0))


def accuracy(logits: jax.Array, labels: Any) -> jax.Array:
    """The share of points whose most likely class is right, between 0 and 1.

    Args:
        logits: ``(batch, classes)``, or ``(batch, 1)`` for two classes, where a logit above 0 means class 1.
        labels: integers ``(batch,)``, one-hot ``(batch, classes)``, or 0 and 1 of shape ``(batch, 1)``.

    Returns:
        A scalar, float32.

    Raises:
        ValueError: the labels fit the logits in none of these forms.

    Example:
        >>> accuracy(jnp.array([[0.0, 1.0], [2.0, 1.0]]), jnp.array([1, 1]))
        Array(0.5, dtype=float32)
    """
    logits, labels = jnp.asarray(logits), jnp.asarray(labels)
    _check_labels(logits, labels, least=1)
    if _are_classes(labels):
        right = jnp.argmax(logits, axis=-1) == labels
    elif logits.shape[-1] == 1:
        right = (logits > 0) == (labels > 0.5)
    else:
        right = jnp.argmax(logits, axis=-1) == jnp.argmax(labels, axis=-1)
    return jnp.mean(right, dtype=jnp.float32)


@dataclass(frozen=True)
class Objective:
    """The objective that ``objective`` returns; equal for equal arguments, so that compiled steps are reused."""

    network: Network
    loss: Loss

    def __call__(self, params: Params, batch: PyTree) -> jax.Array:
        """The loss of the network's predictions on a batch ``(x, y)``, a scalar."""
        x, y = pair(batch)
        return self.loss(self.network.apply(params, x), y)

    def check_values(self, params: Params, batch: PyTree) -> None:
        """Check labels on the host; a compiled program could only return NaN for a class that does not exist.

        Raises:
            ValueError: there are no points, shapes do not fit, or labels are out of range.
        """
        x, y = pair(batch)
        if not all(map(jnp.size, jax.tree.leaves(y))):
            raise ValueError("labels: got no points; expected at least one")
        logits = jax.eval_shape(self.network.apply, params, x)
        jax.eval_shape(self.loss, logits, y)
        if self.loss in (softmax_cross_entropy, accuracy) and _are_classes(y) and _is_readable(y):
            _check_range("labels", y, 0, logits.shape[-1] - 1, f"a class of {logits.shape[-1]}")
        self.check_probabilities(y)

    def check_probabilities(self, labels: Any) -> None:
        """Check labels that are probabilities. A JAX array cannot change, so it is checked only once.

        Raises:
            ValueError: labels are out of range, or do not sum to 1.
        """
        losses = (binary_cross_entropy,) if _are_classes(labels) else (binary_cross_entropy, softmax_cross_entropy)
        if self.loss not in losses or not _is_readable(labels) or _valid_labels.get((id(labels), self.loss)) is labels:
            return
        _check_range("labels", labels, 0, 1, "a probability")
        if self.loss is softmax_cross_entropy:
            _check_sums(labels)
        if isinstance(labels, jax.Array):
            _valid_labels[id(labels), self.loss] = labels


def _no_init(key: Any) -> Any:
    raise TypeError("network: got a function; expected a Network(init, apply), whose init makes params")


def objective(network: Any, loss: Loss) -> Objective:
    """Make the objective that a descent minimizes: ``f(params, batch) = loss(network.apply(params, x), y)``.

    It also makes metrics: ``objective(network, accuracy)``.

    Args:
        network: a ``Network``, anything else with ``apply(params, x)``, or a function ``apply(params, x)``.
        loss: ``loss(predictions, targets)``, a scalar.

    Returns:
        ``f(params, batch)``, where ``batch`` is ``Batch(x, y)`` or any pair ``(x, y)``.

    Raises:
        TypeError: the network is none of these, or the loss is not a function.

    Example:
        >>> from minijaxnet.network import dense
        >>> f = objective(dense(1, 1, bias=False), mean_squared_error)
        >>> f({"weights": jnp.array([[2.0]])}, (jnp.array([[3.0]]), jnp.array([[10.0]])))
        Array(16., dtype=float32)
    """
    if not hasattr(network, "apply"):
        network = Network(_no_init, check_callable("objective: network", network))
    check_callable("objective: network.apply", network.apply)
    return Objective(network, check_callable("objective: loss", loss))


def check_labels(step: Any, params: Params, batch: PyTree) -> None:
    """Check the labels on the host, if the step of a descent has an objective from ``objective``.

    Raises:
        ValueError: as ``Objective.check_values``.

    Example:
        >>> check_labels(lambda state, batch: (state, None), 1.0, ())
    """
    if (found := _objective_of(step)) is not None:
        found.check_values(params, batch)


def check_probabilities(step: Any, batch: PyTree) -> None:
    """Check labels that are probabilities, at almost no cost, at each call of a descent.

    Example:
        >>> check_probabilities(lambda state, batch: (state, None), ())
    """
    if (found := _objective_of(step)) is not None:
        found.check_probabilities(pair(batch)[1])


def _objective_of(step: Any) -> Objective | None:
    found = getattr(step, "objective", None)
    while found is not None and not isinstance(found, Objective):
        found = getattr(found, "objective", None)  # a wrapper, such as that of with_gradient
    return found


# Labels that passed the check, by their id and the loss.
_valid_labels: weakref.WeakValueDictionary[tuple[int, Loss], jax.Array] = weakref.WeakValueDictionary()


def _is_readable(labels: Any) -> bool:
    """Whether this process can read the values."""
    if isinstance(labels, jax.Array):
        return not isinstance(labels, Tracer) and labels.is_fully_addressable
    return isinstance(labels, np.ndarray)


def _are_classes(labels: Any) -> bool:
    return jnp.ndim(labels) == 1 and jnp.issubdtype(jnp.result_type(labels), jnp.integer)


def _check_labels(logits: jax.Array, labels: jax.Array, *, least: int = 2) -> None:
    """Check that labels are classes or probabilities for these logits, of at least ``least`` classes."""
    if logits.ndim != 2:
        raise ValueError(f"logits: got shape {logits.shape}; expected (n, classes)")
    n, classes = logits.shape
    if classes < least:
        raise ValueError(
            f"logits: got shape {logits.shape}; expected (n, classes) with at least two classes: the probability of "
            "a single one is always 1; use binary_cross_entropy for a single output"
        )
    if labels.shape != (logits.shape if classes == 1 or not _are_classes(labels) else (n,)):
        hint = {(n, 1): ": labels[:, 0]", (n,): ": labels.astype(int)"}.get(labels.shape, "")
        as_classes = f"classes, integers of shape {(n,)}{hint}, or " if classes > 1 else ""
        expected = f"{as_classes}probabilities of shape {logits.shape}"
        raise ValueError(f"labels: got {array_type(labels)}; expected {expected}")


def _check_sums(labels: Any) -> None:
    """Check that each row of probabilities sums to 1, up to rounding."""
    dtype, sums = jnp.result_type(labels), np.asarray(labels, np.float64).sum(axis=-1)
    slack = 1e-3 if not jnp.issubdtype(dtype, jnp.floating) else max(1e-3, 8 * float(jnp.finfo(dtype).eps))
    wrong = np.flatnonzero(~(np.abs(sums - 1) <= slack))
    if len(wrong):
        row = int(wrong[0])
        row_text = np.array2string(np.asarray(labels, np.float64)[row], threshold=8, separator=", ")
        raise ValueError(
            f"labels[{row}]: got {row_text}, which sums to {sums[row]:.6g}; expected probabilities that sum to 1"
            f" ({len(wrong)} of {len(sums)} rows do not)"
        )


def _check_same_shape(name: str, got: jax.Array, other: str, expected: jax.Array) -> None:
    if got.shape != expected.shape:
        raise ValueError(f"{name}: got shape {got.shape}; expected {expected.shape}, the shape of the {other}")


def _check_range(name: str, values: Any, low: int, high: int, what: str) -> None:
    values = np.asarray(values)
    outside = np.argwhere(~((values >= low) & (values <= high)))
    if len(outside):
        index = tuple(int(i) for i in outside[0])
        where = ", ".join(map(str, index))
        raise ValueError(f"{name}[{where}]: got {values[index]}; expected {what}, from {low} to {high}")
