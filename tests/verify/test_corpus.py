"""The checker judged by the corpus: it accuses no right rule, and finds, names and explains every wrong one.

A fixed sample here; all of it, in every dtype, by ``pytest -m slow``. With JAX's compilation cache on disk, programs
are shared by the dtypes, which takes half the time: ``JAX_COMPILATION_CACHE_DIR=...`` and
``JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0`` in the environment.
"""

import functools
import re

import jax
import jax.numpy as jnp
import pytest
from corpora import (
    AUTODIFF_SUSPECT,
    BLIND,
    DTYPES,
    KINDS,
    RIGHT,
    SURROGATES,
    WRONG,
    GradCase,
)

from minijaxnet import check_grad, check_vjp

# What a hint has to say about a slip of a kind, for the kinds that have a name.
WORDS = {
    "factor": r"factor|times (what it should be|too large)|twice|half",
    "transposed": "transposed",
    "swapped": "swapped",
    "axis": "axis",
    "mean for sum": "a mean (where|for) a sum",
    "one-sided": r"right only where x|sign is lost|absolute value",
    "missing term": "a term is missing|a term too many|constant term|path to this leaf was cut",
    "element": "one element|one slice",
    "cotangent": "cotangent",
    "second order": "second order",
}


def name_of(case):
    return f"{'grad' if isinstance(case, GradCase) else 'vjp'}: {case.name}"


@functools.cache
def report_of(case, dtype):
    if getattr(case, "clears", False):
        jax.clear_caches()
    with jax.enable_x64(dtype == "float64"):
        args = case.args(jnp.dtype(dtype))
        if not isinstance(case, GradCase):
            return check_vjp(case.fun, args, reference=case.reference, order=case.order)
        options = {"argnums": case.argnums, "has_aux": case.has_aux, "has_value": case.has_value, "order": case.order}
        return check_grad(case.loss, case.gradient, args, **options)


def failed(report):
    return {name for name, verdict in report.verdicts.items() if verdict.state == "fail"}


def path_of(leaf):
    """A leaf's name in a report, by its path."""
    return leaf or "(leaf)"


def acquits(case, dtype):
    report = report_of(case, dtype)
    assert report.ok, str(report)
    assert report.hints == ()


def convicts(case, dtype):
    """Not ok, by the verdict that the kind of slip is for, with the leaf and the element named."""
    report, slip = report_of(case, dtype), case.slip
    assert not report.ok, str(report)
    own = {"precision": "precision", "second order": "second order", "primal": "primal"}.get(slip.kind)
    if "structure" in failed(report):
        own = "structure"
    if own:
        assert own in failed(report), str(report)
        # The derivative of a gradient is taken along all leaves at once: no leaf to name.
        if slip.leaf is not None and own != "second order":
            assert path_of(slip.leaf) in report.verdicts[own].reason, str(report)
        return
    assert failed(report) & {"algebra", "linearity"}, str(report)
    wrong = {path for path, leaf in report.leaves.items() if not leaf.ok}
    if slip.leaf is not None and "algebra" in failed(report):
        assert wrong == {path_of(slip.leaf)} and report.worst.path == path_of(slip.leaf), str(report)
    elif slip.leaf is not None:
        assert path_of(slip.leaf) in report.verdicts["linearity"].reason, str(report)
    if slip.index is not None:
        assert report.worst.index == slip.index, str(report)


def explained(case, dtype):
    """Whether a hint has the words of the slip's kind, and its factor if it has one."""
    words, factor = [WORDS[case.slip.kind]], case.slip.factor
    if factor is not None:
        sign = "-" if factor < 0 else ""
        words.append(rf"(^|[^\d.])({factor:g}|{sign}1/{abs(1 / factor):g})($|[^\d.])")
    return any(all(re.search(word, hint) for word in words) for hint in report_of(case, dtype).hints)


def is_named(case):
    """Whether a slip is one of those that a hint should have a name for."""
    kind = case.slip.kind
    return kind in WORDS and (kind != "cotangent" or "ignored" in case.name or "deaf" in case.name)


def excuses(case, dtype):
    report = report_of(case, dtype)
    algebra = report.verdicts["algebra"]
    hesitates = algebra.state == "unchecked" and re.search("autodiff suspect|not finite", algebra.reason)
    assert report.ok or hesitates, str(report)


def shown(case, dtype):
    return pytest.param(case, dtype, id=f"{name_of(case)}, {dtype}")


def everywhere(cases):
    """Every case in every dtype that its loss, its rule and its slip know."""
    return [
        shown(case, dtype)
        for case in cases
        for dtype in DTYPES
        if dtype in case.dtypes and (case.slip is None or dtype in case.slip.dtypes)
    ]


# --- A sample, its dtypes taking turns --------------------------------------------------------------------------------

