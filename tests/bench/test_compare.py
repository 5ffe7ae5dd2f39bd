"""Steps compared: what is the same result, what is refused, what is compiled and placed before the clock starts.

Times are made up, so that nothing depends on how busy the machine is; real steps only show what they compute.
"""

import itertools
import json
import math
import re
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from kits.marks import slow

import minijaxnet as mjn
from minijaxnet import compare_steps
from minijaxnet.bench import compare, rounds
from minijaxnet.bench.compare import SAME_STEPS, beyond_rounding

SHORT = 0.01  # seconds: only the rounds that an interval needs
WEIGHTS = np.arange(9, dtype=np.float32)


def bowl(weights, batch):
    return jnp.sum((weights - batch) ** 2)


def bowl_by_hand(weights, batch):
    return bowl(weights, batch), 2 * (weights - batch)


PLAIN = mjn.gradient_descent(bowl, 0.1)
BY_HAND = mjn.gradient_descent(mjn.with_gradient(bowl, bowl_by_hand), 0.1)
BOTH = {"a": PLAIN, "b": BY_HAND}


@pytest.fixture
def compared(monkeypatch):
    """Compare arms while the clock advances a millisecond at each reading; a step takes its FLOPs in microseconds."""
    clock, draw = itertools.count(step=0.001), np.random.default_rng(0)
    monkeypatch.setattr(rounds, "time", SimpleNamespace(perf_counter=clock.__next__))
    monkeypatch.setattr(compare, "sentinel", lambda: lambda: 1e-6)

    class MadeUp:
        def __init__(self, programs, start, steps, seed):
            self.steps, self.calls_s, self.block_s = steps, [], 1e-6 * steps * programs[0].cost_analysis()["flops"]

        def __call__(self):
            self.calls_s.append(1e-9)
            return self.block_s * (1 + draw.exponential(0.1))

    monkeypatch.setattr(compare, "Block", MadeUp)

    def run(arms, params=WEIGHTS, batch=0.0, *, baseline=None, seconds=SHORT, **options):
        return compare_steps(arms, params, batch, baseline=baseline or next(iter(arms)), seconds=seconds, **options)

    return run


def test_a_comparison_takes_arms_of_any_names_and_finds_which_does_more_work_than_the_baseline(compared):
    def work(products):
        def loss(weights, batch):
            for _ in range(products):  # by the identity, which the compiler cannot see
                weights = weights @ batch
            return jnp.sum(weights**2)

        return mjn.gradient_descent(loss, 1e-3)

    little, names = work(1), ("baseline again", "control", "0", "a name\0", "−ß☃")
    arms = {"much": work(12), "little": little} | dict.fromkeys(names, little)
    found = compared(arms, np.ones((16, 16), np.float32), np.eye(16, dtype=np.float32), baseline="little", seconds=0.1)
    assert found.sound and found.rounds >= 50
    assert found.verdicts["much"] == "slower" and {found.verdicts[name] for name in names} <= {"same", "undecided"}
    assert found.ratios["much"].low > 3
    assert list(found.arms) == list(arms) and found.baseline == "little"
    assert all(len(arm.samples_s) == found.rounds for arm in found.arms.values())
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False))["verdicts"] == found.verdicts


# --- What is refused --------------------------------------------------------------------------------------------------

NO_TIMES = (math.nan, 0, -1.0, math.inf, np.float32("nan"))
NO_NUMBERS = ("1", True, None, np.bool_(True), 1j)


