"""Loops of compiled steps in which an accelerator does not wait for the host at each step.

On a GPU the host runs XLA's loops. Where the number of rounds is not fixed, the host copies the condition from the
device after each round, and the next round waits for the copy. A loop with a fixed number of rounds is launched without
waiting. So on an accelerator the condition is evaluated once per block of steps, and a block has a fixed number of
rounds. A CPU does not have to wait, and XLA compiles a small plain loop there to one native function, but not a nested
one.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jax.core import Tracer

from minijaxnet._types import PyTree

Carry = TypeVar("Carry")

# Rounds of a block. Even with steps of a few us a block takes much longer than one wait for the host, about 20 us.
_BLOCK = 64


def block_on(tree: PyTree) -> int:
    """The number of rounds in a block on the device of these arrays: 1 on a CPU.

    >>> block_on(jax.numpy.zeros(3)) == (1 if jax.default_backend() == "cpu" else 64)
    True
    """
    return 1 if platform_of(tree) == "cpu" else _BLOCK


def platform_of(tree: PyTree) -> str:
    """The platform of the first array, or of new arrays if there is none: "cpu", "gpu" or "tpu"."""
    for leaf in jax.tree.leaves(tree):
        if isinstance(leaf, jax.Array) and not isinstance(leaf, Tracer):
            return next(iter(leaf.devices())).platform
    default = jax.config.jax_default_device  # pyright: ignore[reportAttributeAccessIssue] - not in the stubs
    return getattr(default, "platform", default) or jax.default_backend()


def repeated_while(
    may_take: Callable[[Carry, int], Any], body: Callable[[Carry], Carry], carry: Carry, block: int
) -> Carry:
    """``while may_take(carry, 1): carry = body(carry)``, first in blocks of rounds, then the rest one by one.

    Args:
        may_take: ``may_take(carry, rounds)``: whether that many more rounds may be taken. Where it becomes false within
            a block, the remaining rounds of the block must not change any part of the carry that is used later.
        body: one round.
        carry: the start of the first round.
        block: the number of rounds in a block.

    Returns:
        The carry after the last round, the same bits for any ``block``; the last digits of a derivative may differ.

    Example:
        >>> count_to_ten = lambda k, rounds: 10 - k >= rounds
        >>> [int(repeated_while(count_to_ten, lambda k: k + 1, 0, block)) for block in (1, 4)]
        [10, 10]
    """
    if block > 1:
        carry = lax.while_loop(
            lambda carry: may_take(carry, block),
            lambda carry: lax.fori_loop(0, block, lambda _, carry: body(carry), carry),
            carry,
        )
    return lax.while_loop(lambda carry: may_take(carry, 1), body, carry)


def repeated(rounds: Any, body: Callable[[Any, Carry], Carry], carry: Carry, block: int) -> Carry:
    """``lax.fori_loop(0, rounds, body, carry)``, first in blocks of rounds, then the rest one by one.

    >>> [repeated(10, lambda k, total: total + k, 0, block).item() for block in (1, 4)]
    [45, 45]
    """

    def may_take(counted: tuple[Any, Carry], more: int) -> Any:
        return rounds - counted[0] >= more

    def one_round(counted: tuple[Any, Carry]) -> tuple[Any, Carry]:
        k, carry = counted
        return k + 1, body(k, carry)

    return repeated_while(may_take, one_round, (jnp.int32(0), carry), block)[1]