SAMPLE_OF_RIGHT = """
grad: tanh ; grad: Huber ; grad: arctan2
grad: relu, slope 1 at 0 ; grad: abs, slope -1/2 at 0 ; grad: maximum of equals, all to the first
grad: mean squared error, square ; grad: hinge on the margin ; grad: a scalar ; grad: a leaf without elements
grad: value beside the gradient ; grad: another argument, with auxiliary output ; grad: computed in NumPy
grad: Python float returned ; grad: flat plateau ; grad: sum with cancellation, the other way round
grad: leaves of 1e8 and 1e-8 ; grad: embedding with repeated indices
vjp: cube, order two ; vjp: several outputs, one of them an index ; vjp: relu, slope 1 at 0
vjp: softplus, forward rule
"""
SAMPLE_OF_WRONG = """
grad: arctan2, x negated ; vjp: sine, forward rule, negated ; grad: leaf of 1e-8 doubled beside one of 1e8
grad: matrix product, square, a transposed ; grad: matrix product, oblong, b transposed
vjp: product, factors swapped
grad: mean squared error, bias summed over outputs ; grad: mean squared error, mean for the bias
grad: log(1 + |x|), without the sign ; vjp: leaky relu, dead below 0
grad: around a mean that is not held fixed ; vjp: SiLU, second term forgotten
vjp: tanh, element 3 forgotten
vjp: sine, cotangent ignored
grad: quartic, its square held fixed ; vjp: cube, slope held fixed
grad: value a millionth too large ; vjp: sine, a thousandth beside it
grad: expm1 squared, by exp(x) - 1 ; grad: a leaf too few ; vjp: product, None for what has a slope
grad: sinc, unguarded at 0 ; grad: mean squared error, all by a thousandth
grad: scalar rate, not summed ; grad: relu6, without its ceiling ; grad: dropout, slope not scaled
grad: sort, permuted the other way ; grad: tanh, slope of the output taken twice
"""


def sampled(names, cases):
    """The cases of these names, each in the next of the dtypes in which it can be judged."""
    by_name = {name_of(case): case for case in cases}
    chosen = [by_name[name.strip()] for line in names.strip().splitlines() for name in line.split(" ; ")]
    found = []
    for turn, case in enumerate(chosen):
        dtypes = [dtype for dtype in DTYPES if dtype in case.dtypes and (not case.slip or dtype in case.slip.dtypes)]
        found.append(shown(case, dtypes[turn % len(dtypes)]))
    return found


@pytest.mark.parametrize("case, dtype", sampled(SAMPLE_OF_RIGHT, RIGHT))
def test_a_right_rule_is_not_accused(case, dtype):
    acquits(case, dtype)


@pytest.mark.parametrize("case, dtype", sampled(SAMPLE_OF_WRONG, WRONG))
def test_a_wrong_rule_is_found_where_it_is_wrong(case, dtype):
    convicts(case, dtype)
    assert not is_named(case) or explained(case, dtype), str(report_of(case, dtype))


def test_every_kind_of_slip_is_in_the_sample():
    assert {param.values[0].slip.kind for param in sampled(SAMPLE_OF_WRONG, WRONG)} == KINDS


@pytest.mark.parametrize("case, dtype", [shown(case, case.dtypes[0]) for case in AUTODIFF_SUSPECT[:3]])
def test_a_rule_is_not_accused_where_autodiff_fails(case, dtype):
    excuses(case, dtype)


@pytest.mark.parametrize("case, dtype", everywhere(BLIND))
def test_an_error_below_the_rounding_of_the_truth_goes_unseen_and_the_report_says_below_what(case, dtype):
    report = report_of(case, dtype)
    (leaf,) = report.leaves.values()
    assert report.ok and 0 < leaf.error < leaf.blind
    assert f"{leaf.blind:.1e}" in str(report)


def right_by_its_reference_only(case, dtype):
    acquits(case, dtype)
    assert not report_of(case._replace(reference=None), dtype).ok


@pytest.mark.parametrize(
    "case, words",
    [pytest.param(*surrogate, id=name_of(surrogate.case)) for surrogate in SURROGATES],
)
def test_a_surrogate_is_right_by_its_reference_only_and_the_report_has_a_word_for_what_it_is(case, words):
    right_by_its_reference_only(case, "float32")
    report = str(report_of(case._replace(reference=None), "float32"))
    assert any(word in report for word in words), report


# --- The whole of it --------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("case, dtype", everywhere(RIGHT))
def test_no_right_rule_is_accused(case, dtype):
    acquits(case, dtype)


@pytest.mark.slow
@pytest.mark.parametrize("case, dtype", everywhere(WRONG))
def test_every_wrong_rule_is_found_where_it_is_wrong(case, dtype):
    convicts(case, dtype)


@pytest.mark.slow
@pytest.mark.parametrize("case, dtype", everywhere(AUTODIFF_SUSPECT))
def test_no_rule_is_accused_where_autodiff_fails(case, dtype):
    excuses(case, dtype)


@pytest.mark.slow
@pytest.mark.parametrize("case, dtype", everywhere([surrogate.case for surrogate in SURROGATES]))
def test_every_surrogate_is_right_by_its_reference_only(case, dtype):
    right_by_its_reference_only(case, dtype)


@pytest.mark.slow
def test_nine_named_slips_in_ten_are_explained_by_the_right_hint():
    named = [case for case in WRONG if is_named(case)]
    unexplained = [case for case in named if not explained(case, case.slip.dtypes[0])]
    for case in unexplained:
        print(f"{case.slip.kind}: {name_of(case)}: {report_of(case, case.slip.dtypes[0]).hints}")
    assert len(unexplained) <= len(named) / 10