@pytest.mark.parametrize(
    ("arms", "options", "error", "words"),
    [
        ({"a": PLAIN}, {}, ValueError, "arms: got 1; expected at least two"),
        (BOTH, {"baseline": "c"}, ValueError, "baseline: got 'c'; expected one of a, b"),
        *((BOTH | {name: PLAIN}, {}, TypeError, f"the name {name!r}; expected text") for name in (3, None, b"a")),
        *((BOTH | {name: PLAIN}, {}, ValueError, f"the name {name!r}; expected one") for name in ("", "\n")),
        *((BOTH, {"seconds": n}, ValueError, f"seconds: got {n}; expected a positive number") for n in NO_TIMES),
        *((BOTH, {"seconds": n}, TypeError, f"seconds: got {n!r}; expected a positive number") for n in NO_NUMBERS),
        *((BOTH, {"width": n}, ValueError, f"width: got {n}; expected a share between 0 and 1") for n in (0, 1, -0.1)),
        *((BOTH, {"width": n}, TypeError, f"width: got {n!r}; expected a share such as 0.01") for n in NO_NUMBERS),
    ],
)
def test_what_cannot_be_compared_is_refused_before_anything_is_compiled(monkeypatch, arms, options, error, words):
    monkeypatch.setattr(compare, "_compiled", None)
    with pytest.raises(error, match=re.escape(words)):
        compare_steps(arms, WEIGHTS, 0.0, **{"baseline": "a"} | options)


def stand_still(state, batch):
    return state, mjn.StepInfo(jnp.float32(0), jnp.float32(0))


def starting_from(start):
    return mjn.Descent(lambda params, key=None: mjn.DescentState(start(params), (), jnp.int32(0), key), stand_still)


def test_a_step_that_does_nothing_is_refused():
    arms = {"a": PLAIN, "idle": mjn.Descent(PLAIN.init, stand_still)}
    with pytest.raises(ValueError, match=r"arms\['idle'\]: got a step that does nothing, .* \(XLA removed the loop\)"):
        compare_steps(arms, WEIGHTS, 0.0, baseline="a", seconds=SHORT, same_result=False)


def noisy(sign):
    return lambda weights, batch, key: bowl(sign * (weights + jax.random.key_data(key)[1] % 7), sign * batch)


def reordered(weights, batch):
    return jnp.sum(weights**2) - 2 * jnp.sum(weights * batch) + weights.size * batch**2


def flipped(weights, batch):
    return bowl(weights, batch), jnp.sign(jnp.arange(9) - 8) * jax.grad(bowl)(weights, batch)


@pytest.mark.parametrize(
    ("objectives", "key"),
    [
        ({"a": bowl, "same": reordered, "other": mjn.with_gradient(bowl, flipped)}, None),
        ({"a": noisy(1), "same": noisy(-1), "other": lambda weights, batch, key: bowl(weights, batch)}, 0),
    ],
    ids=["a wrong gradient", "another use of the key"],
)
@pytest.mark.parametrize("dtype", ["bfloat16", *slow("float32")])
def test_arms_of_another_result_are_refused_by_leaf_and_a_difference_of_rounding_is_the_same(
    compared, objectives, key, dtype
):
    arms = {name: mjn.gradient_descent(objective, 0.1) for name, objective in objectives.items()}
    weights, batch = (np.asarray(values, jnp.dtype(dtype)) for values in (WEIGHTS, 0.3))
    key = None if key is None else jax.random.key(key)
    with pytest.raises(ValueError, match=r"arms\['other'\]: params\(leaf\) differs from .*'a'.* same_result=False"):
        compared(arms, weights, batch, key=key)
    assert compared(arms, weights, batch, key=key, same_result=False).rounds >= 7


@pytest.mark.parametrize(
    ("start", "words"),
    [
        (lambda params: {"w": params}, r"got a tree with leaves \[\"\['w'\]\"\]; expected \['\(leaf\)'\]"),
        (lambda params: params[:1], r"\(leaf\): got float32\[1\]; expected float32\[3\]"),
        (lambda params: params.astype(jnp.bfloat16), r"\(leaf\): got bfloat16\[3\]; expected float32\[3\]"),
    ],
    ids=["structure", "shape", "dtype"],
)
def test_arms_whose_params_are_of_another_kind_are_refused_by_name(compared, start, words):
    arms = {"a": starting_from(lambda params: params), "b": starting_from(start)}
    with pytest.raises(ValueError, match=r"arms\['b'\]: params: " + words):
        compared(arms, WEIGHTS[:3])


