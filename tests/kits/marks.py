"""Marks for tests."""

import pytest


def slow(*cases):
    """These cases of a parametrised test, tuples where it has several parameters, for the slow run."""
    return [pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=pytest.mark.slow) for case in cases]
