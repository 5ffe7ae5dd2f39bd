"""The checker judged by the corpus: it accuses no right rule, and finds, names and explains every wrong one.

A sample of each kind here; all of it by ``pytest -m slow``: the right rules in every dtype, the wrong ones, of which
only the float64 comparison is asked, in one dtype each, by turns.
"""

import re

import jax
import jax.numpy as jnp
import pytest
from corpora import AUTODIFF_SUSPECT, BLIND, KINDS, RIGHT, SUBJECTS, SURROGATES, WRONG, GradCase
from kits.reports import named

from minijaxnet import check_grad, check_vjp

# What a hint has to say about a slip of a kind, for the kinds that have a name.
WORDS = {
    "factor": r"factor|times (what it should be|too large)|twice|half",
    "transposed": "transposed",
    "swapped": "swapped",
    "axis": "axis",
    "mean for sum": "a mean (where|for) a sum",
    "one-sided": r"right only where x|sign is lost|absolute value",
    "missing term": "a term is missing|a term too many|by the same|path to this leaf was cut",
    "element": "one element|one slice",
    "cotangent": "cotangent",
    "second order": "second order",
}
# Slips of these kinds that no hint explains.
UNEXPLAINED = {
    "LSTM, output gate forgotten on the way to the cell",
    "recurrent network, first two steps cut off",
    "reverse Kullback-Leibler, not centred",
}
# The verdict that a kind of slip is for, where it is not on the algebra.
OWN = {"precision": "precision", "second order": "second order", "primal": "primal"}


def name_of(case):
    return f"{'grad' if isinstance(case, GradCase) else 'vjp'}: {case.name}"


def report_on(case, dtype):
    if getattr(case, "clears", False):
        jax.clear_caches()
    with jax.enable_x64(dtype == "float64"):
        args = case.args(jnp.dtype(dtype))
        if not isinstance(case, GradCase):
            return check_vjp(case.fun, args, reference=case.reference, order=case.order)
        options = {"argnums": case.argnums, "has_aux": case.has_aux, "has_value": case.has_value, "order": case.order}
        return check_grad(case.loss, case.gradient, args, **options)


def acquits(case, dtype):
    report = report_on(case, dtype)
    assert report.ok, str(report)
    assert report.hints == ()


def convicts(case, dtype):
    """Not ok, by the verdict that the kind of slip is for, with the leaf and the element named; the report."""
    report, slip = report_on(case, dtype), case.slip
    failed = {name for name, verdict in report.verdicts.items() if verdict.state == "fail"}
    path = slip.leaf
    if path is not None:
        path = named(*((case.loss, path, case.argnums) if isinstance(case, GradCase) else (case.fun, path)))
    assert not report.ok, str(report)
    if own := "structure" if "structure" in failed else OWN.get(slip.kind):
        assert own in failed, str(report)
        # The derivative of a gradient is taken along all leaves at once: no leaf to name.
        assert path is None or own == "second order" or path in report.verdicts[own].reason, str(report)
        return report
    assert failed & {"algebra", "linearity"}, str(report)
    if path is not None and "algebra" in failed:
        assert {name for name, leaf in report.leaves.items() if not leaf.ok} == {path}, str(report)
        assert report.worst.path == path and path in report.verdicts["algebra"].reason, str(report)
    elif path is not None:
        assert path in report.verdicts["linearity"].reason, str(report)
    assert slip.index is None or report.worst.index == slip.index, str(report)
    return report


def has_a_name(case):
    """Whether a slip is one of those that a hint should have words for."""
    kind = case.slip.kind
    return kind in WORDS and (kind != "cotangent" or re.search("ignored|deaf", case.name))


def explained(case, report):
    """Whether a hint has the words of the slip's kind, and its factor if it has one."""
    words, factor = [WORDS[case.slip.kind]], case.slip.factor
    if factor is not None:
        sign = "-" if factor < 0 else ""
        words.append(rf"(^|[^\d.])({factor:g}|{sign}1/{abs(1 / factor):g})($|[^\d.])")
    return any(all(re.search(word, hint) for word in words) for hint in report.hints)


def excuses(case, dtype):
    report = report_on(case, dtype)
    algebra = report.verdicts["algebra"]
    hesitates = algebra.state == "unchecked" and re.search("autodiff suspect|not finite", algebra.reason)
    assert report.ok or hesitates, str(report)


def blind_and_says_so(case, dtype):
    """An error below the rounding of the truth goes unseen, and the report says below what."""
    report = report_on(case, dtype)
    (leaf,) = report.leaves.values()
    assert report.ok and 0 < leaf.error < leaf.blind
    assert f"{leaf.blind:.1e}" in str(report)


def right_by_its_reference_only(surrogate, dtype):
    """And without it, the report has a word for what it is."""
    acquits(surrogate.case, dtype)
    report = report_on(surrogate.case._replace(reference=None), dtype)
    assert not report.ok
    assert any(word in str(report) for word in surrogate.words), str(report)