# --- What is the same result ------------------------------------------------------------------------------------------


def differs(start, end, other):
    """The leaf in which two results differ beyond rounding, in both orders; None if there is none."""
    both = (beyond_rounding(start, *ends) for ends in ((end, other), (other, end)))
    (path,) = {found and found[0] for found in both}
    return path


@pytest.mark.parametrize(
    ("dtype", "rate"), [("bfloat16", 0.02), ("float32", 1e-1), ("float32", 1e-5), ("float64", 1e-12)]
)
def test_a_wrong_gradient_is_another_result_at_a_small_learning_rate_too(dtype, rate):
    kind = np.dtype(jnp.dtype(dtype))

    def end(factor):
        weights = np.arange(9).astype(kind)
        for _ in range(SAME_STEPS):
            weights = (weights - kind.type(rate * factor) * weights).astype(kind)
        return weights

    assert differs(np.arange(9).astype(kind), end(2), end(2)) is None
    for factor in (-4, 8, 0):
        assert differs(np.arange(9).astype(kind), end(2), end(factor)) == "(leaf)"


def test_an_update_within_the_rounding_of_the_params_is_the_same_and_a_larger_one_is_not():
    assert differs(WEIGHTS, WEIGHTS, np.nextafter(WEIGHTS, 9, dtype=np.float32)) is None
    assert differs(WEIGHTS, WEIGHTS, WEIGHTS * np.float32(1 + 3e-6)) == "(leaf)"


def test_a_gradient_that_cancels_to_rounding_error_is_the_same():
    # The errors have the mean 0 and so has the gradient of the bias, except for rounding.
    terms = np.random.default_rng(0).normal(size=999).astype(np.float32)
    terms -= np.mean(terms)
    bias = [np.cumsum(terms[::way], dtype=np.float32)[-1] / 999 for way in (1, -1)]
    assert abs(bias[0] - bias[1]) > 1e-2 * abs(bias[0]), "all is rounding"
    start = {"weights": np.zeros(2, np.float32), "bias": np.float32(0)}
    ends = [{"weights": np.float32([3, -2]), "bias": gradient} for gradient in bias]
    assert differs(start, *ends) is None
    assert differs(*({"bias": tree["bias"]} for tree in (start, *ends))) == "['bias']", "other leaves show its terms"


def test_the_imaginary_part_counts_and_whole_numbers_have_to_be_the_same():
    number = np.complex64([1 + 1j])
    assert beyond_rounding(number, number, number.conj())[:2] == ("(leaf)", 2)
    counts, flags = jnp.array([1, 2]), jnp.array([True, False])
    assert beyond_rounding(counts, counts + 1, counts + 1) is None and beyond_rounding(flags, flags, flags) is None
    assert beyond_rounding(counts, counts + 1, counts + 2)[:2] == ("(leaf)", 1)
    assert beyond_rounding(flags, flags, ~flags)[:2] == ("(leaf)", 1)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_must_be_so_in_both_arms_at_the_same_index(value):
    first, second = (np.where(np.arange(9) == index, np.float32(value), WEIGHTS) for index in (1, 2))
    assert differs(first, first, first) is differs(WEIGHTS, first, first) is None
    for one, other in ((WEIGHTS, first), (first, second)):
        assert differs(one, one, other) == differs(WEIGHTS, one, other) == "(leaf)"


# --- Before the clock starts ------------------------------------------------------------------------------------------


def test_each_arm_is_traced_once_and_all_is_compiled_and_on_the_device_before_the_first_block(monkeypatch):
    traces, timed = [], []

    def loss(weights, batch):
        traces.append(weights)
        return bowl(weights, batch)

    class Watched(rounds.Block):
        def __init__(self, programs, start, *rest):
            assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(start))
            super().__init__(programs, start, *rest)

        def __call__(self):
            timed.append(len(names))
            return super().__call__()

    monkeypatch.setattr(compare, "Block", Watched)
    step = mjn.gradient_descent(loss, 0.1).step
    arms = {name: mjn.Descent(lambda params, key=None: PLAIN.init(np.asarray(params)), step) for name in "ab"}
    params, batch = jnp.asarray(WEIGHTS), np.ones(9, np.float32)
    with compare.compilations() as names:
        found = compare_steps(arms, params, batch, baseline="a", seconds=SHORT)
    assert len(traces) == 2
    assert names.count("jit(repeat)") == 3, "the baseline twice"
    assert timed == [len(names)] * 3 * found.rounds, "all is compiled before the first block"
    np.testing.assert_array_equal(params, WEIGHTS)


