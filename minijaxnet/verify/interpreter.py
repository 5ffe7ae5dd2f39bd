"""Run a traced program by our own rules: in float64, without its custom rules, and with its results perturbed.

JAX traces a function once; its jaxpr can then be run operation by operation. Here every float is widened to float64 and
every complex number to complex128, whatever dtype the program has; a function with a derivative rule of its own is
replaced by its plain body; and results can be perturbed, to measure how much the program amplifies that.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax._src import source_info_util

from minijaxnet._jaxpr import called, closed_over, equations, expanded, is_literal
from minijaxnet.verify.perturbation import Perturbation, lost_digits, perturbed
from minijaxnet.verify.widening import is_inexact, wide_dtype

# Operations whose result is one of their operands, or an exact function of it: there is nothing to round.
_EXACT = frozenset(
    """abs argmax argmin bitcast_convert_type broadcast_in_dim ceil clamp complex concatenate conj
    convert_element_type copy copy_p cummax cummin device_put dynamic_slice dynamic_update_slice eq expand_dims floor
    gather ge gt imag iota is_finite le lt max min ne neg nextafter optimization_barrier pad real reduce_and reduce_max
    reduce_min reduce_or reduce_precision reshape rev round scatter scatter_max scatter_min select_and_gather_add
    select_n sharding_constraint sign slice sort split squeeze stop_gradient top_k transpose""".split()
)
# Operations that add up: what rounds is inside, so their operands are perturbed, too.
_SUMS = frozenset(
    """cholesky conv_general_dilated cumlogsumexp cumprod cumsum dot_general eig eigh fft geqrf householder_product lu
    lu_pivots_to_permutation qr reduce_prod reduce_sum reduce_window reduce_window_sum scatter-add scatter_add schur
    select_and_scatter_add svd triangular_solve tridiagonal tridiagonal_solve""".split()
)
# Operations that hold a program of the operands' dtype, or take a float for a row of bits: they keep their dtypes.
_NATIVE = frozenset(
    """bitcast_convert_type custom_linear_solve io_callback nextafter pallas_call pure_callback reduce reduce_window
    select_and_scatter""".split()
)
# Of these, the ones that compute in the dtype they were traced for: their results have no more digits than that.
_COMPUTED_NARROW = frozenset(("custom_linear_solve", "io_callback", "pallas_call", "pure_callback"))
# Operations that hold a program, and can make it anew for another dtype.
_SCATTERS = {f"scatter{kind}": getattr(lax, f"scatter{kind}") for kind in ("", "_add", "_mul", "_min", "_max")}
SCATTER_PARAMS = ("dimension_numbers", "indices_are_sorted", "unique_indices", "mode")
_DTYPE_PARAMS = ("new_dtype", "preferred_element_type", "out_dtype", "dtype")
_EPSILON = float(np.finfo(np.float64).eps)


class Hooks(NamedTuple):
    """What a caller does otherwise on the way; each function gets the operation first.

    Attributes:
        instead: ``instead(operation, operands)``: the results to take instead of its own; None for its own.
        keeps: whether to run an operation as it is, such as a function with a rule that is to stay; not ``wide``.
        carried: ``carried(operation, step, carry)``: what a scan's round begins with; None for its carry as it is.
        ended: ``ended(operation, operands, results, one_more)``: the results to take for those of a scan or a while.
            ``one_more(carry)`` is the carry after another round; None for a scan that reads or returns rows.
    """

    instead: Callable[[Any, list[Any]], list[Any] | None] = lambda eqn, operands: None
    keeps: Callable[[Any], bool] = lambda eqn: False
    carried: Callable[[Any, Any, list[Any]], list[Any]] | None = None
    ended: Callable[[Any, list[Any], list[Any], Any], list[Any]] = lambda eqn, operands, results, one_more: results


NO_HOOKS = Hooks()


class _Mode(NamedTuple):
    """How a program is run; ``salts`` counts the perturbations, ``consts`` holds those of inner programs."""

    perturbation: Perturbation | None
    everything: bool
    wide: bool
    hooks: Hooks
    salts: Iterator[int]
    consts: dict[int, list[Any]]


def interpret(
    program: Any,
    consts: Sequence[Any],
    arguments: Sequence[Any],
    perturbation: Perturbation | None = None,
    *,
    everything: bool = True,
    wide: bool = True,
    hooks: Hooks = NO_HOOKS,
) -> list[Any]:
    """The results of a jaxpr, its custom rules taken out.

    Args:
        program: a jaxpr.
        consts: a value for each of its constants; then, or not at all, for those of the programs inside it.
        arguments: a value for each of its inputs.
        perturbation: of results; None for none.
        everything: whether to perturb all that is rounded, or only values with fewer digits than float64.
        wide: whether to run it with every float in float64, where that is enabled.
        hooks: what to do otherwise.

    Returns:
        A value for each of its outputs.
    """
    mode = _Mode(perturbation, everything, wide, hooks, itertools.count(), {})
    consts = _all_wide(consts, mode)
    own = len(getattr(program, "jaxpr", program).constvars)
    rest = iter(consts[own:])
    for inner in closed_over(program) if len(consts) > own else ():
        mode.consts[id(inner)] = [next(rest) for _ in inner.consts]
    return _run(program, consts[:own], _all_wide(arguments, mode), mode)


def computed_narrow(program: Any) -> Iterator[Any]:
    """The dtypes of fewer digits than float64 that parts of a program can't be run without."""
    for eqn in equations(program):
        if eqn.primitive.name in _COMPUTED_NARROW and expanded(eqn) is None:
            yield from (atom.aval.dtype for atom in eqn.outvars if _is_narrow(atom.aval))


