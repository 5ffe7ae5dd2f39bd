"""What pictures share: a legend that is whole, whatever its names are."""

import pytest
from kits.marks import slow
from kits.timings import comparison

from minijaxnet.report.several import draw_runs
from minijaxnet.report.style import figure, styled
from minijaxnet.report.timing import draw_samples

NAMES = {
    "short": ["a", "b"],
    "as long as a column": [f"{letter} run of thirty-five letters, {i}" for i, letter in enumerate("abc")],
    "folders": [f"a-very-long-name-of-an-experiment-20261126-093000-{i}" for i in range(3)],
    "sentences": [f"{i} gradient descent, gradient by hand, written twice and once again for good" for i in range(3)],
    "one word": ["e" * 90, "a" * 30],
}


def legend_of(draw, width):
    with styled():
        made = figure(width, height=5)
        draw(made.subplots())
        made.canvas.draw()
        legend = made.axes[0].get_legend()
        place = legend.get_window_extent(made.canvas.get_renderer())
    assert 0 <= place.x0 and place.x1 <= made.bbox.width and place.y1 <= made.bbox.height
    return "".join(text.get_text() for text in legend.get_texts()).replace("\n", "").replace(" ", "")


@pytest.mark.parametrize("names", ["folders", *slow(*(name for name in NAMES if name != "folders"))])
@pytest.mark.parametrize("width", [4.8, *slow(3.4)])
def test_a_legend_is_neither_cut_off_nor_are_its_names(names, width):
    rows = [{"step": i, "loss": 1 / (i + 1)} for i in range(3)]
    text = legend_of(lambda axes: draw_runs(axes, dict.fromkeys(NAMES[names], rows), "loss"), width)
    assert text == "".join(NAMES[names]).replace(" ", "")
    found = comparison(dict.fromkeys(NAMES[names], 1))
    text = legend_of(lambda axes: draw_samples(axes, found), width)
    assert all(name.replace(" ", "") in text for name in NAMES[names])
