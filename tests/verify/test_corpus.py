"""The checker on the corpora: it accuses no right rule, and finds, names and explains every wrong one.

A sample of each kind here; all of it by ``pytest -m slow``: the right rules in every dtype, the wrong ones, of which
only the float64 comparison matters, in one dtype each, by turns.
"""

import re

import jax
import jax.numpy as jnp
import pytest
from corpora import AUTODIFF_SUSPECT, BLIND, CODE, KINDS, RIGHT, SUBJECTS, SURROGATES, WRONG, GradCase
from corpora.host import NOISE, SHAKEN
from kits.reports import failures, named

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
# Slips of these kinds that no hint explains, and slips of people that none names.
UNEXPLAINED: set[str] = set()
NOT_NAMED = {"layer norm: means over the batch"}
# The verdict that a kind of slip is for, where it is not on the algebra.
OWN = {"precision": "precision", "second order": "second order", "primal": "primal"}


def report_on(case, dtype):
    if getattr(case, "clears", False):
        jax.clear_caches()
    with jax.enable_x64(dtype == "float64"):
        args = case.args(jnp.dtype(dtype))
        if not isinstance(case, GradCase):
            return check_vjp(case.fun, args, reference=case.reference, order=case.order)
        options = {"argnums": case.argnums, "has_aux": case.has_aux, "has_value": case.has_value, "order": case.order}
        return check_grad(case.loss, case.gradient, args, **options)


def passes(case, dtype):
    report = report_on(case, dtype)
    assert report.ok, str(report)
    assert report.hints == ()


def fails(case, dtype):
    """Not ok, by the verdict that the kind of slip is for, with the leaf and the element named, and explained."""
    report, slip, path = report_on(case, dtype), case.slip, case.slip.leaf
    failed = failures(report)
    if path is not None:
        path = named(*((case.loss, path, case.argnums) if isinstance(case, GradCase) else (case.fun, path)))
    assert not report.ok, str(report)
    if own := "structure" if "structure" in failed else OWN.get(slip.kind):
        # The derivative of a gradient is taken along all leaves at once: no leaf to name.
        assert own in failed, str(report)
        assert path is None or own == "second order" or path in report.verdicts[own].reason, str(report)
    else:
        assert failed & {"algebra", "linearity"}, str(report)
        which = "algebra" if "algebra" in failed else "linearity"
        assert path is None or path in report.verdicts[which].reason, str(report)
        if path is not None and which == "algebra":
            assert {name for name, leaf in report.leaves.items() if not leaf.ok} == {path}, str(report)
        assert slip.index is None or report.worst.index == slip.index, str(report)
    assert explained(case, report) or case.name in UNEXPLAINED, str(report)


def explained(case, report):
    """Whether a hint has the words of the slip's kind, and its factor if it has one; true where there are no words."""
    kind, factor = case.slip.kind, case.slip.factor
    if kind not in WORDS or (kind == "cotangent" and "ignored" not in case.name):
        return True
    words = [WORDS[kind]]
    if factor is not None:
        sign = "-" if factor < 0 else ""
        words.append(rf"(^|[^\d.])({factor:g}|{sign}1/{abs(1 / factor):g})($|[^\d.])")
    return any(all(re.search(word, hint) for word in words) for hint in report.hints)


def is_not_accused(case, dtype):
    report = report_on(case, dtype)
    algebra = report.verdicts["algebra"]
    hesitates = algebra.state == "unchecked" and re.search("autodiff suspect|not finite", algebra.reason)
    assert report.ok or hesitates, str(report)


def goes_unseen(case, dtype):
    """An error below the rounding of the truth goes unseen, and the report says below what."""
    report = report_on(case, dtype)
    (leaf,) = report.leaves.values()
    assert report.ok and 0 < leaf.error < leaf.blind
    assert f"{leaf.blind:.1e}" in str(report)


def is_right_by_its_reference_only(surrogate, dtype):
    """And without it, the report has a word for what it is."""
    passes(surrogate.case, dtype)
    report = report_on(surrogate.case._replace(reference=None), dtype)
    assert not report.ok and re.search(surrogate.words, str(report)), str(report)


def is_judged_well(case, dtype=""):
    """Code as people write it."""
    report = case.report()
    if case.right:
        assert failures(report) == set() and (report.ok or case.hesitates), str(report)
        assert re.search(case.says, report.verdicts["algebra"].reason), str(report)
        return
    assert not report.ok and failures(report) & {"algebra", "linearity"}, str(report)
    assert not case.never or not any(re.search(case.never, hint) for hint in report.hints), str(report)
    assert case.name in NOT_NAMED or any(re.search(case.words, hint) for hint in (*report.hints, "")), str(report)


def each(check, pairs):
    """Check cases in dtypes, all of them though some fail."""
    errors = []
    for case, dtype in pairs:
        try:
            check(case, dtype)
        except Exception as error:
            errors.append(f"{getattr(case, 'name', case)}, {dtype}: {type(error).__name__}: {error}")
    assert not errors, f"{len(errors)} of {len(pairs)}\n\n" + "\n\n".join(errors)


def dtypes_of(case):
    """The dtypes that its function, its rule and its slip know."""
    return [dtype for dtype in case.dtypes if case.slip is None or dtype in case.slip.dtypes]


