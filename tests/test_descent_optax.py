"""Optimizers of optax that see to gradients that are not finite, and those that ask for more than a gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest
from kits.marks import SLOW

import minijaxnet as mjn
from minijaxnet.history import DIVERGED, OUT_OF_STEPS


def squared_error(weight, batch):
    return jnp.mean((weight * batch[0] - batch[1]) ** 2)


def descended(optimizer, broken, *, jit=False, epochs=4, value=np.nan):
    """Five points a step each, of which these are broken: the trace, and where it ended."""
    descent = mjn.optax_descent(squared_error, optimizer)
    x = np.ones(5, np.float32)
    x[list(broken)] = value

    def all_steps(start):
        data = (jnp.asarray(x), jnp.full(5, 3.0))
        return mjn.descend_epochs(descent, start, data, jax.random.key(0), batch_size=1, epochs=epochs)

    state, trace = (jax.jit(all_steps) if jit else all_steps)(descent.init(0.0))
    return trace, float(state.params)


HANDLERS = {
    "apply_if_finite": optax.apply_if_finite(optax.sgd(0.1), 3),
    "in a chain": optax.chain(optax.clip(10.0), optax.apply_if_finite(optax.sgd(0.1), 3)),
    "masked": optax.masked(optax.apply_if_finite(optax.sgd(0.1), 3), True),
    "zero_nans": optax.chain(optax.zero_nans(), optax.sgd(0.1)),
    "MultiSteps": optax.MultiSteps(optax.sgd(0.1), 1, should_skip_update_fn=optax.skip_not_finite),
}


@pytest.mark.parametrize("name", ["apply_if_finite", *map(SLOW, [*HANDLERS][1:])])
@pytest.mark.parametrize("jit", [False, SLOW(True)])
def test_an_optimizer_that_skips_what_is_not_finite_goes_on(name, jit):
    trace, end = descended(HANDLERS[name], [2], jit=jit)
    assert (trace.status, trace.steps_taken) == (OUT_OF_STEPS, 20)
    assert np.isnan(trace.loss).sum() == np.isnan(trace.gradient_norm).sum() == 4, "what was seen is told"
    assert end == pytest.approx(3 * (1 - 0.8**16), rel=1e-4), "16 steps were taken, 4 skipped"


@pytest.mark.parametrize("limit", [0, SLOW(2)])
def test_where_the_optimizer_gives_up_the_descent_diverged_at_its_last_finite_params(limit):
    trace, end = descended(optax.apply_if_finite(optax.sgd(0.1), limit), range(5))
    assert (trace.status, trace.steps_taken, end) == (DIVERGED, limit, 0.0)


@pytest.mark.parametrize("name", ["sgd", SLOW("clip"), SLOW("MultiSteps"), SLOW("zero_nans")])
def test_any_other_optimizer_stops_before_such_a_step(name):
    optimizer = {
        "sgd": optax.sgd(0.1),
        "clip": optax.chain(optax.clip(1.0), optax.sgd(0.1)),
        "MultiSteps": optax.MultiSteps(optax.sgd(0.1), 2),
        "zero_nans": HANDLERS["zero_nans"],  # it is no zero_infinities
    }[name]
    trace, end = descended(optimizer, [2], value=np.inf)
    assert trace.status == DIVERGED and trace.steps_taken < 5 and np.isfinite(end)


def test_fit_goes_on_past_what_is_skipped_and_looks_at_the_end_without_a_step():
    def root(weight, batch):
        return jnp.mean(jnp.sqrt(weight)) + 0 * jnp.mean(batch[0])

    descent = mjn.optax_descent(root, optax.apply_if_finite(optax.sgd(1.0), 9))
    result = mjn.fit(descent, descent.init(jnp.array([0.25])), (jnp.ones(2), jnp.ones(2)), steps=6, log_every=1)
    assert (result.status, result.steps_taken) == (OUT_OF_STEPS, 6)
    assert result.state.params == -0.75 and int(result.state.optimizer.total_notfinite) == 5
    assert [row["step"] for row in result.rows] == [*range(7)]


SAM = (optax.sgd(0.1), optax.chain(optax.contrib.normalize(), optax.sgd(0.01)))
EXTRA = {
    "sam": optax.contrib.sam(*SAM),
    "sam, opaque": optax.contrib.sam(*SAM, opaque_mode=True),
    "sam in a chain": optax.chain(optax.contrib.sam(*SAM), optax.scale(1.0)),
    "sam that skips": optax.apply_if_finite(optax.contrib.sam(*SAM), 3),
    "polyak": optax.polyak_sgd(),
    "backtracking": optax.chain(optax.sgd(1.0), optax.scale_by_backtracking_linesearch(8)),
    "lbfgs": optax.lbfgs(),
    "plateau": optax.chain(optax.sgd(0.1), optax.contrib.reduce_on_plateau()),
    "momo": optax.contrib.momo(),
}


@pytest.mark.parametrize("name", ["sam", "sam, opaque", "sam in a chain", "polyak", SLOW("sam that skips"),
                                  SLOW("backtracking"), SLOW("lbfgs"), SLOW("plateau"), SLOW("momo")])  # fmt: skip
def test_a_transformation_is_given_what_it_takes(name):
    descent = mjn.optax_descent(squared_error, EXTRA[name])
    state, trace = mjn.descend(descent, descent.init(0.0), (1.0, 3.0), steps=60)
    assert trace.status != DIVERGED and abs(float(state.params) - 3) < 0.3


def test_parts_that_ask_for_what_others_refuse_are_told():
    descent = mjn.optax_descent(squared_error, optax.chain(EXTRA["sam"], optax.scale_by_polyak()))
    with pytest.raises(TypeError, match=r"optimizer: got a part that takes no value.*'value'.*; expected"):
        descent.step(descent.init(0.0), (1.0, 3.0))
