"""Which step is faster: the statistics on made-up times, the harness on real steps.

What the verdicts rest on is tested with samples and clocks of our own making, so that nothing hangs on how busy the
machine is; the one real comparison of times is of a step with another that does an order of magnitude more work.
"""

import functools
import itertools
import json
import math
import re
from fractions import Fraction
from types import SimpleNamespace

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

import minijaxnet as mjn
from minijaxnet import StepComparison, compare_steps
from minijaxnet.bench import ArmTiming, Interval, compare, rounds
from minijaxnet.bench import blocks as bench_blocks
from minijaxnet.bench.comparison import _cell
from minijaxnet.bench.intervals import fewest_samples, interval_rank, median_interval

SHORT = 0.01  # seconds: the rounds that an interval needs are then all there are


def bowl(weights, batch):
    return jnp.sum((weights - batch) ** 2)


def bowl_by_hand(weights, batch):
    return bowl(weights, batch), 2 * (weights - batch)


WEIGHTS = jnp.arange(9.0)
PLAIN = mjn.gradient_descent(bowl, 0.1)
BY_HAND = mjn.gradient_descent(mjn.with_gradient(bowl, bowl_by_hand), 0.1)


# --- The interval ---------------------------------------------------------------------------------------------------


def below(rank, rounds):
    """P(fewer than ``rank`` of so many fair coins fall heads), exactly."""
    return Fraction(sum(math.comb(rounds, k) for k in range(rank)), 2**rounds)