def by_turns(cases):
    """Each case in the next of its dtypes; all of these for what is wrong in some dtypes only."""
    pairs = []
    for turn, case in enumerate(cases):
        dtypes = dtypes_of(case)
        some_only = case.slip is not None and case.slip.kind in ("precision", "structure")
        pairs += [(case, dtype) for dtype in (dtypes if some_only else [dtypes[turn % len(dtypes)]])]
    return pairs


def sampled(names, cases):
    """The cases of these names, each in the next of its dtypes."""
    by_name = {case.name: case for case in cases}
    chosen = [by_name[name.strip()] for line in names.strip().splitlines() for name in line.split(" ; ")]
    turns = [(case, dtypes_of(case)[turn % len(dtypes_of(case))]) for turn, case in enumerate(chosen)]
    return [pytest.param(case, dtype, id=f"{case.name}, {dtype}") for case, dtype in turns]


# --- A sample, its dtypes taking turns --------------------------------------------------------------------------------

SAMPLE_OF_RIGHT = """
Huber ; maximum of equals, all to the first ; computed in NumPy ; sum with cancellation, the other way round
sine, forward rule ; several outputs, one of them an index
"""
SAMPLE_OF_WRONG = """
leaky relu, dead below 0 ; around a mean, that is held fixed ; sine, cotangent ignored ; cube, slope held fixed
sine, its last value missed ; expm1 squared, by exp(x) - 1 ; mean squared error, oblong, a leaf too few
product, None for what has a slope ; sinc, at 0 as well, unguarded ; scalar rate, not summed
relu6, without its ceiling ; sort, permuted the other way ; tanh, slope of the output taken twice
"""
# In one program in test_check.py; and what draws from a key takes a second to compile.
ELSEWHERE = {"factor", "transposed", "swapped", "axis", "mean for sum", "element", "relative", "dropout scale"}
# Of each mechanism of the hints one that is quickly compiled.
QUICK_SLIPS = """softmax: diagonal ; embedding: set ; complex: conjugate ; attention: transposed
fixed point: a few rounds ; permutation: by itself ; two elements off by the same"""
QUICK = {name.strip() for line in QUICK_SLIPS.splitlines() for name in line.split(" ; ")}


def code():
    """All of the code as people write it; but for the first right and wrong one of each kind it is slow."""
    for name, kind in CODE.items():
        for right in (True, False):
            for i, case in enumerate(case for case in kind.cases if case.right == right):
                quick = case.name in QUICK if name == "slips" else i == 0
                yield pytest.param(case, id=f"{name}: {case.name}", marks=[] if quick else pytest.mark.slow)


@pytest.mark.parametrize("case, dtype", sampled(SAMPLE_OF_RIGHT, RIGHT))
def test_a_right_rule_passes(case, dtype):
    passes(case, dtype)


@pytest.mark.parametrize("case, dtype", sampled(SAMPLE_OF_WRONG, WRONG))
def test_a_wrong_rule_is_found_where_it_is_wrong_and_explained(case, dtype):
    fails(case, dtype)


@pytest.mark.parametrize("case", list(code()))
def test_code_as_people_write_it_is_judged_well(case):
    is_judged_well(case)


def test_where_autodiff_fails_a_right_rule_is_not_accused():
    is_not_accused(AUTODIFF_SUSPECT[0], "float32")


def test_a_surrogate_is_right_by_its_reference_only():
    is_right_by_its_reference_only(SURROGATES[0], "float32")


def test_an_error_below_the_rounding_of_the_truth_goes_unseen_and_the_report_says_below_what():
    each(goes_unseen, by_turns(BLIND))


@pytest.mark.parametrize("case", NOISE.cases, ids=lambda case: case.name)
def test_little_noise_counts_as_rounding_and_is_reported(case):
    report = case.report()
    assert report.verdicts["algebra"].state == ("pass" if case.right else "fail"), str(report)
    assert report.verdicts["repeatable"].state != "pass"
    assert re.search(r"\de-\d", report.verdicts["repeatable"].reason), str(report)


def test_much_noise_is_reported_and_none_is_not():
    (case,) = SHAKEN.cases
    assert case.report().verdicts["repeatable"].state != "pass"
    assert "repeatable" not in report_on(RIGHT[0], "float32").verdicts


def test_the_sample_has_every_kind_of_slip():
    assert {param.values[0].slip.kind for param in sampled(SAMPLE_OF_WRONG, WRONG)} == KINDS - ELSEWHERE
    assert {case.name for case in CODE["slips"].cases} >= QUICK


# --- The whole of it --------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("subject", SUBJECTS)
def test_every_right_rule_passes(subject):
    each(passes, [(case, dtype) for case in SUBJECTS[subject].right for dtype in dtypes_of(case)])


@pytest.mark.slow
@pytest.mark.parametrize("subject", SUBJECTS)
def test_every_wrong_rule_is_found_where_it_is_wrong_and_explained(subject):
    each(fails, by_turns(SUBJECTS[subject].wrong))


@pytest.mark.slow
def test_the_rest_of_the_corpus_is_judged_well():
    each(is_not_accused, [(case, dtype) for case in AUTODIFF_SUSPECT for dtype in dtypes_of(case)])
    dtypes = [dtype for _, dtype in by_turns([surrogate.case for surrogate in SURROGATES])]
    each(is_right_by_its_reference_only, list(zip(SURROGATES, dtypes, strict=True)))
    each(goes_unseen, [(case, dtype) for case in BLIND for dtype in dtypes_of(case)])
