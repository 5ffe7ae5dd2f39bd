"""How many floating-point operations a traced program asks for, and the bytes that they would move one by one.

The program is read before the compiler sees it: what the model asks for, the same on every machine, and a loop's body
as often as it runs. XLA's own ``cost_analysis`` counts the body once, and ``jax.experimental.roofline`` counts a
``scan``'s once, too, and may change from one version of JAX to the next; hence this.
"""

import functools
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax.numpy as jnp
import numpy as np

_TRANSCENDENTALS = frozenset(
    """acos acosh asin asinh atan atan2 atanh bessel_i0e bessel_i1e cbrt cos cosh digamma erf erf_inv erfc exp exp2
    expm1 igamma igamma_grad_a igammac lgamma log log1p logistic polygamma pow random_gamma_grad
    regularized_incomplete_beta rsqrt sin sinh sqrt tan tanh zeta""".split()
)
_ELEMENTWISE = frozenset(
    """abs add add_any ceil clamp div eq eq_to floor ge gt integer_pow is_finite le le_to lt lt_to max min mul ne neg
    nextafter rem round sign square sub""".split()
)
_REDUCTIONS = frozenset(
    """argmax argmin cumlogsumexp cummax cummin cumprod cumsum pmax pmin psum psum2 psum_invariant reduce reduce_max
    reduce_min reduce_prod reduce_scatter reduce_sum""".split()
)
_SCATTERS = frozenset(f"scatter{joint}{kind}" for joint in "-_" for kind in ("add", "max", "min", "mul", "sub"))
_MOVES = frozenset(
    """all_gather all_gather_invariant all_to_all bitcast_convert_type broadcast_in_dim complex concatenate conj
    convert_element_type copy copy_p device_put dynamic_slice dynamic_update_slice empty expand_dims gather imag iota
    layout_constraint mesh_cast name optimization_barrier pad pbroadcast pcast ppermute pvary real reduce_precision
    reshape reshard rev scatter select_n sharding_constraint slice split squeeze stop_gradient transpose""".split()
)
# Operations that hold a program that does not say how often it runs.
_OPAQUE = frozenset("custom_linear_solve pallas_call reduce_window run_state".split())
# Where an operation that only wraps a program keeps it; of one with a custom rule, the plain function.
_INNER = ("jaxpr", "call_jaxpr", "fun_jaxpr", "call")


@dataclass(frozen=True)
class Count:
    """What a program's operations sum up to.

    Attributes:
        matrix: ``{dtype: FLOPs}`` of matrix products and convolutions.
        other: the same of everything else.
        transcendentals: how many of these are.
        moved: bytes, if each operation read its operands and wrote its result.
        exact: whether the FLOPs are.
        notes: how something was counted that can be counted in more than one way.
    """

    matrix: Counter[str] = field(default_factory=Counter)
    other: Counter[str] = field(default_factory=Counter)
    transcendentals: int = 0
    moved: int = 0
    exact: bool = True
    notes: tuple[str, ...] = ()

    @property
    def flops(self) -> int:
        """All of them."""
        return self.matrix.total() + self.other.total()

    def plus(self, more: "Count") -> "Count":
        """Both, one after the other."""
        return Count(
            self.matrix + more.matrix,
            self.other + more.other,
            self.transcendentals + more.transcendentals,
            self.moved + more.moved,
            self.exact and more.exact,
            tuple(dict.fromkeys((*self.notes, *more.notes))),
        )

    def times(self, n: int) -> "Count":
        """The same ``n`` times."""
        matrix, other = (
            Counter({dtype: n * flops for dtype, flops in part.items()}) for part in (self.matrix, self.other)
        )
        return Count(matrix, other, n * self.transcendentals, n * self.moved, self.exact, self.notes)

    def noting(self, note: str, *, exact: bool = False) -> "Count":
        """The same with a note, and by default no longer exact."""
        return replace(self, exact=exact, notes=tuple(dict.fromkeys((*self.notes, note))))


def count(program: Any) -> Count:
    """What a jaxpr, as ``live`` returns it, sums up to; the rules are in ``step_cost``.

    >>> import jax
    >>> program = jax.make_jaxpr(lambda x: jax.lax.fori_loop(0, 10, lambda _, x: jnp.tanh(x @ x), x))(jnp.ones((3, 3)))
    >>> found = count(live(program))
    >>> dict(found.matrix), found.transcendentals  # 10 times 2 * 3 * 3 * 3, and 3 * 3
    ({'float32': 540}, 90)
    """
    return _sum(program, {})


