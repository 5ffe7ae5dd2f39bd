"""Marks for cases of a table that are for the slow run."""

import functools

import pytest

# One case: ``SLOW(1, 2)`` stands where ``(1, 2)`` would.
SLOW = functools.partial(pytest.param, marks=pytest.mark.slow)


def slow(*cases):
    """Several cases, tuples where a test has several parameters."""
    return [SLOW(*(case if isinstance(case, tuple) else (case,))) for case in cases]
