"""One walk over JAX's programs: the operations of a jaxpr, and the programs inside them."""

from collections.abc import Iterator
from typing import Any


def inner_programs(eqn: Any) -> Iterator[Any]:
    """The programs that an operation holds: a loop's body, branches, what is called.

    >>> import jax
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

    >>> import jax
    >>> [eqn.primitive.name for eqn in equations(jax.make_jaxpr(jax.jit(lambda x: 2 * x))(1.0))]
    ['jit', 'mul']
    """
    for eqn in getattr(program, "jaxpr", program).eqns:
        yield eqn
        for inner in inner_programs(eqn):
            yield from equations(inner)


def is_literal(atom: Any) -> bool:
    """Whether an operand is a number that stands in the program."""
    return hasattr(atom, "val")


# Operations that only call a program; for those with a custom rule it is the plain function.
_CALLS = frozenset(
    """checkpoint closed_call core_call custom_jvp_call custom_vjp_call custom_vjp_call_jaxpr custom_vmap_call jit
    linear_call pjit remat remat2""".split()
)


def called(eqn: Any) -> Any:
    """The program that an operation does nothing but call, without a rule of its own; None for any other operation."""
    if eqn.primitive.name not in _CALLS:
        return None
    return next(eqn.params[key] for key in ("jaxpr", "call_jaxpr", "fun_jaxpr", "call", "callee") if key in eqn.params)
