"""Steps compared: what is the same result, what is refused, what is compiled and placed before the clock runs.

Times are made up, so that nothing hangs on how busy the machine is; real steps are asked only what they compute.
"""

import functools
import itertools
import json
import math
import re
from types import SimpleNamespace

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from kits.marks import slow

import minijaxnet as mjn
from minijaxnet import compare_steps
from minijaxnet.bench import compare, machine, rounds
from minijaxnet.bench.compare import SAME_STEPS, beyond_rounding

SHORT = 0.01  # seconds: the rounds that an interval needs are then all there are
WEIGHTS = np.arange(9, dtype=np.float32)


def bowl(weights, batch):
    return jnp.sum((weights - batch) ** 2)


def bowl_by_hand(weights, batch):
    return bowl(weights, batch), 2 * (weights - batch)


PLAIN = mjn.gradient_descent(bowl, 0.1)
BY_HAND = mjn.gradient_descent(mjn.with_gradient(bowl, bowl_by_hand), 0.1)


@pytest.fixture(autouse=True)
def no_git(monkeypatch):
    monkeypatch.setattr(machine, "_commit", lambda: "a commit")


@pytest.fixture
def compared(monkeypatch):
    """Hold arms against one of them while the clock goes on by a millisecond a look; a step takes its FLOPs in us."""
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


def test_a_comparison_takes_arms_of_any_names_and_says_which_does_more_work_than_the_baseline(compared):
    def work(products):
        def loss(weights, batch):
            for _ in range(products):  # the identity, but only the batch knows
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


NO_TIMES = (math.nan, 0, 0.0, -1.0, math.inf, -math.inf, np.float32("nan"))
NO_NUMBERS = ("1", True, None, np.bool_(True), 1j)
BOTH = {"a": PLAIN, "b": BY_HAND}


