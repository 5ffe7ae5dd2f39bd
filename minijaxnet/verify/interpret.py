"""Carry out a traced program our own way: in float64, without custom rules, and with its roundings made larger.

Rounding is what makes two right rules differ, so it has to be measured. After every operation that rounds, the result
is moved by a relative ``+-size`` far above float64's epsilon: how far the end then moves, over ``size``, is how much
the program amplifies rounding errors, element by element (Parker, "Monte Carlo arithmetic", 1997). The signs come from
a hash of the value's bits, its place and a seed, so that loops need no counter, and one compiled program serves all.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


class Moves(NamedTuple):
    """How far to move results; all are scalars, float64 but for the seed, so that any values share a program.

    A value v becomes ``v * (1 + size * s)``, a zero becomes ``lift * s``, where
    ``s = random * (+1 or -1) + shift + ramp * (from 1 at the first element to -1 at the last) + turn * (1, then -1)``.

    Attributes:
        size: the relative move.
        lift: what takes a zero off its kink.
        random: how much of s is a random sign.
        shift: the part of s that is the same everywhere.
        ramp: the part of s that falls with the element's place.
        turn: the part of s that changes its sign from one array to the next.
        inputs: 1 to move what is differentiated, too, and 0 not to.
        literals: moves of numbers that stand in the program with fewer digits than float64 has, in their own epsilons.
        seed: of the random signs, uint32.
    """

    size: Any = 0.0
    lift: Any = 0.0
    random: Any = 1.0
    shift: Any = 0.0
    ramp: Any = 0.0
    turn: Any = 0.0
    inputs: Any = 0.0
    literals: Any = 0.0
    seed: Any = np.uint32(0)


# Operations whose result is one of their operands, or an exact function of it: there is nothing to round.
_EXACT = frozenset(
    """abs argmax argmin bitcast_convert_type broadcast_in_dim ceil clamp concatenate convert_element_type copy copy_p
    cummax cummin device_put dynamic_slice dynamic_update_slice eq expand_dims floor gather ge gt iota is_finite le lt
    max min ne neg nextafter optimization_barrier pad reduce_and reduce_max reduce_min reduce_or reduce_precision
    reshape rev round scatter scatter_max scatter_min select_and_gather_add select_n sharding_constraint sign slice
    sort split squeeze stop_gradient top_k transpose""".split()
)
# Operations that add up: what rounds is inside, so their operands are moved, too.
_SUMS = frozenset(
    """cholesky conv_general_dilated cumlogsumexp cumprod cumsum dot_general eig eigh fft geqrf householder_product lu
    lu_pivots_to_permutation qr reduce_prod reduce_sum reduce_window reduce_window_sum scatter-add scatter_add schur
    select_and_scatter_add svd triangular_solve tridiagonal tridiagonal_solve""".split()
)
# Operations that only wrap a program; for those with a custom rule it is the plain function.
_WRAPPERS = frozenset(
    """checkpoint closed_call core_call custom_jvp_call custom_vjp_call custom_vjp_call_jaxpr custom_vmap_call jit pjit
    remat remat2""".split()
)
# Operations whose parameters hold a program of the operands' dtype, or to whom a float is a row of bits.
_NATIVE = frozenset(
    """bitcast_convert_type custom_linear_solve io_callback nextafter pallas_call pure_callback reduce reduce_window
    scatter-add scatter-mul scatter scatter_add scatter_max scatter_min scatter_mul select_and_scatter
    select_and_scatter_add""".split()
)
_EPSILON = float(np.finfo(np.float64).eps)
_DTYPE_PARAMS = ("new_dtype", "preferred_element_type", "out_dtype", "dtype")


class _Way(NamedTuple):
    """How a program is carried out; each move takes its salt from a counter."""

    moves: Moves | None
    wide: bool
    instead: Callable[[Any, list[Any]], list[Any] | None]
    salts: Iterator[int]


def interpret(
    program: Any,
    consts: Sequence[Any],
    arguments: Sequence[Any],
    moves: Moves | None = None,
    *,
    wide: bool = True,
    instead: Callable[[Any, list[Any]], list[Any] | None] = lambda eqn, operands: None,
) -> list[Any]:
    """The results of a jaxpr, its custom rules taken out.

    Args:
        program: a jaxpr.
        consts: a value for each of its constants.
        arguments: a value for each of its inputs.
        moves: how far to move what rounds; None to move nothing.
        wide: whether to carry it out with every float in float64, where that is enabled.
        instead: called with each operation and its operands; unless it returns None, that stands for their result.

    Returns:
        A value for each of its outputs.
    """
    way = _Way(moves, wide, instead, itertools.count())
    return _run(program, _all_wide(consts, way), _all_wide(arguments, way), way)


def narrow_literals(program: Any) -> bool:
    """Whether a number stands in the program that a dtype written by hand has robbed of digits."""
    return any(_is_literal(atom) and _is_rounded(atom) for eqn in equations(program) for atom in eqn.invars)


def equations(program: Any) -> Iterator[Any]:
    """All equations of a program and of those inside it."""
    for eqn in getattr(program, "jaxpr", program).eqns:
        yield eqn
        for value in eqn.params.values():
            for inner in value if isinstance(value, tuple | list) else [value]:
                if hasattr(getattr(inner, "jaxpr", inner), "eqns"):
                    yield from equations(inner)


def _run(program: Any, consts: Sequence[Any], arguments: Sequence[Any], way: _Way) -> list[Any]:
    jaxpr = getattr(program, "jaxpr", program)
    values = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *arguments), strict=True))

    def read(atom: Any) -> Any:
        return _literal(atom, way) if _is_literal(atom) else values[atom]

    for eqn in jaxpr.eqns:
        if eqn.outvars:
            results = _carry_out(eqn, [read(atom) for atom in eqn.invars], way)
            values.update(zip(eqn.outvars, results, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _run_inner(program: Any, arguments: Sequence[Any], way: _Way) -> list[Any]:
    """A program inside a program, with constants of its own."""
    return _run(program, _all_wide(getattr(program, "consts", ()), way), arguments, way)


def _carry_out(eqn: Any, operands: list[Any], way: _Way) -> list[Any]:
    name, params, moves = eqn.primitive.name, eqn.params, way.moves

    def inner(program: Any, arguments: Sequence[Any]) -> list[Any]:
        return _run_inner(program, arguments, way)

    if name in _WRAPPERS:
        return inner(
            next(params[key] for key in ("jaxpr", "call_jaxpr", "fun_jaxpr", "call") if key in params), operands
        )
    if name == "scan":
        # What is scanned over has one axis less inside; JAX's versions name the counts differently.
        body_jaxpr = getattr(params["jaxpr"], "jaxpr", params["jaxpr"])
        n_rows, n_stacked = (
            sum(outer.aval.ndim != inner.aval.ndim for outer, inner in zip(*pair, strict=True))
            for pair in ((eqn.invars, body_jaxpr.invars), (eqn.outvars, body_jaxpr.outvars))
        )
        n_carry = len(eqn.outvars) - n_stacked
        n_consts = len(eqn.invars) - n_carry - n_rows
        consts, carry, rows = operands[:n_consts], operands[n_consts:][:n_carry], operands[n_consts + n_carry :]

        def body(carry: Any, row: Any) -> tuple[Any, Any]:
            results = inner(params["jaxpr"], [*consts, *carry, *row])
            return results[:n_carry], results[n_carry:]

        end, stacked = lax.scan(body, carry, rows, length=params["length"], reverse=params["reverse"])
        return [*end, *stacked]
    if name == "while":
        n_cond, n_body = params["cond_nconsts"], params["body_nconsts"]
        of_cond, of_body, carry = operands[:n_cond], operands[n_cond:][:n_body], operands[n_cond + n_body :]
        return _while(params, of_cond, of_body, carry, way)
    if name == "cond":
        branches = [lambda *rest, branch=branch: inner(branch, rest) for branch in params["branches"]]
        return lax.switch(operands[0], branches, *operands[1:])
    if name == "shard_map":
        return _on_each_device(params, operands, way)
    if name == "custom_linear_solve" and moves is not None:  # its solver, so that what rounds in there is seen
        lengths, programs = params["const_lengths"], params["jaxprs"]
        before = lengths.matvec + lengths.vecmat
        after = before + lengths.solve + lengths.transpose_solve
        return inner(programs.solve, [*operands[before : before + lengths.solve], *operands[after:]])

    if (results := way.instead(eqn, operands)) is not None:
        return results
    if moves is not None and name in _SUMS:
        operands = [move(operand, moves, next(way.salts)) for operand in operands]
    results = bind(eqn, operands, wide=way.wide)
    if moves is None or name in _EXACT:
        return results
    if name in ("add", "add_any", "sub") and _is_floating(results[0]):
        # A sum is off by no more than its smaller term, which may be lost in it.
        (before,) = results
        after = move(before, moves, next(way.salts))
        most = jnp.minimum(jnp.abs(operands[0]), jnp.abs(operands[1])) * (moves.size / _EPSILON)
        return [jnp.where(jnp.abs(after - before) > most, before + jnp.sign(after - before) * most, after)]
    return [move(result, moves, next(way.salts)) for result in results]


def _on_each_device(params: Any, operands: list[Any], way: _Way) -> list[Any]:
    """A program of each device, carried out there with its part of the operands."""
    mapped = jax.shard_map(
        lambda *parts: _run_inner(params["jaxpr"], parts, way),
        mesh=params["mesh"],
        in_specs=tuple(params["in_specs"]),
        out_specs=list(params["out_specs"]),
        check_vma=params["check_vma"],
        # JAX 0.10 and 0.12 name them differently.
        axis_names=set(params["newly_manual_axes"] if "newly_manual_axes" in params else params["manual_axes"]),
    )
    return list(mapped(*operands))


def _while(params: Any, of_cond: list[Any], of_body: list[Any], carry: list[Any], way: _Way) -> list[Any]:
    """A loop; under vmap with a condition for each replica, which then rests while others go on.

    Moved, an iteration might never settle: it makes as many rounds as it does when left alone.
    """
    still = way._replace(moves=None)

    def goes_on(carry: list[Any]) -> Any:
        return _run_inner(params["cond_jaxpr"], [*of_cond, *carry], still)[0]

    def one_round(carry: list[Any], awake: Any, way: _Way) -> list[Any]:
        results = _run_inner(params["body_jaxpr"], [*of_body, *carry], way)
        if not awake.ndim:
            return results
        masks = [awake.reshape(awake.shape + (1,) * (x.ndim - awake.ndim)) for x in carry]
        return [jnp.where(mask, new, old) for mask, new, old in zip(masks, results, carry, strict=True)]

    def counted(state: tuple[Any, list[Any]]) -> tuple[Any, list[Any]]:
        awake = goes_on(state[1])
        return state[0] + awake, one_round(state[1], awake, still)

    none = jnp.zeros_like(goes_on(carry), jnp.int32)
    rounds, end = lax.while_loop(lambda state: jnp.any(goes_on(state[1])), counted, (none, carry))
    if way.moves is None:
        return end
    return lax.fori_loop(0, jnp.max(rounds), lambda k, carry: one_round(carry, k < rounds, way), carry)


def bind(eqn: Any, operands: list[Any], *, wide: bool = True) -> list[Any]:
    """The operation itself, on float64 whatever it was traced for; where that cannot be, in its own dtypes."""
    params = dict(eqn.params)
    if wide and any(_is_narrow(atom.aval) for atom in (*eqn.invars, *eqn.outvars)):
        if eqn.primitive.name == "reduce_precision":
            return operands
        if eqn.primitive.name in _NATIVE:
            pairs = zip(operands, eqn.invars, strict=True)
            operands = [lax.convert_element_type(x, v.aval.dtype) if _is_narrow(v.aval) else x for x, v in pairs]
        else:
            for key in _DTYPE_PARAMS:
                dtype = params.get(key)
                if dtype is not None and jnp.issubdtype(dtype, jnp.floating):
                    params[key] = np.dtype(np.float64)
    results = eqn.primitive.bind(*operands, **eqn.primitive.get_bind_params(params))
    results = results if eqn.primitive.multiple_results else [results]
    return [_wide(result) for result in results] if wide else list(results)


def move(value: Any, moves: Moves, salt: int) -> Any:
    """A floating value moved, any other as it is."""
    if not _is_floating(value) or value.size == 0:
        return value
    place = lax.iota(jnp.uint64, value.size).reshape(value.shape)
    bits = lax.bitcast_convert_type(value, jnp.uint64)
    # Odd multipliers with well mixed bits, as in splitmix64 (Steele, Lea and Flood, 2014).
    bits = bits ^ (place * np.uint64(0x9E3779B97F4A7C15))
    bits = bits + (moves.seed.astype(jnp.uint64) + np.uint64(salt + 1)) * np.uint64(0xD1B54A32D192ED03)
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    random = jnp.where(bits >> np.uint64(63) == 0, 1.0, -1.0)
    falling = 1 - 2 * place.astype(jnp.float64) / max(value.size - 1, 1)
    s = moves.random * random + moves.shift + moves.ramp * falling + moves.turn * (1 - 2 * (salt % 2))
    return jnp.where((value == 0) & (moves.lift > 0), moves.lift * s, value * (1 + moves.size * s))


def _literal(atom: Any, way: _Way) -> Any:
    (value,) = _all_wide([jnp.asarray(atom.val, atom.aval.dtype)], way)
    moves = way.moves
    if moves is None or not _is_rounded(atom):
        return value
    epsilon = float(jnp.finfo(atom.aval.dtype).eps)
    return move(value, moves._replace(size=moves.literals * epsilon, lift=0.0 * moves.lift), next(way.salts))


def _is_literal(atom: Any) -> bool:
    return hasattr(atom, "val")


def _is_rounded(atom: Any) -> bool:
    """Whether a literal has fewer digits than float64, and some that matter: not 2, not 0.5."""
    if not _is_narrow(atom.aval):
        return False
    value = float(np.asarray(atom.val, np.float64))
    return bool(np.isfinite(value)) and (value * 64) % 1 != 0


def _is_narrow(aval: Any) -> bool:
    dtype = getattr(aval, "dtype", None)
    return dtype is not None and jnp.issubdtype(dtype, jnp.floating) and dtype != jnp.float64


def _is_floating(value: Any) -> bool:
    return hasattr(value, "dtype") and jnp.issubdtype(value.dtype, jnp.floating)


def _all_wide(values: Sequence[Any], way: _Way) -> list[Any]:
    return [_wide(value) for value in values] if way.wide else list(values)


def _wide(value: Any) -> Any:
    if not _is_floating(value) and not isinstance(value, float):
        return value
    return lax.convert_element_type(jnp.asarray(value), jnp.float64)