def each(judge, asked):
    """Ask a judge about cases in dtypes, all of them though some fail; what it returned of each."""
    found, failures = [], []
    for case, dtype in asked:
        try:
            found.append((case, judge(case, dtype)))
        except Exception as error:
            failures.append(f"{getattr(case, 'name', case)}, {dtype}: {type(error).__name__}: {error}")
    assert not failures, f"{len(failures)} of {len(asked)}\n\n" + "\n\n".join(failures)
    return found


def dtypes_of(case):
    """The dtypes that its function, its rule and its slip know."""
    return [dtype for dtype in case.dtypes if case.slip is None or dtype in case.slip.dtypes]


def by_turns(cases):
    """Each case in the next of its dtypes; all of these for what is wrong in some dtypes only."""
    asked = []
    for turn, case in enumerate(cases):
        dtypes = dtypes_of(case)
        some_only = case.slip is not None and case.slip.kind in ("precision", "structure")
        asked += [(case, dtype) for dtype in (dtypes if some_only else [dtypes[turn % len(dtypes)]])]
    return asked


def sampled(names, cases):
    """The cases of these names, each in the next of its dtypes."""
    by_name = {name_of(case): case for case in cases}
    chosen = [by_name[name.strip()] for line in names.strip().splitlines() for name in line.split(" ; ")]
    turns = [(case, dtypes_of(case)[turn % len(dtypes_of(case))]) for turn, case in enumerate(chosen)]
    return [pytest.param(case, dtype, id=f"{name_of(case)}, {dtype}") for case, dtype in turns]


# --- A sample, its dtypes taking turns --------------------------------------------------------------------------------

SAMPLE_OF_RIGHT = """
grad: Huber ; grad: maximum of equals, all to the first ; grad: computed in NumPy
grad: sum with cancellation, the other way round ; vjp: sine, forward rule, order two
vjp: several outputs, one of them an index
"""
SAMPLE_OF_WRONG = """
vjp: leaky relu, dead below 0 ; grad: around a mean that is not held fixed ; vjp: sine, cotangent ignored
vjp: cube, slope held fixed ; vjp: sine, its last value missed ; grad: expm1 squared, by exp(x) - 1
grad: a leaf too few ; vjp: product, None for what has a slope ; grad: sinc, unguarded at 0
grad: scalar rate, not summed ; grad: relu6, without its ceiling
grad: sort, permuted the other way ; grad: tanh, slope of the output taken twice
"""
# In one program in test_check.py; and what draws from a key takes a second to compile.
ELSEWHERE = {"factor", "transposed", "swapped", "axis", "mean for sum", "element", "relative", "dropout scale"}


@pytest.mark.parametrize("case, dtype", sampled(SAMPLE_OF_RIGHT, RIGHT))
def test_a_right_rule_is_not_accused(case, dtype):
    acquits(case, dtype)


@pytest.mark.parametrize("case, dtype", sampled(SAMPLE_OF_WRONG, WRONG))
def test_a_wrong_rule_is_found_where_it_is_wrong_and_explained(case, dtype):
    report = convicts(case, dtype)
    assert not has_a_name(case) or explained(case, report), str(report)


def test_nine_named_slips_in_ten_are_explained():
    assert len(UNEXPLAINED) <= sum(map(bool, map(has_a_name, WRONG))) / 10


def test_every_other_kind_of_slip_is_in_the_sample():
    assert {param.values[0].slip.kind for param in sampled(SAMPLE_OF_WRONG, WRONG)} == KINDS - ELSEWHERE


def test_a_rule_is_not_accused_where_autodiff_fails():
    excuses(AUTODIFF_SUSPECT[0], "float32")


def test_a_surrogate_is_right_by_its_reference_only():
    right_by_its_reference_only(SURROGATES[0], "float32")


def test_an_error_below_the_rounding_of_the_truth_goes_unseen_and_the_report_says_below_what():
    each(blind_and_says_so, by_turns(BLIND))


# --- The whole of it --------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("subject", SUBJECTS)
def test_no_right_rule_is_accused(subject):
    each(acquits, [(case, dtype) for case in SUBJECTS[subject].right_ones for dtype in dtypes_of(case)])


@pytest.mark.slow
@pytest.mark.parametrize("subject", SUBJECTS)
def test_every_wrong_rule_is_found_where_it_is_wrong_and_explained(subject):
    found = each(convicts, by_turns(SUBJECTS[subject].wrong_ones))
    assert {case.name for case, report in found if has_a_name(case) and not explained(case, report)} <= UNEXPLAINED


@pytest.mark.slow
def test_no_rule_is_accused_where_autodiff_fails():
    each(excuses, [(case, dtype) for case in AUTODIFF_SUSPECT for dtype in dtypes_of(case)])


@pytest.mark.slow
def test_every_surrogate_is_right_by_its_reference_only():
    dtypes = [dtype for _, dtype in by_turns([surrogate.case for surrogate in SURROGATES])]
    each(right_by_its_reference_only, list(zip(SURROGATES, dtypes, strict=True)))


@pytest.mark.slow
def test_what_goes_unseen_does_so_in_every_dtype():
    each(blind_and_says_so, [(case, dtype) for case in BLIND for dtype in dtypes_of(case)])