@pytest.mark.parametrize(
    ("arms", "options", "error", "words"),
    [
        ({}, {}, ValueError, "arms: got 0; expected at least two"),
        ({"a": PLAIN}, {}, ValueError, "arms: got 1; expected at least two"),
        (BOTH, {"baseline": "c"}, ValueError, "baseline: got 'c'; expected one of a, b"),
        *(
            (BOTH | {name: PLAIN}, {}, TypeError, f"the name {name!r}; expected text")
            for name in (3, None, ("a",), b"a")
        ),
        *((BOTH | {name: PLAIN}, {}, ValueError, f"the name {name!r}; expected one") for name in ("", " ", "\n")),
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


def test_a_step_that_does_nothing_is_refused_by_name():
    def nothing(state, batch):
        return state, mjn.StepInfo(jnp.float32(0), jnp.float32(0))

    arms = {"a": PLAIN, "idle": mjn.Descent(PLAIN.init, nothing)}
    with pytest.raises(ValueError, match=r"arms\['idle'\]: got a step that does nothing, .* \(XLA removed the loop\)"):
        compare_steps(arms, WEIGHTS, 0.0, baseline="a", seconds=SHORT, same_result=False)


def test_arms_that_compute_different_things_are_refused_with_the_leaf_and_accepted_if_told_so(compared):
    def loss(params, batch):
        return jnp.sum(params["same"] ** 2) + jnp.sum((params["other"]["bias"] - batch) ** 2)

    def slipped(params, batch):
        slope = jax.grad(loss)(params, batch)
        return loss(params, batch), {**slope, "other": {"bias": -slope["other"]["bias"]}}

    arms = {
        "plain": mjn.gradient_descent(loss, 0.1),
        "slipped": mjn.gradient_descent(mjn.with_gradient(loss, slipped), 0.1),
    }
    params = {"same": np.ones(2, np.float32), "other": {"bias": np.ones(2, np.float32)}}
    with pytest.raises(ValueError, match=r"arms\['slipped'\]: params\['other'\]\['bias'\] differs from .*'plain'"):
        compared(arms, params, 3.0)
    assert compared(arms, params, 3.0, same_result=False).rounds >= 7


@pytest.mark.parametrize("dtype", ["bfloat16", *slow("float32")])
def test_another_rate_is_another_result_and_a_difference_of_rounding_the_same(compared, dtype):
    def reordered(weights, batch):
        return jnp.sum(weights**2) - 2 * jnp.sum(weights * batch) + weights.size * batch**2

    arms = {"a": PLAIN, "same": mjn.gradient_descent(reordered, 0.1), "b": mjn.gradient_descent(bowl, 0.2)}
    with pytest.raises(ValueError, match=r"arms\['b'\]: params\(leaf\) differs .* same_result=False"):
        compared(arms, WEIGHTS.astype(jnp.dtype(dtype)), np.asarray(0.3, jnp.dtype(dtype)))


def test_a_keyed_objective_is_compared_with_the_key_it_is_given(compared):
    def noisy(weights, batch, key):
        return bowl(weights + jax.random.key_data(key)[1] % 7, batch)

    def noisy_otherwise(weights, batch, key):
        return bowl(-weights - jax.random.key_data(key)[1] % 7, -batch)

    objectives = {"a": noisy, "same": noisy_otherwise, "b": lambda weights, batch, key: bowl(weights, batch)}
    arms = {name: mjn.gradient_descent(objective, 0.1) for name, objective in objectives.items()}
    with pytest.raises(ValueError, match=r"arms\['b'\]: params"):
        compared(arms, key=jax.random.key(0))


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
def test_arms_whose_params_are_not_alike_are_refused_by_name(compared, start, words):
    arms = {"a": starting_from(lambda params: params), "b": starting_from(start)}
    with pytest.raises(ValueError, match=r"arms\['b'\]: params: " + words):
        compared(arms, WEIGHTS[:3])


def test_arms_whose_params_are_not_alike_are_compared_if_told_so(compared):
    arms = {"a": starting_from(lambda params: params), "b": starting_from(lambda params: {"w": params})}
    assert compared(arms, WEIGHTS[:3], same_result=False).rounds >= 7


# --- What is the same result ------------------------------------------------------------------------------------------


def differs(start, end, other):
    """The leaf in which two ends differ beyond rounding, in both orders; None if there is none."""
    found = {
        beyond_rounding(start, *ends) and beyond_rounding(start, *ends)[0] for ends in ((end, other), (other, end))
    }
    (path,) = found
    return path


@pytest.mark.parametrize(
    ("dtype", "rate"), [("bfloat16", 0.02), ("float32", 1e-1), ("float32", 1e-5), ("float64", 0.1), ("float64", 1e-12)]
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


def test_an_update_that_the_rounding_of_the_params_swallows_is_not_accused():
    # One unit in the last place here or there is all that such a step can do.
    assert differs(WEIGHTS, WEIGHTS, np.nextafter(WEIGHTS, 9, dtype=np.float32)) is None
    assert differs(WEIGHTS, WEIGHTS, WEIGHTS * np.float32(1 + 3e-6)) == "(leaf)"


def test_a_slope_that_cancels_to_nothing_but_rounding_is_the_same():
    # The actual values have the mean 0 and so has the slope of the bias, but for rounding.
    terms = np.random.default_rng(0).normal(size=999).astype(np.float32)
    terms -= np.mean(terms)
    bias = [np.cumsum(terms[::way], dtype=np.float32)[-1] / 999 for way in (1, -1)]
    assert abs(bias[0] - bias[1]) > 1e-2 * abs(bias[0]), "all is rounding"
    start = {"weights": np.zeros(2, np.float32), "bias": np.float32(0)}
    ends = [{"weights": np.float32([3, -2]), "bias": slope} for slope in bias]
    assert differs(start, *ends) is None
    assert differs(*({"bias": tree["bias"]} for tree in (start, *ends))) == "['bias']", "other leaves show its terms"


def test_arms_that_start_elsewhere_are_another_result_though_they_move_alike():
    assert differs(WEIGHTS, WEIGHTS, np.float32(1.01) * WEIGHTS) == "(leaf)"


def test_the_imaginary_part_counts():
    number = np.complex64([1 + 1j])
    assert beyond_rounding(number, number, number.conj())[:2] == ("(leaf)", 2)


def test_whole_numbers_among_the_params_have_to_be_the_same():
    counts, flags = jnp.array([1, 2]), jnp.array([True, False])
    assert beyond_rounding(counts, counts + 1, counts + 1) is None and beyond_rounding(flags, flags, flags) is None
    assert beyond_rounding(counts, counts + 1, counts + 2)[:2] == ("(leaf)", 1)
    assert beyond_rounding(flags, flags, ~flags)[:2] == ("(leaf)", 1)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_must_be_so_in_both_arms_at_the_same_place(value):
    first, second = (np.where(np.arange(9) == place, np.float32(value), WEIGHTS) for place in (1, 2))
    nothing = np.full(9, value, np.float32)
    assert differs(first, first, first) is differs(WEIGHTS, nothing, nothing) is None
    for one, other in ((WEIGHTS, first), (first, second)):
        assert differs(one, one, other) == differs(WEIGHTS, one, other) == "(leaf)"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "rate"), [("bfloat16", 0.5), ("bfloat16", 1e-6), ("float32", 1e-6), ("float64", 0.5)]
)
def test_right_rules_that_round_otherwise_are_the_same_in_every_dtype_at_any_rate(compared, dtype, rate):
    with jax.enable_x64(dtype == "float64"):
        network = mjn.mlp((5, 16, 3), dtype=dtype)
        objective = mjn.objective(network, mjn.softmax_cross_entropy)
        by_hand = mjn.mlp_gradient((5, 16, 3), activation=jax.nn.relu, loss=mjn.softmax_cross_entropy)
        arms = {
            "autodiff": mjn.gradient_descent(objective, rate),
            "by hand": mjn.gradient_descent(mjn.with_gradient(objective, by_hand), rate),
        }
        x, labels = jax.random.normal(jax.random.key(1), (32, 5), dtype), jnp.arange(32) % 3
        compared(arms, network.init(jax.random.key(2)), (x, labels))


# --- Before the clock runs --------------------------------------------------------------------------------------------


def test_each_arm_is_traced_and_compiled_once_and_nothing_is_compiled_while_the_clock_runs(monkeypatch):
    import optax

    traces, compiled, timed = {"ours": 0, "optax": 0}, [], []

    def loss(weights, batch, name):
        traces[name] += 1
        return jnp.sum((weights - batch) ** 2)

    def momentum(state, batch):
        value, slope = jax.value_and_grad(functools.partial(loss, name="ours"))(state.params, batch)
        velocity = 0.9 * state.optimizer + slope
        state = state._replace(params=state.params - 0.01 * velocity, optimizer=velocity, step=state.step + 1)
        return state, mjn.StepInfo(value, jnp.linalg.norm(slope))

    def init(params, key=None):
        return mjn.DescentState(params, np.zeros_like(params), np.int32(0), key)

    def listen(event, duration, **kwargs):
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(kwargs.get("fun_name"))

    class Watched(rounds.Block):
        def __call__(self):
            timed.append(len(compiled))
            return super().__call__()

    monkeypatch.setattr(compare, "Block", Watched)
    optax_loss = functools.partial(loss, name="optax")
    arms = {"ours": mjn.Descent(init, momentum), "optax": mjn.optax_descent(optax_loss, optax.sgd(0.01, momentum=0.9))}
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        found = compare_steps(arms, WEIGHTS, 1.0, baseline="optax", seconds=SHORT)
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert list(found.verdicts) == ["ours"], "a descent of one's own agrees with optax's"
    assert traces == {"ours": 1, "optax": 1}
    assert compiled.count("jit(repeat)") == 3, "the baseline twice"
    assert timed == [len(compiled)] * 3 * found.rounds, "all is compiled before the first block"
    assert all(arm.compile_s > 0 and np.all(arm.samples_s > 0) for arm in found.arms.values())


def test_an_equal_step_is_compiled_anew_so_that_each_arm_shows_what_compiling_takes(compared, monkeypatch):
    traces, now, program = [], [0.0], compare._program

    def clock():
        now[0] += 1e-3
        return now[0]

    def slowly(*args):
        now[0] += 100
        return program(*args)

    for module in (compare, rounds):
        monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=clock))
    monkeypatch.setattr(compare, "_program", slowly)

    def loss(weights, batch):
        traces.append(weights)
        return jnp.sum((weights - batch) ** 2)

    arms = {name: mjn.gradient_descent(loss, 0.1) for name in "abc"}
    assert arms["a"].step == arms["b"].step
    found = compared(arms)
    assert len(traces) == 3
    assert all(arm.compile_s == pytest.approx(100, abs=1) for arm in found.arms.values())
    assert all(arm.step_s < 1 for arm in found.arms.values()), "the time to compile is no part of the time of a step"


