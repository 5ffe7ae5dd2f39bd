"""What pictures share: legends that are complete, and long lines that keep their ends, spikes and gaps."""

import numpy as np
import pytest
from kits.marks import slow
from kits.timings import comparison

from minijaxnet.report.axes import thin
from minijaxnet.report.curves import draw_runs
from minijaxnet.report.style import figure, styled
from minijaxnet.report.timing import draw_samples

NAMES = {
    "folders": [f"a-very-long-name-of-an-experiment-20261126-093000-{i}" for i in range(3)],
    "short": ["a", "b"],
    "as long as a column": [f"{letter} run of thirty-five letters, {i}" for i, letter in enumerate("abc")],
    "one word": ["e" * 90, "a" * 30],
}


def legend_of(draw, width):
    with styled():
        made = figure(width, height=5)
        draw(made.subplots())
        made.draw_without_rendering()
        legend = made.axes[0].get_legend()
        place = legend.get_window_extent()
    assert 0 <= place.x0 and place.x1 <= made.bbox.width and place.y1 <= made.bbox.height
    return "".join(text.get_text() for text in legend.get_texts()).replace("\n", "").replace(" ", "")


@pytest.mark.parametrize("names", ["folders", *slow(*(name for name in NAMES if name != "folders"))])
@pytest.mark.parametrize("width", [4.8, *slow(3.4)])
def test_neither_a_legend_nor_its_names_are_cut_off(names, width):
    rows = [{"step": i, "loss": 1 / (i + 1)} for i in range(3)]
    text = legend_of(lambda axes: draw_runs(axes, dict.fromkeys(NAMES[names], rows), "loss"), width)
    assert text == "".join(NAMES[names]).replace(" ", "")
    found = comparison(dict.fromkeys(NAMES[names], 1))
    text = legend_of(lambda axes: draw_samples(axes, found), width)
    assert all(name.replace(" ", "") in text for name in NAMES[names])


@pytest.mark.parametrize("count", [7, 2_001, 10_007, *slow(1_000_000)])
def test_a_thinned_line_keeps_its_ends_and_extremes_in_their_order(count):
    values = np.random.default_rng(0).normal(size=count)
    values[count // 3], values[count // 2] = 50.0, -50.0
    kept = thin(values)
    assert len(kept) == count if count <= 2_000 else len(kept) <= 2_000
    assert np.all(np.diff(kept) > 0) and {0, count // 3, count // 2, count - 1} <= set(kept)


@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
def test_a_thinned_line_keeps_its_gaps(broken):
    values = np.ones(100_000)
    values[4_321], values[70_000:80_000] = broken, broken
    kept = thin(values, most=500)
    within = kept[(kept >= 70_000) & (kept < 80_000)]
    assert len(kept) <= 500 and 4_321 in kept
    assert len(within) > 10 and not np.isfinite(values[within]).any()
    assert thin(np.full(10_000, np.nan), most=100)[-1] == 9_999
