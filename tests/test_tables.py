"""Text tables: columns stand under their headings, numbers are short."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minijaxnet._tables import percent, significant, text_table

CELL = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), max_size=12)
TABLE = st.integers(1, 5).flatmap(
    lambda n: st.tuples(st.lists(CELL, min_size=n, max_size=n), st.lists(st.lists(CELL, min_size=n, max_size=n)))
)


@given(TABLE)
def test_every_cell_stands_in_its_column(table):
    columns, rows = table
    heading, rule, *lines = text_table(columns, rows).split("\n")
    widths = [max(map(len, cells)) for cells in zip(columns, *rows, strict=True)]
    assert rule == "-" * (sum(widths) + 2 * (len(widths) - 1))
    assert len(lines) == len(rows)
    for cells, line in zip([columns, *rows], [heading, *lines], strict=True):
        assert line == line.rstrip()
        padded, start = line.ljust(len(rule)), 0
        for i, (cell, width) in enumerate(zip(cells, widths, strict=True)):
            assert padded[start : start + width] == (cell.rjust(width) if i else cell.ljust(width))
            start += width + 2


def test_cells_are_printed_by_str():
    assert text_table(("a", "b"), [(None, 1.5), (True, (1, 2))]).split("\n")[2:] == ["None     1.5", "True  (1, 2)"]


def test_a_title_stands_above():
    assert text_table(("a",), [("b",)], title="Title").split("\n") == ["Title", "a", "-", "b"]


def test_no_rows_are_a_heading_and_a_rule():
    assert text_table(("a", "bc"), []) == "a  bc\n-----"


@pytest.mark.parametrize(
    ("rows", "cells"), [([("only",)], 1), ([("one", "two", "three")], 3), ([("one", "two"), ()], 0)]
)
def test_a_row_of_another_length_is_refused(rows, cells):
    with pytest.raises(ValueError, match=f"rows: got one of {cells} cells; expected 2, one per column"):
        text_table(("a", "b"), rows)


@given(st.floats(-1e300, 1e300), st.integers(1, 12))
def test_a_number_is_right_to_its_digits(value, digits):
    text = float(significant(value, digits))
    assert abs(text - value) <= 0.5 * 10.0 ** (1 - digits) * abs(value) * (1 + 1e-9) + math.ulp(0.0)


def test_numbers_are_short_and_nan_and_infinity_have_names():
    text = ["0", "3", "0.5", "0.3333", "1.235e+05", "-2e-09"]
    assert [significant(value) for value in (0, 3, 0.5, 1 / 3, 123456.0, -2e-9)] == text
    assert [significant(value) for value in (math.nan, math.inf, -math.inf)] == ["nan", "inf", "-inf"]
    assert significant(1 / 3, 2) == "0.33"


@pytest.mark.parametrize(("share", "expected"), [(0, "0.0 %"), (1, "100.0 %"), (0.9722, "97.2 %"), (0.5, "50.0 %")])
def test_a_share_is_a_percentage_of_one_decimal(share, expected):
    assert percent(share) == expected
