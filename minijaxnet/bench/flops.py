"""How many floating-point operations a traced program asks for.

The program is read before the compiler sees it: the count is that of the model, the same on every machine, and the body
of a loop counts as often as it runs. XLA's ``cost_analysis`` and ``jax.experimental.roofline`` count a body once.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from minijaxnet._jaxpr import called


class Count(NamedTuple):
    """The operations of a program.

    Attributes:
        matrix: ``{dtype: FLOPs}`` of matrix products and convolutions.
        other: the same of everything else.
        notes: why the FLOPs are not exact; empty if they are.
    """

    matrix: Mapping[str, int]
    other: Mapping[str, int]
    notes: tuple[str, ...] = ()

    @property
    def flops(self) -> int:
        """All of them."""
        return sum(self.matrix.values()) + sum(self.other.values())


def count(program: Any, times: int = 1) -> Count:
    """Count the operations of a jaxpr that runs so many times, by the rules in ``step_cost``.

    What no result needs is not counted.

    >>> import jax
    >>> program = jax.make_jaxpr(lambda x: jax.lax.fori_loop(0, 10, lambda _, x: jnp.tanh(x @ x), x))(jnp.ones((3, 3)))
    >>> found = count(program)
    >>> found.matrix, found.other  # 10 times 2 * 3 * 3 * 3, and 10 times 3 * 3
    ({'float32': 540}, {'float32': 90})
    """
    return _sum(_count_one(eqn, times) for eqn in live(program).eqns)


def live(program: Any) -> Any:
    """A program without the operations that no result needs."""
    from jax.interpreters.partial_eval import dce_jaxpr

    jaxpr = getattr(program, "jaxpr", program)
    return dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars), True)[0]


def _sum(counts: Iterable[Count]) -> Count:
    matrix, other, notes = Counter(), Counter(), {}
    for one in counts:
        matrix.update(one.matrix)
        other.update(one.other)
        notes |= dict.fromkeys(one.notes)
    return Count(dict(matrix), dict(other), tuple(notes))


def _count_one(eqn: Any, times: int) -> Count:
    name, params = eqn.primitive.name, eqn.params
    if name == "scan":
        return count(params["jaxpr"], times * params["length"])
    if name == "while":
        once = _sum(count(params[part], times) for part in ("body_jaxpr", "cond_jaxpr"))
        return _noting(once, "while: counted as one round")
    if name == "cond":
        branches = [count(branch, times) for branch in params["branches"]]
        largest = max(branches, key=lambda branch: branch.flops)
        is_exact = all(branch[:2] == largest[:2] for branch in branches)
        # An operation without a rule may be in any branch, so the notes of all of them matter.
        largest = largest._replace(notes=_sum(branches).notes)
        return largest if is_exact else _noting(largest, "cond: counted as its branch with the most FLOPs")
    if name == "shard_map":
        return _noting(count(params["jaxpr"], times), "shard_map: counted as the share of one device")
    if (inner := called(eqn)) is not None:
        return count(inner, times)
    # An operation without floating-point operands has the dtype of its result, such as a random number made of bits.
    dtypes = _floating(eqn.invars) or _floating(eqn.outvars)
    if not dtypes or name in _MOVES:
        return Count({}, {})
    if name not in _RULES:
        return Count({}, {}, (f"{name}: not counted",))
    # Of several dtypes the widest, in which it computes.
    dtype, n = np.dtype(max(dtypes, key=lambda dtype: dtype.itemsize)), times * _RULES[name](eqn)
    if name in _MATRIX:
        return Count({dtype.name: n * (8 if dtype.kind == "c" else 2)}, {})
    return Count({}, {dtype.name: n} if n else {})


def _noting(found: Count, note: str) -> Count:
    return found._replace(notes=(*found.notes, note))


def _floating(atoms: Sequence[Any]) -> list[Any]:
    dtypes = [getattr(atom.aval, "dtype", np.dtype(bool)) for atom in atoms]
    return [dtype for dtype in dtypes if jnp.issubdtype(dtype, jnp.inexact)]


def _result(eqn: Any) -> int:
    return eqn.outvars[0].aval.size


def _operand(eqn: Any) -> int:
    return eqn.invars[0].aval.size


def _windows(n_windows: Callable[[Any], int]) -> Callable[[Any], int]:
    return lambda eqn: n_windows(eqn) * math.prod(eqn.params["window_dimensions"])


def _sort(eqn: Any) -> int:
    return round(_operand(eqn) * math.log2(max(eqn.invars[0].aval.shape[eqn.params["dimension"]], 1)))


def _dot_products(eqn: Any) -> int:
    ((contracted, _), _), left = eqn.params["dimension_numbers"], eqn.invars[0].aval
    return _result(eqn) * math.prod(left.shape[axis] for axis in contracted)


def _conv_products(eqn: Any) -> int:
    """Pairs of an element of the input and one of the kernel; an element that padding or dilation adds has none."""
    params, (image, kernel), result = eqn.params, [atom.aval for atom in eqn.invars], eqn.outvars[0].aval
    axes = params["dimension_numbers"]
    batch, features, *places = (result.shape[axis] for axis in axes.out_spec)
    products = batch * features * kernel.shape[axes.rhs_spec[1]]
    for i, n_places in enumerate(places):
        gap, n, n_kernel = (
            params["lhs_dilation"][i],
            image.shape[axes.lhs_spec[i + 2]],
            kernel.shape[axes.rhs_spec[i + 2]],
        )
        starts = np.arange(n_places) * params["window_strides"][i] - params["padding"][i][0]
        at = np.add.outer(starts, np.arange(n_kernel) * params["rhs_dilation"][i])
        products *= int(np.sum((at >= 0) & (at <= (n - 1) * gap) & (at % gap == 0)))
    return products


_MATRIX = {"dot_general": _dot_products, "conv_general_dilated": _conv_products}
_ELEMENTWISE = """abs acos acosh add add_any asin asinh atan atan2 atanh cbrt ceil clamp cos cosh digamma div eq erf
    erf_inv erfc exp exp2 expm1 floor ge gt integer_pow is_finite le lgamma log log1p log2 logistic lt max min mul ne
    neg nextafter pow rem round rsqrt sign sin sinh sqrt square sub tan tanh""".split()
_REDUCTIONS = """argmax argmin cumlogsumexp cummax cummin cumprod cumsum pmax pmin psum psum_invariant reduce
    reduce_max reduce_min reduce_prod reduce_sum""".split()
_MOVES = frozenset(
    """bitcast_convert_type broadcast_in_dim complex concatenate conj convert_element_type copy device_put
    dynamic_slice dynamic_update_slice empty empty2 expand_dims gather imag iota name optimization_barrier pad pcast
    pvary real reduce_precision reshape reshard rev scatter select_n sharding_constraint slice split squeeze stack
    stop_gradient tile transpose unstack""".split()
)
_RULES: dict[str, Callable[[Any], int]] = {
    **_MATRIX,
    **dict.fromkeys(_ELEMENTWISE, _result),
    **dict.fromkeys(_REDUCTIONS, _operand),
    **{f"scatter-{kind}": lambda eqn: eqn.invars[2].aval.size for kind in ("add", "max", "min", "mul", "sub")},
    **dict.fromkeys(("reduce_window_max", "reduce_window_min", "reduce_window_sum"), _windows(_result)),
    "select_and_gather_add": _windows(_result),
    "select_and_scatter_add": _windows(_operand),
    "one_minus_square": lambda eqn: 2 * _result(eqn),  # of the gradient of tanh, since JAX 0.12
    "polynomial": lambda eqn: 2 * (len(eqn.invars) - 2) * _result(eqn),  # by Horner's rule, since JAX 0.12
    "sort": _sort,
}
