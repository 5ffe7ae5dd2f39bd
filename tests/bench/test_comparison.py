"""What may be concluded from samples: verdicts, soundness, and the same as text and as JSON."""

import json
import re

import numpy as np
import pytest

from minijaxnet import StepComparison
from minijaxnet.bench import ArmTiming, Interval
from minijaxnet.bench.comparison import as_ratio
from minijaxnet.bench.intervals import median_interval


def comparison(ratio, control=(1.0, 0.999, 1.001), rounds=50, names=("plain", "other"), **fields):
    """A comparison with these intervals, whatever the samples."""

    class Given(StepComparison):
        rounds = property(lambda self: given_rounds)
        ratios = property(lambda self: {names[1]: Interval(*ratio)})
        control = property(lambda self: Interval(*control))

    given_rounds, samples = rounds, np.full(8, 2e-6)
    arms = dict.fromkeys(names, ArmTiming(0.1, 1e-5, samples))
    return Given(names[0], arms, samples, samples, machine={"cpu": "one"}, **fields)


@pytest.mark.parametrize(
    ("ratio", "verdict"),
    [
        ((0.5, 0.4, 0.6), "faster"),
        ((0.99, 0.98, 0.9979), "faster"),
        ((0.99, 0.98, 0.9981), "undecided"),  # as much lies between two compilations of one program
        ((0.995, 0.992, 0.9985), "same"),
        ((1.0, 0.991, 1.009), "same"),
        ((1.0, 0.989, 1.009), "undecided"),
        ((1.0, 0.991, 1.011), "undecided"),
        ((1.5, 0.5, 2.5), "undecided"),
        ((1.005, 1.0021, 1.009), "slower"),
        ((3.0, 2.9, 3.1), "slower"),
    ],
)
def test_a_verdict_needs_an_interval_beyond_what_equal_programs_differ_by_or_within_the_width(ratio, verdict):
    found = comparison(ratio)
    assert found.sound and found.verdicts == {"other": verdict}
    assert found.is_clear == (verdict != "undecided")


@pytest.mark.parametrize(("width", "verdict"), [(0.02, "undecided"), (0.04, "same")])
def test_the_width_is_the_callers(width, verdict):
    assert comparison((1.0, 0.97, 1.03), width=width).verdicts == {"other": verdict}


@pytest.mark.parametrize(
    ("control", "sound"),
    [
        ((1.0, 0.99, 1.01), True),
        ((1.005, 1.0019, 1.01), True),
        ((1.005, 1.0021, 1.01), False),
        ((0.9, 0.8, 0.99), False),
    ],
)
def test_the_baseline_must_not_differ_from_itself(control, sound):
    assert comparison((2.0, 1.9, 2.1), control).sound == sound


@pytest.mark.parametrize("control", [(1.1, 1.05, 1.2), (0.9, 1 / 1.2, 0.95)])
def test_where_the_baseline_differs_from_itself_it_says_so_and_a_verdict_needs_more_than_that(control):
    for ratio, verdict in (
        ((1.1, 1.06, 1.19), "undecided"),
        ((0.9, 0.84, 0.94), "undecided"),
        ((1.3, 1.19, 1.4), "undecided"),
        ((1.0, 0.999, 1.001), "undecided"),
        ((10.0, 9.0, 11.0), "slower"),
        ((0.1, 0.09, 0.11), "faster"),
    ):
        found = comparison(ratio, control)
        assert not found.sound and not found.is_clear
        assert found.verdicts == {"other": verdict}
        assert "UNSOUND: the baseline differs from itself; a verdict needs more than 1.200 times" in str(found)
        assert found.to_dict()["sound"] is False


def test_a_compilation_while_the_clock_ran_makes_it_unsound():
    found = comparison((2.0, 1.9, 2.1), compiled=("jit(late)",))
    assert not found.sound and "UNSOUND: JAX compiled jit(late) while the clock ran" in str(found)


@pytest.mark.parametrize(
    ("ratio", "times"),
    [
        ((1.0, 0.98, 1.02), 4),  # half as wide, and it is within one per cent
        ((1.012, 0.992, 1.032), 4),  # half as wide, and it is beyond two in a thousand
        ((1.006, 0.996, 1.016), 6),
    ],
)
def test_what_is_undecided_says_how_much_longer_it_would_take(ratio, times):
    found = comparison(ratio, measured_s=3.0)
    assert found.seconds_needed("other") == pytest.approx(3 * times, rel=0.1)
    assert f"undecided: about {found.seconds_needed('other'):.2g} s would settle other" in str(found)


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
    assert "50 paired rounds in 1 s; the baseline against itself: 1.000 (0.980 to 1.030)" in lines[-2]
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
    assert as_ratio(value) == cell


def test_the_same_is_said_with_how_far_it_may_be():
    assert "same within 0.9 %" in str(comparison((1.0, 0.994, 1.0091)))


def test_ratios_are_medians_over_both_entries_of_the_baseline_and_a_dict_of_it_all_survives_json():
    wobble = 1 + np.arange(20) / 100
    samples = {"a": wobble, "b": 2 * wobble[::-1]}
    arms = {name: ArmTiming(0.5, 1e-5, 1e-6 * taken) for name, taken in samples.items()}
    control_s = 1e-6 * wobble[::-1]
    found = StepComparison("a", arms, control_s, np.linspace(1, 2, 20), machine={"cpu": "one"})
    logs = np.log(samples["b"][:, None] / np.stack([samples["a"], 1e6 * control_s], axis=1))
    np.testing.assert_allclose(found.ratios["b"], np.exp(median_interval(logs, 0.05 / 2)), rtol=1e-12)
    np.testing.assert_allclose(
        found.control, np.exp(median_interval(np.log(1e6 * control_s / wobble), 0.05 / 2)), rtol=1e-12
    )
    assert found.drift == pytest.approx((2 - 2 / 19) / (1 + 2 / 19))
    again = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert again == found.to_dict()
    assert again["baseline"] == "a" and again["sound"] is True and again["rounds"] == 20
    assert again["verdicts"] == {"b": "slower"}
    assert again["ratios"]["b"] == found.ratios["b"]._asdict()
    assert again["control"] == found.control._asdict()
    assert again["arms"]["b"]["step_us"] == 1e6 * found.arms["b"].step_s == 1e6 * np.median(arms["b"].samples_s)
    assert again["arms"]["b"]["call_us"] == pytest.approx(10)
