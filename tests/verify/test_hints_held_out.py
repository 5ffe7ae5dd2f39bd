"""Wrong rules as people write them: a hint says what is wrong, and none says what is not. Most of them are slow."""

import re

import pytest
from corpora import held_layers, held_loops, held_more

from minijaxnet import check_grad, check_vjp

CASES = [*held_layers.CASES, *held_loops.CASES, *held_more.CASES]
# One of each mechanism, quickly compiled.
QUICK = """
softmax: diagonal; embedding: set; complex: conjugate; attention: transposed; fixed point: a few rounds
permutation: by itself; two elements off by the same
"""
SAMPLE = {name.strip() for name in re.split("[;\n]", QUICK) if name.strip()}
# What is not found yet.
MISSED = {"layer norm: means over the batch", "rms norm: no weight in the sum"}


def hints_on(case):
    if case.hand is None:
        report = check_vjp(case.fun, case.args, reference=case.reference)
    else:
        report = check_grad(case.fun, case.hand, case.args, argnums=case.argnums)
    assert not report.ok, str(report)
    return report.hints


def judged(case, hints):
    """What is wrong with the hints on a case; "" if nothing."""
    if case.never and any(re.search(case.never, hint) for hint in hints):
        return f"misleading: {hints}"
    if case.words and not any(re.search(case.words, hint) for hint in hints):
        return f"not named: {hints}"
    return ""


@pytest.mark.parametrize(
    "case", [pytest.param(c, id=c.name, marks=() if c.name in SAMPLE else pytest.mark.slow) for c in CASES]
)
def test_a_rule_as_people_get_it_wrong_has_its_hint_or_none(case):
    found = judged(case, hints_on(case))
    assert not found.startswith("misleading"), found
    assert not found or case.name in MISSED, found


def test_nine_held_out_slips_in_ten_are_named():
    assert len(CASES) >= 60 and len(MISSED) <= len(CASES) / 10
    assert SAMPLE <= {case.name for case in CASES}
