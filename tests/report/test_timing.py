"""Pictures of a comparison of steps: from the object and from its file."""

import json

import numpy as np
import pytest
from kits.marks import slow
from kits.pictures import axes_with, lines
from kits.timings import comparison

from minijaxnet.report.timing import draw_forest, draw_samples

DRAW = (draw_forest, draw_samples)
THREE = {"autodiff": 1, "by hand": 0.8, "slow $x_1$ <b>": 5}


@pytest.mark.parametrize("from_file", [False, True])
def test_a_forest_has_each_interval_the_verdicts_and_the_baselines_own(tmp_path, from_file):
    found = comparison(THREE)
    found.save(tmp_path / "saved.json")
    saved = json.loads((tmp_path / "saved.json").read_text())
    axes = axes_with(lambda axes: draw_forest(axes, saved if from_file else found), tmp_path)
    intervals = [line.get_xdata() for line in axes.get_lines() if len(line.get_xdata()) == 2][1:]
    assert [list(x) for x in intervals] == [
        [1.0, 1.0],
        list(found.ratios["by hand"][1:]),
        list(found.ratios["slow $x_1$ <b>"][1:]),
        list(found.control[1:]),
    ]
    texts = [text.get_text() for text in axes.texts]
    assert texts[:3] == ["baseline", "0.800  faster", "5.000  slower"] and texts[3].endswith("sound")
    assert axes.get_xscale() == "log"
    assert "slow $x_1$ &lt;b&gt;" in (tmp_path / "picture.svg").read_text()


def test_an_unsound_comparison_says_so(axes):
    draw_forest(axes, comparison(THREE, control=1.2))
    assert axes.texts[-1].get_text() == "1.200  UNSOUND"


@pytest.mark.parametrize("draw", DRAW)
@pytest.mark.parametrize(("rounds", "width"), [(3, 3.0), *slow((1, 3.0), (40, 3.0), (1, 4.8), (3, 4.8), (40, 4.8))])
def test_few_rounds_and_little_room_are_no_trouble(draw, rounds, width, tmp_path):
    found = comparison(THREE, rounds)
    saved = {"found": json.loads(json.dumps(found.to_dict()).replace("NaN", "null"))}
    for source in (found, saved, comparison({"only": 1})):
        axes_with(lambda axes, source=source: draw(axes, source), tmp_path, width)


def test_samples_are_drawn_in_time_order_over_their_median(axes):
    found = comparison(THREE)
    draw_samples(axes, found)
    samples = found.arms["by hand"].samples_s
    line = next(line for label, line in lines(axes).items() if label.startswith("by hand, 80"))
    assert line.get_xdata().tolist() == list(range(1, 21))
    assert np.allclose(line.get_ydata(), samples / np.median(samples))
    assert np.allclose(lines(axes)["a fixed workload"].get_ydata()[[0, -1]], [1 / 1.25, 1.5 / 1.25])
    assert len({line.get_marker() for line in axes.get_lines() if line.get_marker() != "None"}) == 3


def test_a_sentence_says_that_samples_were_not_saved(axes):
    draw_samples(axes, {"found": comparison(THREE).to_dict()})
    assert [text.get_text() for text in axes.texts] == ["the samples were not saved"]
