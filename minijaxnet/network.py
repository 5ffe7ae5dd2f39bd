"""Networks as pairs of pure functions: ``init`` makes the parameters, ``apply`` makes the predictions.

A network has no state. A layer is a network, too, and ``serial`` makes one network of several.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from minijaxnet._checks import check_callable
from minijaxnet._types import DTypeLike

Activation = Callable[[jax.Array], jax.Array]
WeightInit = Callable[..., jax.Array]

# He et al. (2015): an activation that maps half of its inputs near 0 halves the variance, so the start has twice it.
_HALVING = (
    jax.nn.relu,
    jax.nn.leaky_relu,
    jax.nn.elu,
    jax.nn.gelu,
    jax.nn.silu,
    jax.nn.softplus,
)


class Network(NamedTuple):
    """A pair of functions: one makes initial parameters, one computes predictions.

    Attributes:
        init: ``init(key) -> params``, a tree of arrays.
        apply: ``apply(params, x) -> predictions``; the batch axis comes first.

    Example:
        >>> line = Network(lambda key: jax.random.normal(key, (2, 1)), lambda params, x: x @ params)
        >>> line.apply(line.init(jax.random.key(0)), jnp.ones((4, 2))).shape
        (4, 1)
    """

    init: Callable[[jax.Array], Any]
    apply: Callable[[Any, Any], jax.Array]


def dense(
    n_in: int,
    n_out: int,
    *,
    bias: bool = True,
    weight_init: WeightInit | None = None,
    dtype: DTypeLike | None = None,
) -> Network:
    """A fully connected layer: ``y = x @ W + b``.

    Inputs are cast to the dtype of the weights.

    Args:
        n_in: width of the input, at least 1.
        n_out: width of the output, at least 1.
        bias: whether to add ``b``, which starts at zero.
        weight_init: ``weight_init(key, shape, dtype)``, as in ``jax.nn.initializers``; by default Glorot's
            normal distribution, of variance ``2 / (n_in + n_out)``.
        dtype: any floating dtype; by default that of JAX.

    Returns:
        A network whose params are ``{"weights": (n_in, n_out), "bias": (n_out,)}``.

    Raises:
        ValueError: a width is below 1; on ``apply``, the last axis of ``x`` is not ``n_in`` wide.
        TypeError: a width is not an int; the dtype is not floating; on ``apply``, ``x`` is complex.

    Example:
        >>> layer = dense(2, 1)
        >>> params = {"weights": jnp.array([[2.0], [-1.0]]), "bias": jnp.array([0.5])}
        >>> layer.apply(params, jnp.array([[5.0, 1.0]]))
        Array([[9.5]], dtype=float32)

    Source: Glorot and Bengio, "Understanding the difficulty of training deep feedforward neural networks", 2010.
    """
    for name, width in (("n_in", n_in), ("n_out", n_out)):
        _check_width(f"dense: {name}", width)
    if dtype is not None and not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(f"dense: dtype: got {jnp.dtype(dtype).name}; expected a real floating dtype")
    start = _glorot_normal if weight_init is None else weight_init

    def init(key: jax.Array) -> dict[str, jax.Array]:
        floating = jnp.result_type(float) if dtype is None else dtype
        params = {"weights": start(key, (n_in, n_out), floating)}
        return params | {"bias": jnp.zeros(n_out, floating)} if bias else params

    def apply(params: dict[str, jax.Array], x: Any) -> jax.Array:
        weights = params["weights"]
        if jnp.iscomplexobj(x):
            raise TypeError(f"dense: x: got dtype {x.dtype}; expected real numbers")
        x = jnp.asarray(x, weights.dtype)
        if x.ndim == 0 or x.shape[-1] != weights.shape[0]:
            raise ValueError(
                f"dense: x: got shape {x.shape}; expected a last axis of {weights.shape[0]}, "
                f"to fit weights of shape {weights.shape}"
            )
        y = x @ weights
        return y + jnp.broadcast_to(params["bias"], y.shape) if bias else y

    return Network(init, apply)


def _glorot_normal(key: jax.Array, shape: tuple[int, int], dtype: DTypeLike) -> jax.Array:
    return _normal_start(key, shape, dtype, 2 / sum(shape))


def _he_normal(key: jax.Array, shape: tuple[int, int], dtype: DTypeLike) -> jax.Array:
    return _normal_start(key, shape, dtype, 2 / shape[0])


def _normal_start(key: jax.Array, shape: tuple[int, int], dtype: DTypeLike, variance: float) -> jax.Array:
    """Draw normal weights, truncated at two standard deviations; they equal those of ``jax.nn.initializers``.

    They are drawn as a vector, since XLA takes four times as long to compile a draw whose last axis is short.
    """
    truncated_deviation = 0.87962566103423978  # of a standard normal distribution
    draw = jax.random.truncated_normal(key, -2, 2, (math.prod(shape),), dtype).reshape(shape)
    return draw * jnp.asarray(math.sqrt(variance) / truncated_deviation, dtype)


def elementwise(fn: Activation) -> Network:
    """Make a network without parameters from a function of each element: ``y_i = fn(x_i)``.

    Args:
        fn: a function that preserves the shape, such as ``jax.nn.relu``.

    Returns:
        A network whose params are the empty tuple.

    Example:
        >>> elementwise(jax.nn.relu).apply((), jnp.array([-1.0, 2.0]))
        Array([0., 2.], dtype=float32)
    """
    check_callable("elementwise: fn", fn)
    return Network(lambda key: (), lambda params, x: fn(x))


def serial(*networks: Network) -> Network:
    """Make one network of several, applied one after the other: ``y = f_n(... f_2(f_1(x)))``.

    Args:
        *networks: any number; without any, the network is the identity.

    Returns:
        A network whose params are the tuple of their params; the key is split between them.

    Example:
        >>> network = serial(dense(2, 3), elementwise(jnp.tanh), dense(3, 1))
        >>> network.apply(network.init(jax.random.key(0)), jnp.ones((4, 2))).shape
        (4, 1)
    """

    def init(key: jax.Array) -> tuple[Any, ...]:
        keys = jax.random.split(key, len(networks))
        return tuple(network.init(k) for network, k in zip(networks, keys, strict=True))

    def apply(params: tuple[Any, ...], x: Any) -> jax.Array:
        for network, layer_params in zip(networks, params, strict=True):
            x = network.apply(layer_params, x)
        return x

    return Network(init, apply)


def mlp(
    sizes: Sequence[int],
    *,
    activation: Activation = jax.nn.relu,
    output_activation: Activation | None = None,
    bias: bool = True,
    dtype: DTypeLike | None = None,
) -> Network:
    """A multilayer perceptron: ``h_0 = x``, ``h_l = activation(h_{l-1} @ W_l + b_l)``, ``y = h_L``.

    Initial weights before relu and similar activations (leaky_relu, elu, gelu, silu, softplus) have He's variance
    ``2 / n_in``, all others Glorot's variance ``2 / (n_in + n_out)``. Biases start at zero.

    Args:
        sizes: widths from the input to the output, at least two.
        activation: of every hidden layer.
        output_activation: of the last layer; by default none.
        bias: whether each layer adds a bias.
        dtype: any floating dtype; by default that of JAX.

    Returns:
        A network whose params are a tuple with one ``{"weights", "bias"}`` per layer.

    Raises:
        ValueError: there are fewer than two sizes, or one is below 1.
        TypeError: a size is not an int; the dtype is not floating.

    Example:
        >>> network = mlp((2, 2, 1), bias=False)
        >>> params = ({"weights": jnp.array([[1.0, -1.0], [1.0, 1.0]])}, {"weights": jnp.array([[2.0], [-1.0]])})
        >>> network.apply(params, jnp.array([[2.0, 3.0]]))
        Array([[9.]], dtype=float32)

    Source: He et al., "Delving deep into rectifiers", 2015; Glorot and Bengio, 2010.
    """
    sizes = check_sizes("mlp", sizes)
    check_callable("mlp: activation", activation)
    check_callable("mlp: output_activation", output_activation or activation)
    activations = (activation,) * (len(sizes) - 2) + (output_activation,)

    def layer(n_in: int, n_out: int, fn: Activation | None) -> Network:
        start = _he_normal if fn in _HALVING else _glorot_normal
        linear = dense(n_in, n_out, bias=bias, weight_init=start, dtype=dtype)
        if fn is None:
            return linear
        return Network(linear.init, lambda params, x: fn(linear.apply(params, x)))

    return serial(*map(layer, sizes, sizes[1:], activations))


def check_sizes(where: str, sizes: Sequence[int]) -> tuple[int, ...]:
    """Check the widths of a multilayer perceptron, from the input to the output.

    >>> check_sizes("mlp", [2, 0])
    Traceback (most recent call last):
    ValueError: mlp: sizes[1]: got 0; expected at least 1
    """
    sizes = tuple(sizes)
    if len(sizes) < 2:
        raise ValueError(f"{where}: sizes: got {sizes}; expected at least an input and an output width")
    for i, width in enumerate(sizes):
        _check_width(f"{where}: sizes[{i}]", width)
    return sizes


def _check_width(where: str, width: Any) -> None:
    if isinstance(width, bool) or not isinstance(width, int):
        raise TypeError(f"{where}: got {width!r}; expected an int")
    if width < 1:
        raise ValueError(f"{where}: got {width}; expected at least 1")