def live(program: Any) -> Any:
    """A program without what none of its results needs."""
    from jax.interpreters.partial_eval import dce_jaxpr

    jaxpr = getattr(program, "jaxpr", program)
    return dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars), True)[0]


def bytes_of(atom: Any) -> int:
    """The bytes of an array; of a number that stands in the program none."""
    dtype = getattr(atom.aval, "dtype", None)
    return 0 if dtype is None or hasattr(atom, "val") else atom.aval.size * dtype.itemsize


def _sum(program: Any, values: Mapping[Any, int]) -> Count:
    """What the operations of a jaxpr sum up to, given those of its whole numbers that are known."""
    total, values = Count(), dict(values)
    for eqn in program.eqns:
        total = total.plus(_count_one(eqn, values))
        if eqn.primitive.name in ("convert_element_type", "copy", "stop_gradient"):
            values |= _known(eqn.outvars, eqn.invars, values)
    return total


def _count_one(eqn: Any, values: Mapping[Any, int]) -> Count:
    name, params = eqn.primitive.name, eqn.params

    def inner(program: Any, operands: Sequence[Any]) -> Count:
        program = live(program)
        return _sum(program, _known(program.invars, operands, values))

    if name == "scan":
        # Nothing is known of the body's arguments: the carry changes.
        return inner(params["jaxpr"], ()).times(params["length"])
    if name == "while":
        rounds = _rounds(eqn, values)
        once = inner(params["body_jaxpr"], ()).plus(inner(params["cond_jaxpr"], ()))
        if rounds is None:
            return once.noting("while: of unknown length, counted as one round")
        return once.times(rounds)
    if name == "cond":
        branches = [inner(branch, eqn.invars[1:]) for branch in params["branches"]]
        dearest = max(branches, key=lambda branch: (branch.flops, branch.moved))
        alike = all((branch.matrix, branch.other) == (dearest.matrix, dearest.other) for branch in branches)
        return dearest if alike else dearest.noting("cond: counted as its dearest branch")
    moved = Count(moved=sum(map(bytes_of, (*eqn.invars, *eqn.outvars))))
    # Where nothing that goes in is floating, what comes out: a number made of bits.
    dtypes = _floating(eqn.invars) or _floating(eqn.outvars)
    if name not in _REDUCTIONS | _OPAQUE and (key := next((key for key in _INNER if key in params), None)):
        within = inner(params[key], eqn.invars)
        share = "shard_map: counted as one device's share"
        return within.noting(share, exact=within.exact) if name == "shard_map" else within
    if not dtypes or name in _MOVES:
        return moved
    # Of several the widest: that is what is computed in.
    dtype = np.dtype(max(dtypes, key=lambda dtype: dtype.itemsize))
    if name in _MATRIX:
        per_product = 8 if jnp.issubdtype(dtype, jnp.complexfloating) else 2
        return replace(moved, matrix=Counter({dtype.name: per_product * _MATRIX[name](eqn)}))
    flops = _other_flops(eqn)
    if flops is None:
        return moved.noting(f"{name}: not counted")
    return replace(moved, other=Counter({dtype.name: flops}), transcendentals=flops if name in _TRANSCENDENTALS else 0)


def _floating(atoms: Sequence[Any]) -> list[Any]:
    dtypes = [getattr(atom.aval, "dtype", np.dtype(bool)) for atom in atoms]
    return [dtype for dtype in dtypes if jnp.issubdtype(dtype, jnp.inexact)]


def _other_flops(eqn: Any) -> int | None:
    name, params = eqn.primitive.name, eqn.params
    size, result_size = (
        atom.aval.size if hasattr(atom.aval, "size") else 0 for atom in (eqn.invars[0], eqn.outvars[0])
    )
    if name in _ELEMENTWISE or name in _TRANSCENDENTALS:
        return result_size
    if name in _REDUCTIONS:
        return size
    if name in _SCATTERS:
        return eqn.invars[2].aval.size
    if name.startswith("reduce_window") or name == "select_and_gather_add":
        return result_size * math.prod(params["window_dimensions"])
    if name == "select_and_scatter_add":  # the size is that of what is scattered, an element for each window
        return size * math.prod(params["window_dimensions"])
    if name in ("sort", "top_k"):
        row = eqn.invars[0].aval.shape[params.get("dimension", params.get("axis", -1))]
        return round(size * math.log2(max(row, 1)))
    if name == "fft":
        operand, result, lengths = eqn.invars[0].aval, eqn.outvars[0].aval, params["fft_lengths"]
        n = math.prod(lengths)
        half = 1 if operand.dtype == result.dtype else 2
        return round(5 * math.prod(operand.shape[: -len(lengths)]) * n * math.log2(max(n, 1)) / half)
    return None


