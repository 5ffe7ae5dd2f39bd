"""The checker on code as people write it: silent on right rules, and a small slip beside each of them is found."""

import re

import pytest
from corpora.real_code import KINDS
from kits.reports import failures


def chosen(right):
    """All cases; but for the first of each kind they are slow."""
    found = []
    for name, kind in KINDS.items():
        cases = [case for case in kind.cases if case.right == right]
        for i, case in enumerate(sorted(cases, key=lambda case: case.slow)):
            found.append(pytest.param(case, id=f"{name}: {case.name}", marks=[pytest.mark.slow] if i else []))
    return found


@pytest.mark.parametrize("case", chosen(right=True))
def test_a_right_rule_passes(case):
    report = case.report()
    assert failures(report) == set(), str(report)
    assert report.ok or case.hesitates, str(report)
    assert re.search(case.says, report.verdicts["algebra"].reason), str(report)


@pytest.mark.parametrize("case", chosen(right=False))
def test_a_wrong_rule_is_found(case):
    report = case.report()
    assert not report.ok, str(report)
    assert case.fails in failures(report), str(report)


def test_the_names_are_different():
    names = [case.name for kind in KINDS.values() for case in kind.cases]
    assert len(set(names)) == len(names)
