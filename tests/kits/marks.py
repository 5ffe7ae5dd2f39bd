"""Marks for single cases of a table."""

import functools

import pytest

SLOW = functools.partial(pytest.param, marks=pytest.mark.slow)
