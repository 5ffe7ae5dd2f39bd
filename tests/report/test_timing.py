"""Pictures of a comparison of steps: from the object and from what was kept of it."""

import json
import math

import numpy as np
import pytest
from kits.marks import slow
from kits.pictures import axes_with, lines
from kits.timings import comparison

from minijaxnet.bench import Limits
from minijaxnet.report.timing import (
    compared,
    draw_compile_and_steady,
    draw_forest,
    draw_roofline,
    draw_samples,
)

DRAW = (draw_forest, draw_samples, draw_compile_and_steady)


THREE = {"autodiff": 1, "by hand": 0.8, "slow $x_1$ <b>": 5}


def test_the_object_and_its_json_give_the_same(tmp_path):
    found = comparison(THREE)
    found.save(tmp_path / "kept.json")
    kept = compared(json.loads((tmp_path / "kept.json").read_text()))
    of_object, of_dict = compared(found), compared(json.loads(json.dumps(found.to_dict())))
    of_run = compared({"compile_s": 1.0, "step_us": 2.0, "step_comparison": found.to_dict()})
    assert kept.ratios == of_object.ratios == of_dict.ratios == of_run.ratios == found.ratios
    assert kept.verdicts == of_dict.verdicts == found.verdicts
    assert kept.samples_s["by hand"].tolist() == found.arms["by hand"].samples_s.tolist()
    assert of_dict.samples_s == {} and of_dict.sentinel_s.size == 0
    assert compared(kept) is kept


@pytest.mark.parametrize("source", [{}, {"step_comparison": None}, {"status": "FLAT"}])
def test_what_holds_no_comparison_is_refused(source):
    with pytest.raises(ValueError, match=r"source: got .*; expected a comparison of steps"):
        compared(source)


def test_a_forest_has_each_interval_the_verdicts_and_the_baselines_own(tmp_path):
    found = comparison(THREE)
    axes = axes_with(lambda axes: draw_forest(axes, found), tmp_path)
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
    for told in (found, json.loads(json.dumps(found.to_dict()).replace("NaN", "null"))):
        axes_with(lambda axes, told=told: draw(axes, told), tmp_path, width)


@pytest.mark.parametrize("draw", DRAW)
def test_a_lone_baseline_is_drawn(draw, axes):
    draw(axes, comparison({"only": 1}))
    axes.figure.draw_without_rendering()


def test_samples_are_drawn_in_time_order_over_their_median(axes):
    found = comparison(THREE)
    draw_samples(axes, found)
    samples = found.arms["by hand"].samples_s
    line = next(line for label, line in lines(axes).items() if label.startswith("by hand, 80"))
    assert line.get_xdata().tolist() == list(range(1, 21))
    assert np.allclose(line.get_ydata(), samples / np.median(samples))
    assert np.allclose(lines(axes)["a fixed workload"].get_ydata()[[0, -1]], [1 / 1.25, 1.5 / 1.25])
    assert len({line.get_marker() for line in axes.get_lines() if line.get_marker() != "None"}) == 3


def test_samples_that_were_not_kept_are_missed_in_words(axes):
    draw_samples(axes, comparison(THREE).to_dict())
    assert [text.get_text() for text in axes.texts] == ["the samples were not kept"]


def test_compiling_is_told_in_steps(axes):
    draw_compile_and_steady(axes, comparison(THREE))
    ends = [bar.get_x() + bar.get_width() for bar in axes.patches]
    assert np.allclose(ends[3:], 0.5) and np.allclose(ends[:3], [1e-4, 0.8e-4, 5e-4], rtol=0.01)
    assert axes.texts[0].get_text().startswith("= 5,0") or axes.texts[0].get_text().startswith("= 4,9")


LIMITS = Limits(1e-3, 0.0, 1e-4, 5e-4, "compute", 0.5, 40.0, 8.0, ("a note",))


def test_steps_stand_under_the_roof_by_what_they_attain(tmp_path):
    axes = axes_with(lambda axes: draw_roofline(axes, LIMITS, {"torch": 2e-3, "lost": math.nan}), tmp_path)
    found = {label: line for label, line in lines(axes).items() if not label.startswith("_")}
    assert list(found) == ["this step, 1,000 us, 50 %", "torch, 2,000 us, 25 %"]
    assert [float(np.ravel(line.get_xdata())[0]) for line in found.values()] == [40.0, 40.0]
    assert [float(np.ravel(line.get_ydata())[0]) for line in found.values()] == [0.5, 0.25]
    roof = axes.get_lines()[0]
    assert np.allclose(roof.get_ydata(), np.minimum(1, roof.get_xdata() / 8.0))


def test_a_called_step_has_the_calls_ceiling_and_limits_may_come_from_json(axes):
    draw_roofline(axes, json.loads(json.dumps(LIMITS._replace(dispatch_s=8e-4)._asdict())), {})
    assert "this step, 1,000 us, 50 %" in lines(axes)
    assert lines(axes)["an empty call"].get_ydata() == [0.625, 0.625]


@pytest.mark.parametrize("odd", [{"compute_s": 0.0, "ridge": math.nan, "intensity": 0.0}, {"intensity": math.inf}])
def test_a_step_without_products_has_no_roof(odd, axes):
    draw_roofline(axes, LIMITS._replace(**odd))
    assert "no roof" in axes.texts[0].get_text()
