"""What is passed to a check: arguments, which of them are differentiated, and a loss, each checked by name."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from minijaxnet.pytrees import array_type

UNTRACEABLE = (jax.errors.TracerArrayConversionError, jax.errors.ConcretizationTypeError)


def checked_args(args: Any) -> tuple[Any, ...]:
    """The arguments as arrays."""
    if not isinstance(args, tuple | list):
        raise TypeError(f"args: got a {type(args).__name__}; expected a tuple of arguments")

    def convert(path: tuple[Any, ...], leaf: Any) -> Any:
        name = f"args{jax.tree_util.keystr(path)}"
        try:
            array = jnp.asarray(leaf)
        except TypeError:
            raise TypeError(f"{name}: got a {type(leaf).__name__}; expected an array") from None
        if jnp.issubdtype(array.dtype, jnp.floating):
            bad = np.argwhere(np.isnan(np.asarray(array).astype(np.float64)))
            if len(bad):
                place = list(map(int, bad[0]))
                raise ValueError(f"{name}: got NaN{f' at {place}' if place else ''}; expected numbers")
            array = jax.lax.convert_element_type(array, array.dtype)
        return array

    return jax.tree_util.tree_map_with_path(convert, tuple(args))


def checked_order(order: Any) -> int:
    """1 or 2."""
    if order not in (1, 2) or isinstance(order, bool):
        raise ValueError(f"order: got {order!r}; expected 1 or 2")
    return order


def checked_argnums(argnums: Any, count: int) -> tuple[int, ...]:
    """The arguments that are differentiated, counted from the first."""
    chosen = tuple(argnums) if isinstance(argnums, tuple | list) else (argnums,)
    for i in chosen:
        if not isinstance(i, int) or isinstance(i, bool):
            raise TypeError(f"argnums: got {argnums!r}; expected an int or several")
        if not -count <= i < count:
            raise ValueError(f"argnums: got {argnums!r}; expected numbers below {count}, there are {count} args")
    if not chosen or len({i % count for i in chosen}) < len(chosen):
        raise ValueError(f"argnums: got {argnums!r}; expected different arguments, one at least")
    return tuple(i % count for i in chosen)


def check_differentiable(target: Any, where: str) -> None:
    """Refuse a tree that is empty, or holds anything but real floating leaves."""
    leaves = jax.tree_util.tree_flatten_with_path(target)[0]
    if not leaves:
        raise ValueError(f"{where}: got a tree without leaves; expected something to differentiate with respect to")
    for path, leaf in leaves:
        check_real(leaf, f"{where}{jax.tree_util.keystr(path)}")


def check_real(leaf: Any, name: str) -> None:
    """Refuse what is not real and floating."""
    if jnp.issubdtype(leaf.dtype, jnp.complexfloating):
        raise TypeError(f"{name}: got dtype {leaf.dtype}; complex numbers are not supported, split them into two")
    if not jnp.issubdtype(leaf.dtype, jnp.floating):
        raise TypeError(f"{name}: got dtype {leaf.dtype}; expected a real floating dtype")


def checked_loss(loss: Callable[..., Any], args: tuple[Any, ...], has_aux: bool) -> Any:
    """The shape of the loss, a scalar."""
    value = jax.eval_shape(loss, *args)
    if has_aux:
        if not (isinstance(value, tuple | list) and len(value) == 2):
            raise TypeError(f"loss: got a {type(value).__name__}; expected (loss, aux), as has_aux=True says")
        value = value[0]
    dtype, shape = getattr(value, "dtype", None), getattr(value, "shape", None)
    if dtype is None or shape != () or not jnp.issubdtype(dtype, jnp.floating):
        got = type(value).__name__ if dtype is None else array_type(value)
        raise TypeError(f"loss: got {got}; expected a real floating scalar")
    return value


def shapes_of(rule: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    """What a rule returns, by shape; a rule that works on NumPy arrays is called."""
    try:
        return jax.eval_shape(rule, *args)
    except UNTRACEABLE:
        return rule(*args)
    except Exception as error:
        error.add_note("check_grad: raised by the hand gradient")
        raise


def typed(got: Any, expected: Any) -> Any:
    """Python numbers (and what JAX types as weakly as them) with the dtype of what stands in their place."""
    if jax.tree.structure(got) != jax.tree.structure(expected):
        return got

    def typed(leaf: Any, like: Any) -> Any:
        weak = isinstance(leaf, int | float) or getattr(leaf, "weak_type", False)
        return jax.ShapeDtypeStruct(jnp.shape(leaf), like.dtype) if weak else leaf

    return jax.tree.map(typed, got, expected)