def brute_force_rank(rounds, n_arms):
    risk = Fraction(1, 20) / n_arms
    return max((rank for rank in range(1, rounds // 2 + 1) if 2 * below(rank, rounds) <= risk), default=0)


def test_the_rank_is_the_largest_that_the_binomial_allows():
    for n_arms in (1, 2, 3, 5, 10):
        for count in range(1, 61):
            assert interval_rank(count, n_arms) == brute_force_rank(count, n_arms), (count, n_arms)


def test_the_rank_is_also_right_for_thousands_of_rounds():
    for count, n_arms in ((1_000, 2), (4_001, 3)):
        rank, risk = interval_rank(count, n_arms), 0.05 / n_arms
        assert 2 * scipy.stats.binom.cdf(rank - 1, count, 0.5) <= risk < 2 * scipy.stats.binom.cdf(rank, count, 0.5)


def test_the_fewest_rounds_are_the_first_with_an_interval():
    for n_arms in range(1, 20):
        fewest = fewest_samples(n_arms)
        assert brute_force_rank(fewest, n_arms) >= 1 > brute_force_rank(fewest - 1, n_arms)


def test_the_interval_is_between_the_ranks_from_either_end_in_any_order():
    samples = np.random.default_rng(0).permutation(np.arange(1.0, 42.0))
    rank = brute_force_rank(41, 2)
    assert median_interval(samples, 2) == Interval(21.0, float(rank), float(42 - rank))


def test_the_interval_is_that_of_the_sign_test():
    # The values that a two-sided sign test at this risk does not reject as the median.
    samples = np.sort(np.random.default_rng(1).lognormal(size=30))
    ratio = median_interval(samples, 2)

    def rejected(median):
        return scipy.stats.binomtest(int(np.sum(samples < median)), 30, 0.5).pvalue <= 0.025

    assert not rejected(ratio.low * (1 + 1e-9)) and rejected(ratio.low * (1 - 1e-9))
    assert not rejected(ratio.high * (1 - 1e-9)) and rejected(ratio.high * (1 + 1e-9))


@pytest.mark.parametrize("n_arms", [2, 4])
@pytest.mark.parametrize("rounds", [9, 20, 101])
@pytest.mark.parametrize("noise", ["exponential", "pareto", "bursts"])
def test_the_interval_covers_the_true_ratio_as_often_as_it_says_whatever_the_noise(noise, rounds, n_arms):
    draw, trials, true_ratio = np.random.default_rng(rounds), 2_000, 1.3

    def times(count):
        # A machine is sometimes slower than itself, never faster.
        return {
            "exponential": lambda: 1 + draw.exponential(1, count),
            "pareto": lambda: 1 + draw.pareto(1.1, count),
            "bursts": lambda: 1 + 0.01 * draw.random(count) + 5 * (draw.random(count) < 0.2),
        }[noise]()

    covered = 0
    for _ in range(trials):
        # Twins' ratio has the median 1 by symmetry, so that the arm's true ratio is the factor.
        ratio = median_interval(true_ratio * times(rounds) / times(rounds), n_arms)
        covered += ratio.low <= true_ratio <= ratio.high
    nominal = 1 - 0.05 / n_arms
    assert covered / trials >= nominal - 3 * math.sqrt(nominal * (1 - nominal) / trials)


# --- The verdicts ---------------------------------------------------------------------------------------------------


def comparison(ratio, control, rounds=50, names=("plain", "other")):
    """A comparison with these intervals, whatever the samples."""

    class Given(StepComparison):
        rounds = property(lambda self: given_rounds)
        ratios = property(lambda self: {names[1]: Interval(*ratio)})
        control = property(lambda self: Interval(*control))

    given_rounds, samples = rounds, np.full(8, 2e-6)
    return Given(names[0], dict.fromkeys(names, ArmTiming(0.1, samples)), samples, samples)


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


# --- Comparisons on made-up times -----------------------------------------------------------------------------------


def with_times(monkeypatch, factors, noise=lambda draw: 1 + draw.exponential(0.3), tick=0.001):
    """Let the clock go on by ``tick`` a look, and each arm's block take its factor times noise."""
    now, order, draw = itertools.count(step=tick), iter(factors), np.random.default_rng(0)
    monkeypatch.setattr(rounds, "time", SimpleNamespace(perf_counter=now.__next__))
    factor_of = {}

    def block(name, program, state, batch):
        factor = factor_of[name] if name in factor_of else factor_of.setdefault(name, next(order))
        return lambda: 1e-6 * factor * noise(draw)

    monkeypatch.setattr(compare, "_block", block)
    monkeypatch.setattr(rounds, "sentinel", lambda: lambda: 1e-6)


@pytest.mark.parametrize(("factor", "verdict"), [(1, "indistinguishable"), (0.5, "faster"), (2, "slower")])
def test_a_comparison_finds_what_was_put_into_the_times(monkeypatch, factor, verdict):
    with_times(monkeypatch, (1, factor))
    found = compare_steps({"plain": PLAIN, "by hand": BY_HAND}, WEIGHTS, 0.0, baseline="plain", seconds=1)
    assert found.sound and found.rounds >= 100
    assert found.verdicts == {"by hand": verdict}
    ratio = found.ratios["by hand"]
    assert ratio.low <= factor <= ratio.high
    assert found.control.low <= 1 <= found.control.high
    assert found.arms["by hand"].step_s == np.median(found.arms["by hand"].samples_s)
    assert all(len(arm.samples_s) == found.rounds for arm in found.arms.values())


def test_the_baseline_may_be_any_arm_and_has_no_verdict_of_its_own(monkeypatch):
    with_times(monkeypatch, (1, 4, 2))
    arms = {"a": PLAIN, "b": BY_HAND, "c": PLAIN}
    found = compare_steps(arms, WEIGHTS, 0.0, baseline="b", seconds=1)
    assert found.verdicts == {"a": "faster", "c": "faster"}
    assert list(found.arms) == ["a", "b", "c"]
    assert found.ratios["a"].median < 0.4 < found.ratios["c"].median


@pytest.mark.parametrize(("factor", "verdict"), [(1, "indistinguishable"), (1.2, "slower")])
def test_a_drift_that_all_share_leaves_no_trace(monkeypatch, factor, verdict):
    age = itertools.count()
    with_times(monkeypatch, (1, factor), noise=lambda draw: 1.01 ** next(age))  # 3 % slower each round
    found = compare_steps({"a": PLAIN, "b": BY_HAND}, WEIGHTS, 0.0, baseline="a", seconds=1)
    assert found.arms["a"].samples_s[-1] > 10 * found.arms["a"].samples_s[0]
    assert found.sound and found.verdicts == {"b": verdict}


def test_each_arm_is_timed_once_a_round_and_the_baseline_twice(monkeypatch):
    calls = []
    monkeypatch.setattr(rounds, "time", SimpleNamespace(perf_counter=itertools.count(step=0.001).__next__))

    def block(name, program, state, batch):
        return lambda: calls.append(name) or 1e-6

    monkeypatch.setattr(compare, "_block", block)
    found = compare_steps({"a": PLAIN, "b": BY_HAND}, WEIGHTS, 0.0, baseline="a", seconds=0.5)
    each = ["".join(calls[i : i + 3]) for i in range(0, len(calls), 3)]
    assert len(each) == found.rounds
    assert {"".join(sorted(names)) for names in each} == {"aab"}
    assert set(each) == {"aab", "aba", "baa"}, "in a new order each round"


def test_seconds_too_short_for_an_interval_are_refused_with_what_it_needs(monkeypatch):
    with_times(monkeypatch, (1, 1), tick=5.0)
    with pytest.raises(ValueError, match=r"seconds: got 1; expected at least [\d.]+, the 7 rounds that an interval"):
        compare_steps({"a": PLAIN, "b": BY_HAND}, WEIGHTS, 0.0, baseline="a", seconds=1)


def test_one_round_that_takes_long_refuses_nothing(monkeypatch):
    # Five seconds of hiccup in the first round, in which seven would have been too many for one second.
    now, looks = [0.0], itertools.count()
    with_times(monkeypatch, (1, 1))

    def clock():
        now[0] += 5 if next(looks) == 5 else 0.001
        return now[0]

    monkeypatch.setattr(rounds, "time", SimpleNamespace(perf_counter=clock))
    found = compare_steps({"a": PLAIN, "b": BY_HAND}, WEIGHTS, 0.0, baseline="a", seconds=1)
    assert now[0] > 5 and found.rounds == 7


def test_at_least_the_rounds_that_an_interval_needs_are_run(monkeypatch):
    with_times(monkeypatch, (1, 1, 1))
    arms = {"a": PLAIN, "b": BY_HAND, "c": BY_HAND}
    found = compare_steps(arms, WEIGHTS, 0.0, baseline="a", seconds=1e-6)
    assert found.rounds == fewest_samples(3)
    low, high = found.ratios["b"].low, found.ratios["b"].high
    assert low <= found.ratios["b"].median <= high


# --- What is refused ------------------------------------------------------------------------------------------------


def test_one_arm_or_none_is_refused():
    for arms in ({}, {"a": PLAIN}):
        with pytest.raises(ValueError, match=rf"arms: got {len(arms)}; expected at least two"):
            compare_steps(arms, WEIGHTS, 0.0, baseline="a")


def test_a_baseline_that_is_no_arm_is_refused_with_those_there_are():
    with pytest.raises(ValueError, match=r"baseline: got 'c'; expected one of a, b"):
        compare_steps({"a": PLAIN, "b": BY_HAND}, WEIGHTS, 0.0, baseline="c")


def test_arms_that_compute_different_things_are_refused_with_the_leaf_and_accepted_if_told_so(monkeypatch):
    def loss(params, batch):
        return jnp.sum(params["same"] ** 2) + jnp.sum((params["other"]["bias"] - batch) ** 2)

    def slipped(params, batch):
        slope = jax.grad(loss)(params, batch)
        return loss(params, batch), {**slope, "other": {"bias": -slope["other"]["bias"]}}

    arms = {
        "plain": mjn.gradient_descent(loss, 0.1),
        "slipped": mjn.gradient_descent(mjn.with_gradient(loss, slipped), 0.1),
    }
    params = {"same": jnp.ones(2), "other": {"bias": jnp.ones(2)}}
    with pytest.raises(ValueError, match=r"arms\['slipped'\]: params\['other'\]\['bias'\] differs from .*'plain'"):
        compare_steps(arms, params, 3.0, baseline="plain")
    with_times(monkeypatch, (1, 1))
    assert compare_steps(arms, params, 3.0, baseline="plain", seconds=SHORT, same_result=False).rounds >= 7


def test_another_learning_rate_is_another_result():
    with pytest.raises(ValueError, match=r"arms\['b'\]: params\(leaf\) differs .* same_result=False"):
        compare_steps({"a": PLAIN, "b": mjn.gradient_descent(bowl, 0.2)}, WEIGHTS, 0.0, baseline="a")


def test_a_difference_of_rounding_is_the_same_result(monkeypatch):
    def reordered(weights, batch):
        return jnp.sum(weights**2) - 2 * jnp.sum(weights * batch) + weights.size * batch**2

    for dtype in (jnp.float32, jnp.bfloat16):
        with_times(monkeypatch, (1, 1))
        arms = {"a": PLAIN, "b": mjn.gradient_descent(reordered, 0.1)}
        compare_steps(arms, WEIGHTS.astype(dtype), jnp.asarray(0.3, dtype), baseline="a", seconds=SHORT)


def compare_at_once(monkeypatch, arms, params=WEIGHTS, batch=0.0, **options):
    """Hold arms against the first of them, on made-up times."""
    with_times(monkeypatch, [1] * len(arms))
    return compare_steps(arms, params, batch, baseline=next(iter(arms)), seconds=SHORT, **options)


def wrong(slope):
    """The bowl with this slope for its own."""
    return mjn.with_gradient(bowl, lambda weights, batch: (bowl(weights, batch), slope(weights - batch)))


@pytest.mark.parametrize(
    ("dtype", "rate"), [("bfloat16", 0.02), ("float32", 1e-1), ("float32", 1e-5), ("float64", 0.1), ("float64", 1e-12)]
)
@pytest.mark.parametrize("factor", [-2, 4, 0], ids=["flipped", "twice too long", "none"])
def test_a_wrong_gradient_is_another_result_at_a_small_learning_rate_too(monkeypatch, dtype, rate, factor):
    with jax.enable_x64(dtype == "float64"):
        rule = wrong(lambda error: factor * error)
        arms = {"a": mjn.gradient_descent(bowl, rate), "b": mjn.gradient_descent(rule, rate)}
        with pytest.raises(ValueError, match=r"arms\['b'\]: params\(leaf\) differs"):
            compare_at_once(monkeypatch, arms, jnp.arange(9, dtype=dtype), jnp.zeros((), dtype))


def test_an_update_that_the_rounding_of_the_params_swallows_is_not_accused(monkeypatch):
    # One unit in the last place here or there is all that such a step can do.
    arms = {"a": mjn.gradient_descent(bowl, 3e-8), "b": mjn.gradient_descent(wrong(lambda error: 2.5 * error), 3e-8)}
    compare_at_once(monkeypatch, arms)


@pytest.mark.parametrize(
    ("dtype", "rate"), [("bfloat16", 0.5), ("bfloat16", 1e-6), ("float32", 1e-6), ("float64", 0.5)]
)
def test_right_rules_that_round_otherwise_are_the_same_in_every_dtype_at_any_rate(monkeypatch, dtype, rate):
    with jax.enable_x64(dtype == "float64"):
        network = mjn.mlp((5, 16, 3), dtype=dtype)
        objective = mjn.objective(network, mjn.softmax_cross_entropy)
        by_hand = mjn.mlp_gradient((5, 16, 3), activation=jax.nn.relu, loss=mjn.softmax_cross_entropy)
        arms = {
            "autodiff": mjn.gradient_descent(objective, rate),
            "by hand": mjn.gradient_descent(mjn.with_gradient(objective, by_hand), rate),
        }
        x, labels = jax.random.normal(jax.random.key(1), (32, 5), dtype), jnp.arange(32) % 3
        compare_at_once(monkeypatch, arms, network.init(jax.random.key(2)), (x, labels))


def test_a_slope_that_cancels_to_nothing_but_rounding_is_the_same(monkeypatch):
    # The actual values have the mean 0 and so has the slope of the bias, but for rounding.
    x = jax.random.normal(jax.random.key(0), (999, 2))
    x = x - jnp.mean(x, 0)
    y = x @ jnp.array([3.0, -2.0])

    def loss(params, batch):
        return jnp.mean((batch[0] @ params["weights"] + params["bias"] - batch[1]) ** 2)

    def backwards(params, batch):
        return loss(params, (batch[0][::-1], batch[1][::-1]))

    arms = {name: mjn.gradient_descent(fn, 0.1) for name, fn in {"a": loss, "b": backwards}.items()}
    params = {"weights": jnp.zeros(2), "bias": jnp.zeros(())}
    moved = {name: descent.step(descent.init(params), (x, y))[0].params["bias"] for name, descent in arms.items()}
    assert abs(moved["a"] - moved["b"]) > 1e-2 * abs(moved["a"]), "all is rounding"
    compare_at_once(monkeypatch, arms, params, (x, y))


def stand_still(state, batch):
    return state._replace(step=state.step + 1), mjn.StepInfo(jnp.float32(0), jnp.float32(0))


def starting_from(start):
    return mjn.Descent(lambda params, key=None: mjn.DescentState(start(params), (), jnp.int32(0), key), stand_still)


@pytest.mark.parametrize(
    ("start", "words"),
    [
        (lambda params: {"w": params}, r"got a tree with leaves \[\"\['w'\]\"\]; expected \['\(leaf\)'\]"),
        (lambda params: params[:1], r"\(leaf\): got float32\[1\]; expected float32\[3\]"),
        (lambda params: params.astype(jnp.bfloat16), r"\(leaf\): got bfloat16\[3\]; expected float32\[3\]"),
    ],
    ids=["structure", "shape", "dtype"],
)
def test_arms_whose_params_are_not_alike_are_refused_by_name(monkeypatch, start, words):
    arms = {"a": starting_from(lambda params: params), "b": starting_from(start)}
    with pytest.raises(ValueError, match=r"arms\['b'\]: params: " + words):
        compare_at_once(monkeypatch, arms, jnp.ones(3))
    assert compare_at_once(monkeypatch, arms, jnp.ones(3), same_result=False).rounds >= 7


def test_arms_that_start_elsewhere_are_another_result_though_they_move_alike(monkeypatch):
    arms = {"a": starting_from(lambda params: params), "b": starting_from(lambda params: 1.01 * params)}
    with pytest.raises(ValueError, match=r"arms\['b'\]: params\(leaf\) differs"):
        compare_at_once(monkeypatch, arms, jnp.ones(3))


def test_the_imaginary_part_counts(monkeypatch):
    arms = {"a": starting_from(lambda params: params), "b": starting_from(jnp.conj)}
    with pytest.raises(ValueError, match=r"arms\['b'\]: params\(leaf\) differs .* by 2 "):
        compare_at_once(monkeypatch, arms, jnp.array([1 + 1j]))


@pytest.mark.parametrize("value", [jnp.nan, jnp.inf, -jnp.inf])
def test_what_is_not_finite_must_be_so_in_both_arms_at_the_same_place(monkeypatch, value):
    def with_value_at(place):
        return starting_from(lambda params: params.at[place].set(value))

    compare_at_once(monkeypatch, {"a": with_value_at(1), "b": with_value_at(1)})
    plain = starting_from(lambda params: params)
    for first, second in ((plain, with_value_at(1)), (with_value_at(1), plain), (with_value_at(1), with_value_at(2))):
        with pytest.raises(ValueError, match=r"arms\['b'\]: params\(leaf\) differs"):
            compare_at_once(monkeypatch, {"a": first, "b": second})


def test_arms_that_both_turn_nan_compute_the_same(monkeypatch):
    def undefined(weights, batch):
        return jnp.sum(jnp.sqrt(-1 - weights))

    compare_at_once(monkeypatch, {"a": mjn.gradient_descent(undefined, 0.1), "b": mjn.gradient_descent(undefined, 0.2)})


def test_no_name_of_an_arm_gets_in_the_way(monkeypatch):
    for name in ("baseline again", "control", "0", "a name\0", "−ß☃"):
        with_times(monkeypatch, (1, 2))
        found = compare_steps({"plain": PLAIN, name: BY_HAND}, WEIGHTS, 0.0, baseline="plain", seconds=1)
        assert found.sound and found.verdicts == {name: "slower"}


@pytest.mark.parametrize("name", [3, None, ("a", "b"), b"a"])
def test_names_that_are_no_text_are_refused(name):
    with pytest.raises(TypeError, match=rf"arms: got the name {re.escape(repr(name))}; expected text"):
        compare_steps({"a": PLAIN, name: BY_HAND}, WEIGHTS, 0.0, baseline="a")


@pytest.mark.parametrize("name", ["", " ", "\n"])
def test_names_that_nobody_sees_are_refused(name):
    with pytest.raises(ValueError, match=rf"arms: got the name {re.escape(repr(name))}; expected one"):
        compare_steps({"a": PLAIN, name: BY_HAND}, WEIGHTS, 0.0, baseline="a")


@pytest.mark.parametrize("seconds", [math.nan, 0, 0.0, -1.0, math.inf, -math.inf, np.float32("nan")])
def test_seconds_that_are_no_time_are_refused_before_anything_is_compiled(monkeypatch, seconds):
    monkeypatch.setattr(compare, "_loop", None)
    with pytest.raises(ValueError, match=rf"seconds: got {seconds}; expected a positive number"):
        compare_steps({"a": PLAIN, "b": BY_HAND}, WEIGHTS, 0.0, baseline="a", seconds=seconds)


@pytest.mark.parametrize("seconds", ["1", True, None, np.bool_(True), 1j])
def test_seconds_that_are_no_number_are_refused(seconds):
    with pytest.raises(TypeError, match=rf"seconds: got {re.escape(repr(seconds))}; expected a positive number"):
        compare_steps({"a": PLAIN, "b": BY_HAND}, WEIGHTS, 0.0, baseline="a", seconds=seconds)


# --- Blocks ---------------------------------------------------------------------------------------------------------


def blocks(monkeypatch, took):
    """A program that goes on by ``took(steps, call)`` seconds, and the numbers of steps that it was asked for."""
    now, asked = [0.0], []

    def program(state, batch, steps):
        now[0] += took(steps, len(asked))
        asked.append(steps)

    monkeypatch.setattr(bench_blocks, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    return program, asked


@pytest.mark.parametrize("step_s", [1e-9, 3.7e-8, 1e-6, 5e-4, 0.015, 3.0])
def test_a_block_is_one_step_or_as_many_as_are_long_against_the_call(monkeypatch, step_s):
    program, asked = blocks(monkeypatch, lambda steps, call: 1e-5 + steps * step_s)
    run = compare._block("a", program, None, None)
    assert len(asked) <= 12
    assert run() == pytest.approx(step_s, rel=2e-3)
    assert asked[-1] == 1 or asked[-1] * step_s < 2 * rounds._BLOCK_S


@pytest.mark.parametrize("hiccups", [(0,), (1,), (0, 1), (1, 3)])
def test_a_hiccup_of_the_machine_does_not_leave_a_block_of_one_step(monkeypatch, hiccups):
    program, asked = blocks(monkeypatch, lambda steps, call: 1e-5 + steps * 1e-7 + (call in hiccups))
    run = compare._block("a", program, None, None)
    assert run() == pytest.approx(1e-7, rel=2e-3)
    assert asked[-1] * 1e-7 >= rounds._BLOCK_S / 2 - 1e-5


def test_a_step_that_does_nothing_is_refused_by_name():
    def nothing(state, batch):
        return state, mjn.StepInfo(jnp.float32(0), jnp.float32(0))

    arms = {"a": PLAIN, "idle": mjn.Descent(PLAIN.init, nothing)}
    with pytest.raises(ValueError, match=r"arms\['idle'\]: got a step that does nothing, .* \(XLA removed the loop\)"):
        compare_steps(arms, WEIGHTS, 0.0, baseline="a", seconds=SHORT, same_result=False)


def test_no_block_has_more_steps_than_an_int32_holds(monkeypatch):
    program, asked = blocks(monkeypatch, lambda steps, call: 0.0)
    with pytest.raises(ValueError, match="a step that does nothing"):
        compare._block("a", program, None, None)
    assert max(asked) == bench_blocks._MOST_STEPS < 2**31
    assert len(asked) < 12


# --- Real comparisons -----------------------------------------------------------------------------------------------


@pytest.fixture
def short_blocks(monkeypatch):
    """Blocks so short that even on a machine ten times too busy the rounds fit into ``SHORT`` and its grace."""
    monkeypatch.setattr(rounds, "_BLOCK_S", 0.002)


def test_a_step_that_does_many_times_the_work_is_slower(monkeypatch):
    # A clock that counts floating-point operations: what is held against what, without a look at the wall.
    def operations(name, program, state, batch):
        return lambda: program.cost_analysis()["flops"]

    monkeypatch.setattr(compare, "_block", operations)

    def work(products):
        def loss(weights, batch):
            for _ in range(products):  # the identity, but only the batch knows
                weights = weights @ batch
            return jnp.sum(weights**2)

        return mjn.gradient_descent(loss, 1e-3)

    arms = {"much": work(24), "little": work(1)}
    found = compare_steps(arms, jnp.ones((64, 64)), jnp.eye(64), baseline="little", seconds=0.1)
    assert found.verdicts["much"] == "slower"
    assert found.ratios["much"].median > 3


@pytest.mark.usefixtures("short_blocks")
def test_each_arm_is_traced_and_compiled_once_and_nothing_is_compiled_while_the_clock_runs(monkeypatch):
    traces, compiled, timed = {"a": 0, "b": 0}, [], []

    def loss(weights, batch, name):
        traces[name] += 1
        return jnp.sum((weights @ weights - batch) ** 2)

    def listen(event, duration, **kwargs):
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(kwargs.get("fun_name"))

    run = compare._block

    def block(*args):
        timed_block = run(*args)

        def count_and_time():
            timed.append(len(compiled))
            return timed_block()

        return count_and_time

    monkeypatch.setattr(compare, "_block", block)
    arms = {name: mjn.gradient_descent(functools.partial(loss, name=name), 1e-3) for name in traces}
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        found = compare_steps(arms, jnp.eye(3), 0.0, baseline="a", seconds=SHORT)
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert traces == {"a": 1, "b": 1}
    assert compiled.count("jit(repeat)") == 3, "the baseline twice"
    assert timed == [len(compiled)] * 3 * found.rounds, "all is compiled before the first block"
    assert all(arm.compile_s > 0 for arm in found.arms.values())


def test_an_equal_step_is_compiled_anew_so_that_each_arm_shows_what_compiling_takes(monkeypatch):
    traces = []

    def loss(weights, batch):
        traces.append(weights)
        return jnp.sum((weights - batch) ** 2)

    arms = {name: mjn.gradient_descent(loss, 0.1) for name in "abc"}
    assert arms["a"].step == arms["b"].step
    for count in (3, 6):
        compare_at_once(monkeypatch, arms)
        assert len(traces) == count


def test_states_are_on_the_device_before_the_clock_runs(monkeypatch):
    def init(params, key=None):
        return mjn.DescentState(np.ones(3, np.float32), np.zeros(2), np.int32(0), key)

    seen = []
    monkeypatch.setattr(compare, "_block", lambda *args: seen.append(args) or (lambda: 1e-6))
    compare_steps(
        {name: mjn.Descent(init, stand_still) for name in "ab"}, None, np.ones(4), baseline="a", seconds=SHORT
    )
    chex.assert_tree_is_on_device([args[2:] for args in seen], platform="cpu")
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves([args[2:] for args in seen]))


def test_the_time_to_compile_is_no_part_of_the_time_of_a_step(monkeypatch):
    # The clock goes on by 100 s while anything is compiled, by a millisecond otherwise.
    now = [0.0]

    def clock():
        now[0] += 1e-3
        return now[0]

    compiled = compare._compiled

    def slowly(*args):
        now[0] += 100
        return compiled(*args)

    for module in (compare, rounds):
        monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=clock))
    monkeypatch.setattr(compare, "_compiled", slowly)
    monkeypatch.setattr(compare, "_block", lambda *args: lambda: 1e-6)
    found = compare_steps({"a": PLAIN, "b": BY_HAND}, WEIGHTS, 0.0, baseline="a", seconds=SHORT)
    assert all(arm.compile_s == pytest.approx(100, abs=1) for arm in found.arms.values())
    assert all(arm.step_s == 1e-6 for arm in found.arms.values())


def test_a_keyed_objective_is_compared_with_the_key_it_is_given(monkeypatch):
    def noisy(weights, batch, key):
        return jnp.sum((weights - batch + jax.random.normal(key, weights.shape)) ** 2)

    def noisy_otherwise(weights, batch, key):
        return jnp.sum((batch - weights - jax.random.normal(key, weights.shape)) ** 2)

    arms = {"a": mjn.gradient_descent(noisy, 0.1), "b": mjn.gradient_descent(noisy_otherwise, 0.1)}
    with_times(monkeypatch, (1, 1))
    found = compare_steps(arms, WEIGHTS, 0.0, baseline="a", seconds=SHORT, key=jax.random.key(0))
    assert list(found.ratios) == ["b"]
    arms["b"] = mjn.gradient_descent(lambda weights, batch, key: bowl(weights, batch), 0.1)
    with pytest.raises(ValueError, match=r"arms\['b'\]"):
        compare_steps(arms, WEIGHTS, 0.0, baseline="a", seconds=SHORT, key=jax.random.key(0))


def momentum_step(state, batch):
    loss, slope = jax.value_and_grad(bowl)(state.params, batch)
    velocity = 0.9 * state.optimizer + slope
    state = state._replace(params=state.params - 0.01 * velocity, optimizer=velocity, step=state.step + 1)
    return state, mjn.StepInfo(loss, jnp.linalg.norm(slope))


@pytest.mark.usefixtures("short_blocks")
def test_a_descent_of_ones_own_is_an_arm_and_agrees_with_optax():
    import optax

    def init(params, key=None):
        return mjn.DescentState(params, jnp.zeros_like(params), jnp.int32(0), key)

    arms = {
        "ours": mjn.Descent(init, momentum_step),
        "optax": mjn.optax_descent(bowl, optax.sgd(0.01, momentum=0.9)),
    }
    found = compare_steps(arms, WEIGHTS, 1.0, baseline="optax", seconds=SHORT)
    assert list(found.verdicts) == ["ours"]
    assert all(np.all(arm.samples_s > 0) for arm in found.arms.values())


def test_the_params_and_the_batch_are_left_as_they_were(monkeypatch):
    params, batch = {"w": jnp.arange(3.0)}, (np.arange(3.0, dtype=np.float32), jnp.ones(3))
    before = jax.tree.map(np.array, (params, batch))

    def loss(params, batch):
        return jnp.sum((params["w"] * batch[0] - batch[1]) ** 2)

    with_times(monkeypatch, (1, 1))
    descent = mjn.gradient_descent(loss, 0.01)
    compare_steps({"a": descent, "b": descent}, params, batch, baseline="a", seconds=SHORT)
    chex.assert_trees_all_equal((params, batch), before)


# --- The result as text and as JSON ---------------------------------------------------------------------------------


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


def test_an_unsound_comparison_keeps_to_100_columns():
    found = comparison((12345.6, 1234.5, 123456.7), (1.1, 1.05, 1.2), rounds=1_000_000)
    assert lines_too_long(found) == []
    assert str(found).splitlines()[-1].startswith("UNSOUND: the baseline differs from itself")


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


def test_a_comparison_as_a_dict_survives_json(monkeypatch):
    with_times(monkeypatch, (1, 2))
    found = compare_steps({"a": PLAIN, "b": BY_HAND}, WEIGHTS, 0.0, baseline="a", seconds=1)
    again = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert again == found.to_dict()
    assert again["baseline"] == "a" and again["sound"] is True and again["rounds"] == found.rounds
    assert again["verdicts"] == {"b": "slower"}
    assert again["ratios"]["b"] == found.ratios["b"]._asdict()
    assert again["control"] == found.control._asdict()
    assert again["arms"]["b"]["step_us"] == 1e6 * found.arms["b"].step_s
