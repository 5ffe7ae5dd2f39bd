"""Batches, small data sets, and checks on data before a compiled program uses them."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from minijaxnet._checks import check_one_batch, is_pair
from minijaxnet._trees import checked_tree
from minijaxnet._types import DTypeLike, PyTree


class Batch(NamedTuple):
    """Inputs and their targets.

    Attributes:
        x: the inputs, an array or a tree of arrays, the batch axis first.
        y: the targets, one per point.

    Example:
        >>> x, y = Batch(jnp.ones((4, 2)), jnp.zeros((4, 1)))
        >>> x.shape
        (4, 2)
    """

    x: Any
    y: Any


def lesson_points() -> Batch:
    """The four points of the lesson.

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
    """Handwritten digits: 1,797 images of 8 x 8 pixels, of 10 classes.

    Args:
        seed: decides which fifth of the points is the test set.

    Returns:
        ``(train, test)``: x ``(n, 64)`` standardised, y the digit as an integer ``(n,)``.

    Raises:
        ImportError: scikit-learn, which contains the data, is not installed.

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
        seed: decides which fifth of the points is the test set.

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
        seed: decides which fifth of the points is the test set.

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
        seed: decides which fifth of the points is the test set.

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
        seed: decides which fifth of the points is the test set.

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


def numbers(tree: PyTree, where: str) -> Any:
    """Convert a tree of data to arrays that JAX can hold; data frames, series and tensors are converted by NumPy.

    Args:
        tree: a tree of arrays, numbers, or objects that NumPy converts to arrays of numbers.
        where: the name of the tree in an error.

    Returns:
        The same tree, of arrays and numbers.

    Raises:
        TypeError: a leaf is not an array of numbers, but text, dates, a masked array, floats of 128 bits or the like.
        ValueError: a number is too large for JAX; the tree is nested too deep.

    Example:
        >>> numbers(np.array([2**40]), "data.x")
        Traceback (most recent call last):
        ValueError: data.x[0]: got 1099511627776; expected what int32 holds: subtract an offset, or set JAX_ENABLE_X64=1
    """
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: _as_numbers(leaf, where + jax.tree_util.keystr(path)), checked_tree(tree, where)
    )


def check_batch(batch: PyTree, where: str) -> None:
    """Check the values of a data set, on the host.

    Args:
        batch: ``(x, y)``, or any other tree of arrays, batch axis first.
        where: the name of the batch in an error.

    Raises:
        TypeError: it is several batches, or a leaf is not an array of numbers, or is a masked array.
        ValueError: there are no points, arrays have different numbers of points, or a value is NaN or infinite (the
            text has the place of the first).

    Example:
        >>> check_batch((np.ones((2, 1)), np.ones(3)), "data")
        Traceback (most recent call last):
        ValueError: data.y: got 3 points; expected 2, as many as in data.x
    """
    lengths: dict[str, int] = {}
    check_one_batch(batch, where)
    parts = {f"{where}.x": batch[0], f"{where}.y": batch[1]} if is_pair(batch) else {where: batch}
    for part, tree in parts.items():
        for path, leaf in jax.tree_util.tree_flatten_with_path(checked_tree(tree, part))[0]:
            name = f"{part}{jax.tree_util.keystr(path)}"
            lengths[name] = _check_values(_as_numbers(leaf, name), name)
    if not lengths:
        raise ValueError(f"{where}: got no arrays; expected a pair (x, y) of them, or another tree")
    first, points = next(iter(lengths.items()))
    for name, length in lengths.items():
        if length != points:
            raise ValueError(f"{name}: got {length} points; expected {points}, as many as in {first}")
    if points == 0:
        raise ValueError(f"{first}: got an empty data set; expected at least one point")


def _as_numbers(leaf: Any, name: str) -> Any:
    if isinstance(leaf, jax.Array | bool | float | complex):  # tracers, too
        return leaf
    if isinstance(leaf, np.ma.MaskedArray):
        raise TypeError(f"{name}: got a masked array; expected an array without gaps, such as its .filled(...)")
    values = _by_numpy(leaf, name)
    dtype = values.dtype
    if dtype.char in "gG":  # on some machines the same as float64
        raise TypeError(f"{name}: got dtype {dtype}; expected floats of 64 bits at most: .astype(np.float64)")
    if dtype.kind in "mM":
        raise TypeError(f"{name}: got dtype {dtype}; expected numbers, such as seconds: x / np.timedelta64(1, 's')")
    if not (jnp.issubdtype(dtype, np.number) or dtype == np.bool_):
        if isinstance(leaf, int):
            raise ValueError(f"{name}: got an integer of {len(str(abs(leaf)))} digits; expected what 64 bits hold")
        raise TypeError(f"{name}: got {_kind_of(leaf, dtype)}; expected numbers")
    if not dtype.isnative:
        raise TypeError(f"{name}: got dtype {dtype.str}; expected this machine's own byte order")
    if dtype.kind in "iuf":
        _check_representable(values, name)
    return values if isinstance(leaf, np.ndarray) or not isinstance(leaf, int) else leaf


def _by_numpy(leaf: Any, name: str) -> np.ndarray:
    """Convert a leaf by NumPy, which takes anything with an ``__array__``."""
    if not (isinstance(leaf, int | np.ndarray | np.generic) or hasattr(leaf, "__array__")):
        raise TypeError(f"{name}: got a {type(leaf).__name__}; expected an array of numbers")
    try:
        return np.asarray(leaf)
    except Exception as error:  # such as a tensor that requires a gradient, or is on another device
        raise TypeError(f"{name}: got a {type(leaf).__name__}; expected an array of numbers ({error})") from error


def _kind_of(leaf: Any, dtype: DTypeLike) -> str:
    """Describe a leaf that is not an array of numbers; for a data frame, its columns without numbers."""
    if not (hasattr(leaf, "columns") and hasattr(leaf, "dtypes")):
        return f"dtype {dtype}" if isinstance(leaf, np.ndarray) else f"a {type(leaf).__name__} of {dtype}"
    columns = zip(leaf.columns, leaf.dtypes, strict=True)
    names = [f"{name!r} of {kind}" for name, kind in columns if getattr(kind, "kind", "O") not in "biufc"]
    return f"a {type(leaf).__name__} with columns {', '.join(names[:3])}"


def _check_representable(values: np.ndarray, name: str) -> None:
    """Check that JAX can hold each number; without float64 enabled it has at most 32 bits."""
    held = jax.dtypes.canonicalize_dtype(values.dtype)
    if held == values.dtype:
        return
    limits, advice = (np.finfo(held), "scale it") if held.kind == "f" else (np.iinfo(held), "subtract an offset")
    outside = np.argwhere(np.isfinite(values) & ((values < limits.min) | (values > limits.max)))
    if len(outside):
        place = list(map(int, outside[0]))
        got = f"{name}{place if place else ''}: got {values[tuple(outside[0])]}"
        raise ValueError(f"{got}; expected what {held} holds: {advice}, or set JAX_ENABLE_X64=1")


def _check_values(values: Any, name: str) -> int:
    if jnp.ndim(values) == 0:
        raise ValueError(f"{name}: got a single number; expected an array with the batch axis first")
    if not (jnp.issubdtype(values.dtype, np.number) or values.dtype == np.bool_):
        raise TypeError(f"{name}: got dtype {values.dtype}; expected numbers")
    if jnp.issubdtype(values.dtype, jnp.inexact):
        with np.errstate(over="ignore"):
            as_stored = (
                values if isinstance(values, jax.Array) else values.astype(jax.dtypes.canonicalize_dtype(values.dtype))
            )
        finite = np.asarray(jnp.isfinite(as_stored))
        if not finite.all():
            index = tuple(int(i) for i in np.argwhere(~finite)[0])
            raise ValueError(
                f"{name}{list(index)}: got {values[index]} ({(~finite).sum()} of {finite.size} values are "
                f"not finite{f' in {as_stored.dtype}' if np.isfinite(values[index]) else ''}); expected finite numbers"
            )
    return values.shape[0]


def _load(loader: str) -> tuple[np.ndarray, np.ndarray]:
    try:
        from sklearn import datasets  # 0.8 s: imported where used
    except ImportError:
        raise ImportError('scikit-learn, which has the data sets, is missing: pip install "minijaxnet[data]"') from None
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
    """Scale each column to mean 0 and deviation 1 over the training points, and a constant column to 0."""
    constant = train.min(axis=0) == train.max(axis=0)  # rounding may make its deviation other than 0
    mean = np.where(constant, train[0], train.mean(axis=0))
    deviation = np.where(constant, 1.0, train.std(axis=0))
    return jnp.asarray((train - mean) / deviation), jnp.asarray((test - mean) / deviation)