def _dot_products(eqn: Any) -> int:
    ((contracted, _), _), left = eqn.params["dimension_numbers"], eqn.invars[0].aval
    return eqn.outvars[0].aval.size * math.prod(left.shape[axis] for axis in contracted)


def _conv_products(eqn: Any) -> int:
    """Pairs of an element of the input and one of the kernel; what padding and dilation put in between is none."""
    params, (image, kernel), result = eqn.params, [atom.aval for atom in eqn.invars], eqn.outvars[0].aval
    axes = params["dimension_numbers"]
    batch, features, *places = (result.shape[axis] for axis in axes.out_spec)
    products = batch * features * kernel.shape[axes.rhs_spec[1]]
    for i, n_places in enumerate(places):
        n, n_kernel = image.shape[axes.lhs_spec[i + 2]], kernel.shape[axes.rhs_spec[i + 2]]
        gap = params["lhs_dilation"][i]
        starts = np.arange(n_places) * params["window_strides"][i] - params["padding"][i][0]
        offsets = np.arange(n_kernel) * params["rhs_dilation"][i]
        few, many = sorted((starts, offsets), key=len)  # never all pairs at once: a long kernel has too many
        hits = (first + many for first in few)
        products *= sum(int(np.sum((at >= 0) & (at <= (n - 1) * gap) & (at % gap == 0))) for at in hits)
    return products


_MATRIX = {"dot_general": _dot_products, "conv_general_dilated": _conv_products}


def _rounds(eqn: Any, values: Mapping[Any, int]) -> int | None:
    """How often a ``while`` runs that compares what moves in equal steps; None if it is not of this kind."""
    params, known = eqn.params, functools.partial(_value, values=values)
    n_cond, n_body = params["cond_nconsts"], params["body_nconsts"]
    cond, body = (getattr(params[key], "jaxpr", params[key]) for key in ("cond_jaxpr", "body_jaxpr"))

    def course(seen: Any) -> tuple[int | None, int | None]:
        """Where something that the condition looks at starts, and by how much it moves a round."""
        if not any(seen is variable for variable in cond.invars):
            return known(seen), 0
        place = cond.invars.index(seen) - n_cond
        if place < 0:
            return known(eqn.invars[n_cond + place]), 0
        start, old, new = known(eqn.invars[n_cond + n_body + place]), body.invars[n_body + place], body.outvars[place]
        if new is old:
            return start, 0
        made = next((eqn for eqn in body.eqns if eqn.outvars[0] is new), None)
        if made is None or made.primitive.name not in ("add", "sub") or made.invars[0] is not old:
            return start, None
        consts = _known(body.invars[:n_body], eqn.invars[n_cond : n_cond + n_body], values)
        by = _value(made.invars[1], consts)
        return start, -by if by is not None and made.primitive.name == "sub" else by

    test = cond.eqns[-1].primitive.name if len(cond.eqns) == 1 else ""
    if test not in ("lt", "le", "gt", "ge"):
        return None
    (left, left_by), (right, right_by) = map(course, cond.eqns[0].invars[:2])
    if left is None or left_by is None or right is None or right_by is None:
        return None
    # It goes on while the gap is positive.
    gap, narrows = (right - left, left_by - right_by) if test in ("lt", "le") else (left - right, right_by - left_by)
    gap += test in ("le", "ge")
    if gap <= 0:
        return 0
    return -(-gap // narrows) if narrows > 0 else None


def _value(atom: Any, values: Mapping[Any, int]) -> int | None:
    """A scalar whole number, if it is known."""
    if not hasattr(atom, "val"):
        return values.get(atom)
    return int(atom.val) if np.shape(atom.val) == () and jnp.issubdtype(atom.aval.dtype, jnp.integer) else None


def _known(inside: Sequence[Any], outside: Sequence[Any], values: Mapping[Any, int]) -> dict[Any, int]:
    """What is known of variables, from what they stand for."""
    pairs = [(variable, _value(atom, values)) for variable, atom in zip(inside, outside, strict=False)]
    return {variable: value for variable, value in pairs if value is not None}
