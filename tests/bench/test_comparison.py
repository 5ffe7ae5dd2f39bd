"""What may be concluded from samples: verdicts, soundness, and the same as text and as JSON."""

import json
import re

import numpy as np
import pytest

from minijaxnet import StepComparison
from minijaxnet.bench import ArmTiming, Interval
from minijaxnet.bench.comparison import _cell


def comparison(ratio, control, rounds=50, names=("plain", "other")):
    """A comparison with these intervals, whatever the samples."""

    class Given(StepComparison):
        rounds = property(lambda self: given_rounds)
        ratios = property(lambda self: {names[1]: Interval(*ratio)})
        control = property(lambda self: Interval(*control))

    given_rounds, samples = rounds, np.full(8, 2e-6)
    return Given(names[0], dict.fromkeys(names, ArmTiming(0.1, samples)), samples, samples, {"cpu": "one"})


@pytest.mark.parametrize(
    ("ratio", "verdict"),
    [
        ((0.5, 0.4, 0.6), "faster"),
        ((0.96, 0.95, 0.9708), "faster"),
        ((0.96, 0.95, 0.9709), "indistinguishable"),  # 1 / 1.03: as far from 1 as the baseline may be from itself
        ((0.985, 0.981, 0.989), "indistinguishable"),
        ((1.0, 0.9, 1.1), "indistinguishable"),
        ((1.5, 0.5, 2.5), "indistinguishable"),
        ((1.02, 1.01, 1.029), "indistinguishable"),
        ((1.04, 1.03, 1.05), "indistinguishable"),
        ((1.04, 1.031, 1.05), "slower"),
        ((3.0, 2.9, 3.1), "slower"),
    ],
)
@pytest.mark.parametrize("control", [(1.0, 0.98, 1.03), (0.99, 1 / 1.03, 1.01)])
def test_a_verdict_needs_an_interval_beyond_what_the_baseline_may_differ_by_from_itself(ratio, verdict, control):
    found = comparison(ratio, control)
    assert found.sound
    assert found.resolution == 1.03
    assert found.verdicts == {"other": verdict}


@pytest.mark.parametrize("control", [(1.1, 1.05, 1.2), (0.9, 1 / 1.2, 0.95)])
def test_where_the_baseline_differs_from_itself_it_says_so_and_a_verdict_needs_more_than_that(control):
    for ratio, verdict in (
        ((1.1, 1.06, 1.19), "indistinguishable"),
        ((0.9, 0.84, 0.94), "indistinguishable"),
        ((1.3, 1.19, 1.4), "indistinguishable"),
        ((10.0, 9.0, 11.0), "slower"),
        ((0.1, 0.09, 0.11), "faster"),
    ):
        found = comparison(ratio, control)
        assert not found.sound
        assert found.verdicts == {"other": verdict}
        assert "UNSOUND: the baseline differs from itself; a verdict needs more than 1.200 times" in str(found)
        assert found.to_dict()["sound"] is False


def test_a_control_that_just_touches_1_is_sound():
    assert comparison((2.0, 1.9, 2.1), (1.0, 1.0, 1.0)).verdicts == {"other": "slower"}
    assert comparison((2.0, 1.9, 2.1), (0.99, 0.98, 1.0)).sound


def lines_too_long(found):
    return [line for line in str(found).splitlines() if len(line) > 100]


def test_a_printed_comparison_has_a_row_an_arm_and_keeps_to_100_columns():
    found = comparison((3.0, 2.9, 3.1), (1.0, 0.98, 1.03), names=("autodiff", "by hand"))
    lines = str(found).splitlines()
    assert lines_too_long(found) == []
    (row,) = (line for line in lines if line.startswith("by hand"))
    assert row.split() == ["by", "hand", "0.10", "2", "3.000", "2.900", "to", "3.100", "slower"]
    (row,) = (line for line in lines if line.startswith("autodiff"))
    assert row.endswith("baseline")
    assert "50 interleaved rounds; the baseline against itself: 1.000 (0.980 to 1.030)" in lines[-2]
    assert "UNSOUND" not in str(found)
    found = comparison((12345.6, 1234.5, 123456.7), (1.1, 1.05, 1.2), rounds=1_000_000)
    assert lines_too_long(found) == [] and str(found).splitlines()[-1].startswith("UNSOUND: the baseline differs from")


@pytest.mark.parametrize("ratio", [(3.0, 2.9, 3.1), (1.2345e-5, 1.2345e-6, 1.2345e-4), (12345.6, 12345.5, 1234567.8)])
@pytest.mark.parametrize(
    "name",
    [
        "the gradient derived by hand, with the products rearranged, and a note on what was rearranged and why",
        "n" * 250,
        "two\nlines\tand a tab",
    ],
    ids=["words", "one word", "lines"],
)
def test_long_names_keep_to_100_columns_and_to_their_words(name, ratio):
    found = comparison(ratio, (0.9, 0.8, 0.95), names=("autodiff of the plain objective", name))
    assert lines_too_long(found) == []
    rule = str(found).splitlines()[1]
    assert set(rule) == {"-"}
    names = "".join(line[: len(rule) - 60] for line in str(found).splitlines()[2:-2])
    assert re.sub(r"\s", "", name[:20]) in re.sub(r"\s", "", names)
    for word in name.split():
        assert word[-20:] in str(found)


@pytest.mark.parametrize(
    ("value", "cell"),
    [(1.0, "1.000"), (0.1234567, "0.123"), (0.0123456, "0.01235"), (1.2e-5, "1.2e-05"), (12.3456, "12.35")],
)
def test_a_ratio_has_four_digits_however_small_or_large(value, cell):
    assert _cell(value) == cell


def test_ratios_are_medians_of_the_rounds_and_a_dict_of_it_all_survives_json():
    wobble = 1 + np.arange(20) / 100
    samples = {"a": wobble, "b": 2 * wobble[::-1]}
    arms = {name: ArmTiming(0.5, 1e-6 * taken) for name, taken in samples.items()}
    found = StepComparison("a", arms, 1e-6 * wobble[::-1], np.linspace(1, 2, 20), {"cpu": "one"})
    logs = np.sort(np.log(samples["b"] / samples["a"]))
    np.testing.assert_allclose(found.ratios["b"], np.exp([np.median(logs), logs[4], logs[-5]]), rtol=1e-12)
    assert found.drift == pytest.approx((2 - 2 / 19) / (1 + 2 / 19))
    again = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert again == found.to_dict()
    assert again["baseline"] == "a" and again["sound"] is True and again["rounds"] == 20
    assert again["verdicts"] == {"b": "slower"}
    assert again["ratios"]["b"] == found.ratios["b"]._asdict()
    assert again["control"] == found.control._asdict()
    assert again["arms"]["b"]["step_us"] == 1e6 * found.arms["b"].step_s == 1e6 * np.median(arms["b"].samples_s)
