"""How many floating-point operations a traced program asks for, and the bytes that they would move one by one.

The program is read before the compiler sees it: what the model asks for, the same on every machine, and a loop's body
as often as it runs. XLA's own ``cost_analysis`` counts the body once, and ``jax.experimental.roofline`` counts a
``scan``'s once, too, and may change from one version of JAX to the next; hence this.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np


class Count(NamedTuple):
    """What a program's operations sum up to.

    Attributes:
        matrix: ``{dtype: FLOPs}`` of matrix products and convolutions.
        other: the same of everything else.
        transcendentals: how many of these are.
        moved: bytes, if each operation read its operands and wrote its result.
        notes: why the FLOPs are not exact; none if they are.
    """

    matrix: Counter[str]
    other: Counter[str]
    transcendentals: int = 0
    moved: int = 0
    notes: tuple[str, ...] = ()

    @property
    def flops(self) -> int:
        """All of them."""
        return self.matrix.total() + self.other.total()


def count(program: Any, times: int = 1) -> Count:
    """What a jaxpr that runs so often sums up to, less what none of its results needs; the rules are in ``step_cost``.

    >>> import jax
    >>> program = jax.make_jaxpr(lambda x: jax.lax.fori_loop(0, 10, lambda _, x: jnp.tanh(x @ x), x))(jnp.ones((3, 3)))
    >>> found = count(program)
    >>> dict(found.matrix), found.transcendentals  # 10 times 2 * 3 * 3 * 3, and 3 * 3
    ({'float32': 540}, 90)
    """
    return _sum(_count_one(eqn, times) for eqn in live(program).eqns)


def live(program: Any) -> Any:
    """A program without what none of its results needs."""
    from jax.interpreters.partial_eval import dce_jaxpr

    jaxpr = getattr(program, "jaxpr", program)
    return dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars), True)[0]


def bytes_of(atom: Any) -> int:
    """The bytes of an array; of a number that stands in the program none."""
    dtype = getattr(atom.aval, "dtype", None)
    return 0 if dtype is None or hasattr(atom, "val") else atom.aval.size * dtype.itemsize


def _sum(counts: Iterable[Count]) -> Count:
    matrix, other, transcendentals, moved, notes = Counter(), Counter(), 0, 0, {}
    for one in counts:
        matrix.update(one.matrix)
        other.update(one.other)
        transcendentals += one.transcendentals
        moved += one.moved
        notes |= dict.fromkeys(one.notes)
    return Count(matrix, other, transcendentals, moved, tuple(notes))


def _count_one(eqn: Any, times: int) -> Count:
    name, params = eqn.primitive.name, eqn.params
    if name == "scan":
        return count(params["jaxpr"], times * params["length"])
    if name == "while":
        once = _sum(count(params[part], times) for part in ("body_jaxpr", "cond_jaxpr"))
        return _noting(once, "while: counted as a single round")
    if name == "cond":
        branches = [count(branch, times) for branch in params["branches"]]
        dearest = max(branches, key=lambda branch: (branch.flops, branch.moved))
        alike = all(branch[:3] == dearest[:3] for branch in branches)
        dearest = dearest._replace(notes=_sum(branches).notes)  # what is not counted could make another the dearest
        return dearest if alike else _noting(dearest, "cond: counted as its dearest branch")
    if name in _INNER:
        inner = count(params[_INNER[name]], times)
        return _noting(inner, "shard_map: counted as one device's share") if name == "shard_map" else inner
    found = Count(Counter(), Counter(), moved=times * sum(map(bytes_of, (*eqn.invars, *eqn.outvars))))
    # Where nothing that goes in is floating, what comes out: a number made of bits.
    dtypes = _floating(eqn.invars) or _floating(eqn.outvars)
    if not dtypes or name in _MOVES:
        return found
    if name not in _RULES:
        return _noting(found, f"{name}: not counted")
    # Of several the widest: that is what is computed in.
    dtype, n = np.dtype(max(dtypes, key=lambda dtype: dtype.itemsize)), times * _RULES[name](eqn)
    if name in _MATRIX:
        return found._replace(matrix=Counter({dtype.name: n * (8 if dtype.kind == "c" else 2)}))
    return found._replace(other=Counter({dtype.name: n}), transcendentals=n if name in _TRANSCENDENTALS else 0)


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
    """Pairs of an element of the input and one of the kernel; what padding and dilation put in between is none."""
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


# Where an operation that only wraps a program keeps it; of one with its own gradient, the plain function.
_INNER = dict.fromkeys(("closed_call", "core_call", "custom_jvp_call", "custom_vjp_call"), "call_jaxpr")
_INNER |= dict.fromkeys(("jit", "checkpoint", "remat2", "shard_map"), "jaxpr") | {"custom_vmap_call": "call"}
_MATRIX = {"dot_general": _dot_products, "conv_general_dilated": _conv_products}
_TRANSCENDENTALS = frozenset(
    """acos acosh asin asinh atan atan2 atanh cbrt cos cosh digamma erf erf_inv erfc exp exp2 expm1 lgamma log log1p
    log2 logistic pow rsqrt sin sinh sqrt tan tanh""".split()
)
_ELEMENTWISE = """abs add add_any ceil clamp div eq floor ge gt integer_pow is_finite le lt max min mul ne neg
    nextafter rem round sign square sub""".split()
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
    **dict.fromkeys((*_ELEMENTWISE, *_TRANSCENDENTALS), _result),
    **dict.fromkeys(_REDUCTIONS, _operand),
    **{f"scatter-{kind}": lambda eqn: eqn.invars[2].aval.size for kind in ("add", "max", "min", "mul", "sub")},
    **dict.fromkeys(("reduce_window_max", "reduce_window_min", "reduce_window_sum"), _windows(_result)),
    "select_and_gather_add": _windows(_result),
    "select_and_scatter_add": _windows(_operand),
    "one_minus_square": lambda eqn: 2 * _result(eqn),  # the slope of tanh, since JAX 0.12
    "polynomial": lambda eqn: 2 * (len(eqn.invars) - 2) * _result(eqn),  # by Horner's rule, since JAX 0.12
    "sort": _sort,
}
