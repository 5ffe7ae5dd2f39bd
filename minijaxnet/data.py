"""A batch, the small data sets, and what is checked on them before they meet a compiled program."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from minijaxnet.pytrees import pair


class Batch(NamedTuple):
    """Points and their actual values; the batch axis comes first in both."""

    x: Any
    y: Any


def lesson_points() -> Batch:
    """The four points of the lesson that the framework grew from.

    Returns:
        A batch with x of shape ``(4, 2)`` and y of shape ``(4, 1)``, in JAX's default floating dtype.

    Example:
        >>> lesson_points().y.ravel()
        Array([1., 3., 5., 7.], dtype=float32)
    """
    x = jnp.array([(0.0, 3.0), (1.0, 2.0), (-1.0, -2.0), (4.0, 0.0)])
    y = jnp.array([(1.0,), (3.0,), (5.0,), (7.0,)])
    return Batch(x, y)


def digits(*, seed: int = 0) -> tuple[Batch, Batch]:
    """Handwritten digits: 1,797 images of 8 x 8 pixels, to be told apart.

    Args:
        seed: which fifth of the points is held out for the test.

    Returns:
        ``(train, test)``: x ``(n, 64)`` standardised, y the digit as an integer ``(n,)``.

    Raises:
        ImportError: scikit-learn, in which the data ships, is not installed.

    Example:
        >>> train, test = digits()
        >>> train.x.shape, test.x.shape
        ((1438, 64), (359, 64))

    Source: Alpaydin and Kaynak, "Optical recognition of handwritten digits", UCI repository, 1998.
    """
    return _classes("load_digits", seed)


def wine(*, seed: int = 0) -> tuple[Batch, Batch]:
    """Wine: 178 wines by 13 chemical measures, from 3 cultivars.

    Args:
        seed: which fifth of the points is held out for the test.

    Returns:
        ``(train, test)``: x ``(n, 13)`` standardised, y the cultivar as an integer ``(n,)``.

    Raises:
        ImportError: scikit-learn is not installed.

    Example:
        >>> wine()[0].x.shape
        (142, 13)

    Source: Aeberhard and Forina, "Wine", UCI repository, 1991.
    """
    return _classes("load_wine", seed)


def iris(*, seed: int = 0) -> tuple[Batch, Batch]:
    """Iris: 150 flowers by 4 lengths, of 3 species.

    Args:
        seed: which fifth of the points is held out for the test.

    Returns:
        ``(train, test)``: x ``(n, 4)`` standardised, y the species as an integer ``(n,)``.

    Raises:
        ImportError: scikit-learn is not installed.

    Example:
        >>> iris()[1].y.shape
        (30,)

    Source: Fisher, "The use of multiple measurements in taxonomic problems", 1936.
    """
    return _classes("load_iris", seed)


def breast_cancer(*, seed: int = 0) -> tuple[Batch, Batch]:
    """Breast cancer: 569 tumours by 30 measures of their cell nuclei, malignant (0) or benign (1).

    Args:
        seed: which fifth of the points is held out for the test.

    Returns:
        ``(train, test)``: x ``(n, 30)`` standardised, y 0 or 1 as a float ``(n, 1)``.

    Raises:
        ImportError: scikit-learn is not installed.

    Example:
        >>> breast_cancer()[0].y.shape
        (455, 1)

    Source: Wolberg et al., "Breast cancer Wisconsin (diagnostic)", UCI repository, 1995.
    """
    x, y = _load("load_breast_cancer")
    return _split(x, y[:, None].astype(float), seed)


def diabetes(*, seed: int = 0) -> tuple[Batch, Batch]:
    """Diabetes: how far the disease of 442 patients went within a year, from 10 measures.

    Args:
        seed: which fifth of the points is held out for the test.

    Returns:
        ``(train, test)``: x ``(n, 10)`` and y ``(n, 1)``, both standardised by the training points.

    Raises:
        ImportError: scikit-learn is not installed.

    Example:
        >>> diabetes()[0].y.shape
        (354, 1)

    Source: Efron et al., "Least angle regression", 2004.
    """
    x, y = _load("load_diabetes")
    train, test = _split(x, y[:, None].astype(float), seed)
    train_y, test_y = _standardise(np.asarray(train.y), np.asarray(test.y))
    return Batch(train.x, train_y), Batch(test.x, test_y)


def check_batch(batch: Any, where: str) -> None:
    """Say on the host what is wrong with the values of a data set ``(x, y)``.

    Args:
        batch: a pair of trees of arrays, batch axis first.
        where: what the caller names it in an error.

    Raises:
        TypeError: not a pair, or a leaf that is no array of numbers, or a masked one.
        ValueError: no points, as many x as y not, NaN or infinity (with the place of the first).

    Example:
        >>> check_batch((np.ones((2, 1)), np.ones(3)), "data")
        Traceback (most recent call last):
        ValueError: data.y: got 3 points; expected 2, as many as in data.x
    """
    lengths: dict[str, int] = {}
    for side, tree in zip(("x", "y"), pair(batch, where), strict=True):
        if tree is None:
            raise TypeError(f"{where}.{side}: got None; expected an array, or a tree of them")
        for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
            name = f"{where}.{side}{jax.tree_util.keystr(path)}"
            lengths[name] = _check_values(leaf, name)
    if not lengths:
        raise ValueError(f"{where}: got no arrays; expected a pair (x, y) of them")
    first, points = next(iter(lengths.items()))
    for name, length in lengths.items():
        if length != points:
            raise ValueError(f"{name}: got {length} points; expected {points}, as many as in {first}")
    if points == 0:
        raise ValueError(f"{first}: got an empty data set; expected at least one point")


def _check_values(leaf: Any, name: str) -> int:
    if isinstance(leaf, np.ma.MaskedArray):
        raise TypeError(f"{name}: got a masked array; expected an array without gaps, such as its .filled(...)")
    values = leaf if isinstance(leaf, jax.Array) else np.asarray(leaf)
    if not (jnp.issubdtype(values.dtype, np.number) or jnp.issubdtype(values.dtype, np.bool_)):
        raise TypeError(f"{name}: got dtype {values.dtype}; expected numbers")
    if not values.dtype.isnative:
        raise TypeError(f"{name}: got dtype {values.dtype.str}; expected this machine's own byte order")
    if values.ndim == 0:
        raise ValueError(f"{name}: got a single number; expected an array with the batch axis first")
    if jnp.issubdtype(values.dtype, jnp.inexact):
        with np.errstate(over="ignore"):
            as_held = (
                values if isinstance(values, jax.Array) else values.astype(jax.dtypes.canonicalize_dtype(values.dtype))
            )
        finite = np.asarray(jnp.isfinite(as_held))
        if not finite.all():
            index = tuple(int(i) for i in np.argwhere(~finite)[0])
            raise ValueError(
                f"{name}{list(index)}: got {values[index]} ({(~finite).sum()} of {finite.size} values are "
                f"not finite{f' in {as_held.dtype}' if np.isfinite(values[index]) else ''}); expected finite numbers"
            )
    return values.shape[0]


def _load(loader: str) -> tuple[np.ndarray, np.ndarray]:
    try:
        from sklearn import datasets  # 0.8 s: imported where used
    except ImportError:
        raise ImportError('the data sets ship inside scikit-learn: pip install "minijaxnet[data]"') from None
    return getattr(datasets, loader)(return_X_y=True)


def _classes(loader: str, seed: int) -> tuple[Batch, Batch]:
    x, y = _load(loader)
    return _split(x, y.astype(np.int32), seed)


def _split(x: np.ndarray, y: np.ndarray, seed: int, test_share: float = 0.2) -> tuple[Batch, Batch]:
    order = np.random.default_rng(seed).permutation(len(x))
    n_test = round(test_share * len(x))
    held_out, kept = order[:n_test], order[n_test:]
    train_x, test_x = _standardise(x[kept], x[held_out])
    return Batch(train_x, jnp.asarray(y[kept])), Batch(test_x, jnp.asarray(y[held_out]))


def _standardise(train: np.ndarray, test: np.ndarray) -> tuple[jax.Array, jax.Array]:
    """Each column to mean 0 and deviation 1 over the training points; a constant column to 0."""
    constant = train.min(axis=0) == train.max(axis=0)  # its mean may be off by a rounding, its deviation not 0
    mean = np.where(constant, train[0], train.mean(axis=0))
    deviation = np.where(constant, 1.0, train.std(axis=0))
    return jnp.asarray((train - mean) / deviation), jnp.asarray((test - mean) / deviation)