@pytest.mark.parametrize(("seconds", "times"), [(0.01, (2, 1)), (2.0, (3, 3)), (100.0, (4, 4))])
def test_equal_loops_are_compiled_anew_as_often_as_half_of_the_time_allows(compared, monkeypatch, seconds, times):
    now, program, block, programs, traces = [0.0], compare._program, compare.Block, [], []

    def slowly(*args):
        now[0] += 0.2
        return program(*args)

    def loss(weights, batch):
        traces.append(weights)
        return bowl(weights, batch)

    monkeypatch.setattr(compare, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    monkeypatch.setattr(compare, "_program", slowly)
    monkeypatch.setattr(compare, "block_length", lambda *args: (1, 0.0))
    monkeypatch.setattr(compare, "Block", lambda given, *rest: programs.append(given) or block(given, *rest))
    monkeypatch.setattr(compare, "take_rounds", lambda runs, *rest: iter([(0.03, 1.0, np.ones((9, 3)), np.ones(2))]))
    monkeypatch.setattr(compare, "calls_of", lambda *rest: np.zeros(3))
    found = compared({name: mjn.gradient_descent(loss, 0.1) for name in "ab"}, seconds=seconds)
    first, other, second = map(len, programs)
    assert (first + second, other) == times and second >= 1
    assert len(traces) == 2 and all(arm.compile_s == pytest.approx(0.2) for arm in found.arms.values())


def test_the_cost_of_a_call_is_subtracted(compared, monkeypatch):
    class Expensive:
        def __init__(self, programs, start, steps, seed):
            self.steps, self.calls_s, self.block_s = steps, [], 1e-3 + 1e-6 * steps

        def __call__(self):
            self.calls_s.append(1e-3)
            return self.block_s

    monkeypatch.setattr(compare, "Block", Expensive)
    found = compared(BOTH, seconds=0.1)
    assert [arm.step_s for arm in found.arms.values()] == pytest.approx([1e-6, 1e-6])
    assert {arm.call_s for arm in found.arms.values()} == {1e-3} and found.verdicts == {"b": "same"}


def test_it_ends_at_the_first_look_at_which_every_verdict_is_clear(compared):
    def wide(weights, batch):
        return bowl(weights, batch) + jnp.sum(jnp.sin(weights))

    arms = {"plain": PLAIN, "again": BY_HAND, "wide": mjn.gradient_descent(wide, 0.1)}
    early = compared({name: arms[name] for name in ("plain", "wide")}, seconds=1, same_result=False)
    assert early.verdicts == {"wide": "slower"} and early.rounds < 150 and early.risk == 0.002
    late = compared(arms, seconds=1, same_result=False, width=1e-4)
    assert late.verdicts["again"] == "undecided" and late.rounds > 900 and late.risk == 0.03


def test_an_arm_that_is_far_slower_has_blocks_of_its_own_length(compared, monkeypatch):
    """The steps that fill a millisecond of a fast arm would keep a slow one for seconds."""
    steps, block = {}, compare.Block
    lengths = {"fast": (4_096, 1e-3), "slow": (1, 0.04)}
    monkeypatch.setattr(compare, "block_length", lambda name, program, start: lengths[name])
    monkeypatch.setattr(compare, "Block", lambda *args: steps.update({args[3]: args[2]}) or block(*args))
    compared({"fast": PLAIN, "slow": BY_HAND})
    assert steps == {0: 4_096, 1: 1, 2: 4_096}