def _run(program: Any, consts: Sequence[Any], arguments: Sequence[Any], mode: _Mode) -> list[Any]:
    jaxpr = getattr(program, "jaxpr", program)
    values = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *arguments), strict=True))

    def read(atom: Any) -> Any:
        return _literal(atom, mode) if is_literal(atom) else values[atom]

    for eqn in jaxpr.eqns:
        if eqn.outvars:
            with source_info_util.user_context(eqn.source_info.traceback):  # what is traced here keeps its line
                results = _operation(eqn, [read(atom) for atom in eqn.invars], mode)
            values.update(zip(eqn.outvars, results, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _run_inner(program: Any, arguments: Sequence[Any], mode: _Mode) -> list[Any]:
    """A program inside a program, with constants of its own."""
    consts = mode.consts.get(id(program))
    return _run(program, _all_wide(getattr(program, "consts", ()), mode) if consts is None else consts, arguments, mode)


def _operation(eqn: Any, operands: list[Any], mode: _Mode) -> list[Any]:
    """An operation that calls or repeats programs; any other by ``_perturbed_operation``."""
    name, params = eqn.primitive.name, eqn.params
    if mode.hooks.keeps(eqn):
        return bind(eqn, operands, wide=mode.wide)
    if (program := called(eqn)) is not None:
        return _run_inner(program, operands, mode)
    if name == "scan":
        return _scan(eqn, operands, mode)
    if name == "while":
        return _while(eqn, operands, mode)
    if name == "cond":
        branches = [lambda *rest, branch=branch: _run_inner(branch, rest, mode) for branch in params["branches"]]
        return lax.switch(operands[0], branches, *operands[1:])
    if name == "shard_map":
        return _on_each_device(params, operands, mode)
    if name == "custom_linear_solve" and mode.perturbation is not None:  # its solver, to perturb what rounds in it
        lengths = params["const_lengths"]
        before = lengths.matvec + lengths.vecmat
        after = before + lengths.solve + lengths.transpose_solve
        return _run_inner(params["jaxprs"].solve, [*operands[before:][: lengths.solve], *operands[after:]], mode)
    if (program := expanded(eqn)) is not None:
        return _run_inner(program, operands, mode)
    if (results := mode.hooks.instead(eqn, operands)) is not None:
        return results
    return _perturbed_operation(eqn, operands, mode)


def _perturbed_operation(eqn: Any, operands: list[Any], mode: _Mode) -> list[Any]:
    name, by = eqn.primitive.name, mode.perturbation
    if by is not None and name in _COMPUTED_NARROW and mode.wide:
        return _narrowed(bind(eqn, _narrowed(operands, eqn.invars, by)), eqn.outvars, by)
    if by is None or not mode.everything:
        return bind(eqn, operands, wide=mode.wide)
    if name in _SUMS:
        operands = [perturbed(operand, by, next(mode.salts)) for operand in operands]
    results = bind(eqn, operands, wide=mode.wide)
    if name in _EXACT:
        return results
    if name in ("add", "add_any", "sub") and is_inexact(results[0]):
        # A sum is off by no more than its smaller term, which may be lost in it; but to leave a kink it is moved.
        (before,) = results
        after = perturbed(before, by, next(mode.salts))
        most = jnp.minimum(jnp.abs(operands[0]), jnp.abs(operands[1])) * (by.size / _EPSILON)
        capped = (jnp.abs(after - before) > most) & (by.lift == 0)
        return [jnp.where(capped, before + jnp.sign(after - before) * most, after)]
    return [perturbed(result, by, next(mode.salts)) for result in results]


def _scan(eqn: Any, operands: list[Any], mode: _Mode) -> list[Any]:
    # What is scanned over has one axis less inside; JAX's versions name the counts differently.
    params = eqn.params
    body_jaxpr = getattr(params["jaxpr"], "jaxpr", params["jaxpr"])
    n_rows, n_stacked = (
        sum(outer.aval.ndim != inner.aval.ndim for outer, inner in zip(*pair, strict=True))
        for pair in ((eqn.invars, body_jaxpr.invars), (eqn.outvars, body_jaxpr.outvars))
    )
    n_carry = len(eqn.outvars) - n_stacked
    n_consts = len(eqn.invars) - n_carry - n_rows
    consts, carry, rows = operands[:n_consts], operands[n_consts:][:n_carry], operands[n_consts + n_carry :]
    carried, steps = mode.hooks.carried, None if mode.hooks.carried is None else jnp.arange(params["length"])

    def body(carry: Any, step_and_row: Any) -> tuple[Any, Any]:
        step, row = step_and_row
        carry = carry if carried is None else carried(eqn, step, carry)
        results = _run_inner(params["jaxpr"], [*consts, *carry, *row], mode)
        return results[:n_carry], results[n_carry:]

    end, stacked = lax.scan(body, carry, (steps, rows), length=params["length"], reverse=params["reverse"])
    one_more = None if rows or stacked else lambda carry: body(carry, (np.int32(0), []))[0]
    return mode.hooks.ended(eqn, operands, [*end, *stacked], one_more)


def _while(eqn: Any, operands: list[Any], mode: _Mode) -> list[Any]:
    """A loop; under vmap with a condition for each replica, which stays as it is while others go on.

    Perturbed, an iteration might never settle: it makes as many rounds as it does unperturbed.
    """
    params, still = eqn.params, mode._replace(perturbation=None)
    n_cond, n_body = params["cond_nconsts"], params["body_nconsts"]
    of_cond, of_body, carry = operands[:n_cond], operands[n_cond:][:n_body], operands[n_cond + n_body :]

    def goes_on(carry: list[Any]) -> Any:
        return _run_inner(params["cond_jaxpr"], [*of_cond, *carry], still)[0]

    def one_round(carry: list[Any], active: Any, mode: _Mode) -> list[Any]:
        results = _run_inner(params["body_jaxpr"], [*of_body, *carry], mode)
        if not active.ndim:
            return results
        masks = [active.reshape(active.shape + (1,) * (x.ndim - active.ndim)) for x in carry]
        return [jnp.where(mask, new, old) for mask, new, old in zip(masks, results, carry, strict=True)]

    def counted(state: tuple[Any, list[Any]]) -> tuple[Any, list[Any]]:
        active = goes_on(state[1])
        return state[0] + active, one_round(state[1], active, still)

    none = jnp.zeros_like(goes_on(carry), jnp.int32)
    rounds, end = lax.while_loop(lambda state: jnp.any(goes_on(state[1])), counted, (none, carry))
    if mode.perturbation is not None and mode.everything:
        end = lax.fori_loop(0, jnp.max(rounds), lambda k, carry: one_round(carry, k < rounds, mode), carry)
    one_more = lambda carry: _run_inner(params["body_jaxpr"], [*of_body, *carry], mode)  # noqa: E731
    return mode.hooks.ended(eqn, operands, end, one_more)


def _on_each_device(params: Any, operands: list[Any], mode: _Mode) -> list[Any]:
    """A program of each device, run there on its part of the operands."""
    mapped = jax.shard_map(
        lambda *parts: _run_inner(params["jaxpr"], parts, mode),
        mesh=params["mesh"],
        in_specs=tuple(params["in_specs"]),
        out_specs=list(params["out_specs"]),
        check_vma=params["check_vma"],
        # JAX 0.10 and 0.12 name them differently.
        axis_names=set(params["newly_manual_axes"] if "newly_manual_axes" in params else params["manual_axes"]),
    )
    return list(mapped(*operands))


def bind(eqn: Any, operands: list[Any], *, wide: bool = True) -> list[Any]:
    """The operation itself, on float64 whatever it was traced for; where that cannot be, in its own dtypes."""
    params = eqn.params | ({"precision": None} if wide and "precision" in eqn.params else {})  # of a product: in full
    if wide and eqn.primitive.name == "reduce_precision":
        return operands
    if wide and any(_is_narrow(atom.aval) for atom in (*eqn.invars, *eqn.outvars)):
        if scatter := _SCATTERS.get(eqn.primitive.name.replace("-", "_")):
            return [scatter(*operands, **{key: params[key] for key in SCATTER_PARAMS})]
        if eqn.primitive.name in _NATIVE:
            pairs = zip(operands, eqn.invars, strict=True)
            operands = [lax.convert_element_type(x, v.aval.dtype) if _is_narrow(v.aval) else x for x, v in pairs]
        else:
            for key in _DTYPE_PARAMS:
                if (dtype := params.get(key)) is not None and jnp.issubdtype(dtype, jnp.inexact):
                    params[key] = wide_dtype(dtype)
    results = eqn.primitive.bind(*operands, **eqn.primitive.get_bind_params(params))
    results = results if eqn.primitive.multiple_results else [results]
    return [_wide(result) for result in results] if wide else list(results)


def _narrowed(values: list[Any], atoms: Sequence[Any], by: Perturbation) -> list[Any]:
    """Values that have the digits of the dtypes they were traced for, perturbed in the last of these."""
    pairs = zip(values, atoms, strict=True)
    return [_in_last_digit(x, float(jnp.finfo(v.aval.dtype).eps), by) if _is_narrow(v.aval) else x for x, v in pairs]


def _in_last_digit(value: Any, unit: float, by: Perturbation) -> Any:
    """A value perturbed in its last digit, of this relative size; equal values are moved alike."""
    return perturbed(value, Perturbation(size=by.narrow * unit, seed=by.seed), 0)


def _literal(atom: Any, mode: _Mode) -> Any:
    (value,) = _all_wide([jnp.asarray(atom.val, atom.aval.dtype)], mode)
    if mode.perturbation is None or not hasattr(atom.aval, "dtype"):
        return value
    lost = lost_digits(atom.val, atom.aval.dtype)
    return _in_last_digit(value, lost.unit, mode.perturbation) if lost.mask.any() else value


def _is_narrow(aval: Any) -> bool:
    return is_inexact(aval) and aval.dtype not in (np.float64, np.complex128)


def _all_wide(values: Sequence[Any], mode: _Mode) -> list[Any]:
    return [_wide(value) for value in values] if mode.wide else list(values)


def _wide(value: Any) -> Any:
    if not is_inexact(value) and not isinstance(value, float | complex):
        return value
    value = jnp.asarray(value)
    return lax.convert_element_type(value, wide_dtype(value.dtype))
