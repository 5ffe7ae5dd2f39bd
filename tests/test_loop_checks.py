"""The loop: steps and states of one's own, and what it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from kits.descents import descend_from, squared_distance

import minijaxnet as mjn
from minijaxnet.descent import DescentState, StepInfo


def own_step(state, batch):
    """Newton's step on a square root, with a running mean that only this descent knows of."""
    gap = state.params**2 - batch
    mean = 0.5 * (state.optimizer["mean"] + state.params)
    after = state._replace(
        params=state.params - gap / (2 * state.params), optimizer={"mean": mean}, step=state.step + 1
    )
    return after, StepInfo(gap**2, jnp.abs(4 * gap * state.params))


def own_init(params, key=None):
    return DescentState(params, {"mean": jnp.float32(0)}, jnp.int32(0), key)


def test_a_descent_of_one_s_own_works():
    descent = mjn.Descent(own_init, own_step)
    state, trace = mjn.descend(descent, descent.init(jnp.float32(3)), 2.0, steps=50, until_flat=1e-3)
    assert float(state.params) == pytest.approx(2**0.5, rel=1e-6)
    assert trace.status == mjn.FLAT
    assert 3 <= trace.steps_taken < 10
    assert trace.aux == ()
    replicas = jax.vmap(lambda target: mjn.descend(descent, descent.init(jnp.float32(3)), target, steps=9)[0].params)
    np.testing.assert_allclose(jax.jit(replicas)(np.float32([2, 5])), [2**0.5, 5**0.5], rtol=1e-6)


def test_a_state_of_python_numbers_is_no_trouble():
    descent = mjn.Descent(None, lambda s, b: (s._replace(params=s.params / 2), StepInfo(s.params, s.params)))
    state, trace = mjn.descend(descent, DescentState(8.0, (), 0), (), steps=3)
    assert state.params == 1
    np.testing.assert_array_equal(trace.loss, [8, 4, 2])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda s: s._replace(params={"w": s.params["w"].astype(jnp.bfloat16)}),
            r"\.params\['w'\]: got bfloat16\[3\]; expected float32\[3\]",
        ),
        (
            lambda s: s._replace(optimizer={"mean": jnp.int32(0)}),
            r"\.optimizer\['mean'\]: got int32\[\]; expected float32",
        ),
        (lambda s: s._replace(optimizer={}), r"missing: \[\"\.optimizer\['mean'\]\"\]"),
        (lambda s: s._replace(key=jax.random.key(0)), r"too many: \['\.key'\]"),
    ],
)
@pytest.mark.parametrize("jit", [False, True])
def test_a_step_that_changes_the_state_s_structure_shape_or_dtype_is_refused_with_the_place(change, message, jit):
    descent = mjn.Descent(own_init, lambda state, batch: (change(state), StepInfo(jnp.float32(1), jnp.float32(1))))

    def run(weight):
        return mjn.descend(descent, descent.init({"w": weight}), (), steps=3)

    with pytest.raises(TypeError, match=rf"step: the state it returns is not like the one it took: .*{message}"):
        (jax.jit(run) if jit else run)(np.ones(3, np.float32))


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (lambda s, b: (s, StepInfo(jnp.ones(2), jnp.float32(1))), r"step: loss: got float32\[2\]; expected a floating"),
        (lambda s, b: (s, StepInfo(jnp.float32(1), jnp.int32(1))), r"step: gradient_norm: got int32\[\]; expected a f"),
        (lambda s, b: s, "step"),
    ],
    ids=["no scalar loss", "no floating norm", "only a state"],
)
def test_a_step_that_returns_no_step_info_of_scalars_is_refused(step, message):
    with pytest.raises(TypeError, match=message):
        mjn.descend(mjn.Descent(own_init, step), own_init(np.ones(3, np.float32)), (), steps=3)


# --- What is asked for ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [-1, 1.5, "3", True])
def test_a_number_of_steps_that_is_none_is_refused(steps):
    with pytest.raises(ValueError if steps == -1 else TypeError, match=r"steps: got .*; expected (an int|at least 0)"):
        descend_from(2.0, 0.1, squared_distance, 1.0, steps=steps)


@pytest.mark.parametrize("until_flat", [-0.5, float("nan"), "0", True, np.ones(2)])
def test_a_flat_norm_that_is_none_is_refused(until_flat):
    kind = ValueError if type(until_flat) in (int, float) else TypeError
    with pytest.raises(kind, match=r"until_flat: got .*; expected a gradient norm"):
        descend_from(2.0, 0.1, squared_distance, 1.0, steps=3, until_flat=until_flat)
