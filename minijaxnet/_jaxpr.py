"""Walking over jaxprs: their operations, and the programs inside these."""

import inspect
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp


def inner_programs(eqn: Any) -> Iterator[Any]:
    """The programs inside an operation: a loop's body, branches, a called function.

    >>> closed = jax.make_jaxpr(jax.jit(lambda x: 2 * x))(1.0)
    >>> [len(program.eqns) for program in inner_programs(closed.eqns[0])]
    [1]
    """
    for value in eqn.params.values():
        for found in value if isinstance(value, tuple | list) else [value]:
            if hasattr(getattr(found, "jaxpr", found), "eqns"):
                yield found


def equations(program: Any) -> Iterator[Any]:
    """All operations of a program and of those inside it.

    >>> [eqn.primitive.name for eqn in equations(jax.make_jaxpr(jax.jit(lambda x: 2 * x))(1.0))]
    ['jit', 'mul']
    """
    for eqn in getattr(program, "jaxpr", program).eqns:
        yield eqn
        for inner in inner_programs(eqn):
            yield from equations(inner)


def closed_over(program: Any) -> list[Any]:
    """The programs inside a program that close over arrays, each once.

    >>> table = jax.numpy.arange(3.0)
    >>> [len(inner.consts) for inner in closed_over(jax.make_jaxpr(jax.jit(lambda x: x * table))(1.0))]
    [1]
    """
    inner = (each for eqn in equations(program) for each in inner_programs(eqn))
    return list({id(each): each for each in inner if getattr(each, "consts", ())}.values())


def is_literal(atom: Any) -> bool:
    """Whether an operand is a literal number in the program."""
    return hasattr(atom, "val")


def non_threefry_keys(program: Any) -> set[Any]:
    """The kinds of random keys in a program, except threefry.

    A threefry key draws the same numbers under ``vmap`` as alone; other generators draw different ones. Keys are found
    wherever they occur, also where they are made from integers inside the program.

    >>> non_threefry_keys(jax.make_jaxpr(lambda seed: jax.random.uniform(jax.random.key(seed, impl="rbg")))(0))
    {key<rbg>}

    Source: https://github.com/jax-ml/jax/pull/20094.
    """
    same = jax.eval_shape(lambda: jax.random.key(0, impl="threefry2x32")).dtype
    atoms = (atom for eqn in equations(program) for atom in (*eqn.invars, *eqn.outvars))
    dtypes = {getattr(atom.aval, "dtype", None) for atom in atoms}
    keys = {dtype for dtype in dtypes if dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key)}
    return keys - {same}


# Operations that only call a program. For those with a custom derivative this is the plain function.
_CALLS = frozenset(
    """checkpoint closed_call core_call custom_jvp_call custom_vjp_call custom_vjp_call_jaxpr custom_vmap_call jit
    linear_call pjit remat remat2""".split()
)


def called(eqn: Any) -> Any:
    """The program that an operation only calls; None for any other operation. Custom derivative rules are ignored."""
    if eqn.primitive.name not in _CALLS:
        return None
    return next(eqn.params[key] for key in ("jaxpr", "call_jaxpr", "fun_jaxpr", "call", "callee") if key in eqn.params)


def expanded(eqn: Any) -> Any:
    """The program of an operation that holds it as a Python function, traced; None for any other operation."""
    shapes = [jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in eqn.invars if hasattr(v.aval, "dtype")]
    if "_prim" in eqn.params:  # JAX's new kind of primitive; jax_custom_vjp3 turns a custom_vjp into one
        primitive = eqn.params["_prim"]
        return jax.make_jaxpr(
            lambda *flat: jax.tree.leaves(primitive.expand(*jax.tree.unflatten(primitive.in_tree, flat)))
        )(*shapes)
    if eqn.primitive.name == "pallas_call":
        try:
            from jax._src.pallas.hlo_interpreter import pallas_call_hlo_interpret
        except ImportError:
            return None
        parameters = inspect.signature(pallas_call_hlo_interpret).parameters
        params = {key: value for key, value in eqn.params.items() if key in parameters}
        return jax.make_jaxpr(lambda *flat: pallas_call_hlo_interpret(*flat, **params))(*shapes)
    return None