def test_states_are_on_the_device_before_the_clock_runs_and_the_users_arrays_stay_as_they_were(compared, monkeypatch):
    def init(params, key=None):
        return mjn.DescentState(params, np.zeros(2), np.int32(0), key)

    seen, block = [], compare.Block
    monkeypatch.setattr(compare, "Block", lambda *args: seen.append(args[1]) or block(*args))
    params, batch = {"w": jnp.arange(3.0)}, (np.arange(3.0, dtype=np.float32), jnp.ones(3))
    before = jax.tree.map(np.array, (params, batch))

    def step(state, batch):
        params = {"w": state.params["w"] - 0.1 * batch[0]}
        return state._replace(params=params, step=state.step + 1), mjn.StepInfo(jnp.float32(0), jnp.float32(0))

    compared({name: mjn.Descent(init, step) for name in "ab"}, params, batch)
    chex.assert_tree_is_on_device(seen, platform="cpu")
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(seen))
    chex.assert_trees_all_equal((params, batch), before)


@pytest.mark.parametrize(("seconds", "times"), [(0.01, (2, 1)), (0.1, (2, 1)), (2.0, (3, 3)), (100.0, (4, 4))])
def test_loops_are_compiled_as_often_as_half_of_the_time_allows(compared, monkeypatch, seconds, times):
    now, program, programs = [0.0], compare._program, []

    def slowly(*args):
        now[0] += 0.2
        return program(*args)

    block = compare.Block
    monkeypatch.setattr(compare, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    monkeypatch.setattr(compare, "_program", slowly)
    monkeypatch.setattr(compare, "block_length", lambda *args: (1, 0.0))
    monkeypatch.setattr(compare, "Block", lambda given, *rest: programs.append(given) or block(given, *rest))
    monkeypatch.setattr(rounds, "LOOKS", {1: 0.03})
    monkeypatch.setattr(compare, "take_rounds", lambda runs, *rest: iter([(0.03, 1.0, np.ones((9, 3)), np.ones(2))]))
    monkeypatch.setattr(compare, "calls_of", lambda *rest: np.zeros(3))
    compared(BOTH, seconds=seconds)
    first, other, second = map(len, programs)
    assert (first + second, other) == times and second >= 1


def test_what_a_call_costs_is_taken_off(compared, monkeypatch):
    class Dear:
        def __init__(self, programs, start, steps, seed):
            self.steps, self.calls_s, self.block_s = steps, [], 1e-3 + 1e-6 * steps

        def __call__(self):
            self.calls_s.append(1e-3)
            return self.block_s

    monkeypatch.setattr(compare, "Block", Dear)
    found = compared(BOTH, seconds=0.1)
    assert [arm.step_s for arm in found.arms.values()] == pytest.approx([1e-6, 1e-6])
    assert {arm.call_s for arm in found.arms.values()} == {1e-3} and found.verdicts == {"b": "same"}


def test_it_ends_at_the_first_look_at_which_all_is_clear(compared):
    def wide(weights, batch):
        return bowl(weights, batch) + jnp.sum(jnp.sin(weights))

    arms = {"plain": PLAIN, "again": BY_HAND, "wide": mjn.gradient_descent(wide, 0.1)}
    early = compared({name: arms[name] for name in ("plain", "wide")}, seconds=1, same_result=False)
    assert early.verdicts == {"wide": "slower"} and early.rounds < 150 and early.risk == 0.002
    late = compared(arms, seconds=1, same_result=False, width=1e-4)
    assert late.verdicts["again"] == "undecided" and late.rounds > 900 and late.risk == 0.03


def test_an_arm_that_is_far_slower_has_blocks_of_its_own_length(monkeypatch):
    """The steps that fill a millisecond of a fast arm would keep a slow one for seconds."""
    seen = {}
    real = compare.Block

    def block(programs, start, steps, seed):
        seen[seed] = steps
        return real(programs, start, steps, seed)

    monkeypatch.setattr(compare, "Block", block)
    monkeypatch.setattr(
        compare, "block_length", lambda name, program, start: {"fast": (4_096, 1e-3), "slow": (1, 0.04)}[name]
    )
    arms = {"fast": PLAIN, "slow": BY_HAND}
    found = compare_steps(arms, WEIGHTS, 0.0, baseline="fast", seconds=0.05, same_result=False)
    assert seen == {0: 4_096, 1: 1, 2: 4_096}
    assert set(found.verdicts) == {"slow"}
