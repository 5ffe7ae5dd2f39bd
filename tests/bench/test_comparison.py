"""What may be concluded from samples: verdicts, soundness, and the same as text and as JSON."""

import json

import numpy as np
import pytest

from minijaxnet import StepComparison
from minijaxnet.bench import ArmTiming, Interval
from minijaxnet.bench.intervals import median_interval


def comparison(ratio, control=(1.0, 0.999, 1.001), rounds=50, **fields):
    """A comparison with these intervals, whatever the samples."""

    class Given(StepComparison):
        rounds = property(lambda self: given_rounds)
        ratios = property(lambda self: {"other": Interval(*ratio)})
        control = property(lambda self: Interval(*control))

    given_rounds, samples = rounds, np.full(8, 2e-6)
    arms = dict.fromkeys(("plain", "other"), ArmTiming(0.1, 1e-5, samples))
    return Given("plain", arms, samples, samples, machine={"cpu": "one"}, **fields)


@pytest.mark.parametrize(
    ("ratio", "width", "verdict"),
    [
        ((0.99, 0.98, 0.9979), 0.01, "faster"),
        ((0.99, 0.98, 0.9981), 0.01, "undecided"),  # two compilations of one program can differ by as much
        ((1.0, 0.991, 1.009), 0.01, "same"),
        ((1.0, 0.989, 1.009), 0.01, "undecided"),
        ((1.0, 0.991, 1.011), 0.01, "undecided"),
        ((1.005, 1.0021, 1.009), 0.01, "slower"),
        ((1.0, 0.97, 1.03), 0.04, "same"),
    ],
)
def test_a_verdict_needs_an_interval_beyond_what_equal_programs_differ_by_or_within_the_width(ratio, width, verdict):
    found = comparison(ratio, width=width)
    assert found.sound and found.verdicts == {"other": verdict}
    assert found.is_clear == (verdict != "undecided")


@pytest.mark.parametrize(("control", "sound"), [((1.005, 1.0019, 1.01), True), ((1.005, 1.0021, 1.01), False)])
def test_the_baseline_must_not_differ_from_itself(control, sound):
    assert comparison((2.0, 1.9, 2.1), control).sound == sound


@pytest.mark.parametrize("control", [(1.1, 1.05, 1.2), (0.9, 1 / 1.2, 0.95)])
@pytest.mark.parametrize(
    ("ratio", "verdict"),
    [
        ((1.1, 1.06, 1.19), "undecided"),
        ((0.9, 0.84, 0.94), "undecided"),
        ((1.0, 0.999, 1.001), "undecided"),
        ((10.0, 9.0, 11.0), "slower"),
        ((0.1, 0.09, 0.11), "faster"),
    ],
)
def test_where_the_baseline_differs_from_itself_a_verdict_needs_more_than_that(control, ratio, verdict):
    found = comparison(ratio, control)
    assert not found.sound and not found.is_clear and found.verdicts == {"other": verdict}
    assert "UNSOUND: the baseline differs from itself; a verdict needs a ratio of more than 1.200" in str(found)


def test_a_compilation_during_the_rounds_makes_it_unsound():
    found = comparison((2.0, 1.9, 2.1), compiled=("jit(late)",))
    assert not found.sound and "UNSOUND: JAX compiled jit(late) during the rounds" in str(found)


@pytest.mark.parametrize(
    ("ratio", "times"),
    [
        ((1.0, 0.98, 1.02), 4),  # half as wide, and it is within one per cent
        ((1.012, 0.992, 1.032), 4),  # half as wide, and it is beyond two in a thousand
        ((1.006, 0.996, 1.016), 6),
    ],
)
def test_an_undecided_verdict_says_how_much_longer_it_would_take(ratio, times):
    found = comparison(ratio, measured_s=3.0)
    assert found.seconds_needed("other") == pytest.approx(3 * times, rel=0.1)
    assert f"undecided: other would need about {found.seconds_needed('other'):.2g} s" in str(found)


def test_a_printed_comparison_has_a_row_an_arm_and_keeps_to_100_columns():
    found = comparison((3.0, 2.9, 3.1), (1.0, 0.98, 1.03))
    _, _, plain, other, *_ = str(found).splitlines()
    assert other.split() == ["other", "0.10", "2", "3.000", "2.900", "to", "3.100", "slower"]
    assert plain.endswith("baseline")
    assert "50 paired rounds in 1 s; the baseline against itself: 1.000 (0.980 to 1.030)" in str(found)
    assert "same within 0.9 %" in str(comparison((1.0, 0.994, 1.0091)))
    found = comparison((12345.6, 1234.5, 123456.7), (1.1, 1.05, 1.2), rounds=1_000_000)
    assert max(map(len, str(found).splitlines())) <= 100


def test_ratios_are_medians_over_both_entries_of_the_baseline_and_a_dict_of_it_all_survives_json():
    wobble = 1 + np.arange(20) / 100
    samples = {"a": wobble, "b": 2 * wobble[::-1]}
    arms = {name: ArmTiming(0.5, 1e-5, 1e-6 * taken) for name, taken in samples.items()}
    control_s = 1e-6 * wobble[::-1]
    found = StepComparison("a", arms, control_s, np.linspace(1, 2, 20), machine={"cpu": "one"})
    logs = np.log(samples["b"][:, None] / np.stack([samples["a"], 1e6 * control_s], axis=1))
    np.testing.assert_allclose(found.ratios["b"], np.exp(median_interval(logs, 0.05 / 2)), rtol=1e-12)
    logs = np.log(1e6 * control_s / wobble)
    np.testing.assert_allclose(found.control, np.exp(median_interval(logs, 0.05 / 2)), rtol=1e-12)
    assert found.drift == pytest.approx((2 - 2 / 19) / (1 + 2 / 19))
    again = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert again == found.to_dict() and again["sound"] is True and again["verdicts"] == {"b": "slower"}
    assert again["arms"]["b"]["step_us"] == 1e6 * found.arms["b"].step_s == 1e6 * np.median(arms["b"].samples_s)
