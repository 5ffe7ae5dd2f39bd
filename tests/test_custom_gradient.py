"""Autodiff's machinery around a hand-derived gradient.

The objective is sum((w x)^2), whose gradient is 2 w x^2. The rule says 7 w x^2: whose number it is can be seen.
"""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from kits.descents import Traced

import minijaxnet as mjn

W, X = np.float32([1, 2, 3]), np.float32([2, 3, 4])
PARAMS, BATCH = {"w": W}, {"x": X, "label": np.arange(3, dtype=np.int32)}
BY_RULE, BY_AUTODIFF = {"w": 7 * W * X**2}, 2 * W**2 * X  # with respect to the params, and to x

SIZES = (4, 3, 4)
NETWORK = mjn.mlp(SIZES, activation=jnp.tanh)


def plain(params, batch):
    return jnp.sum((params["w"] * batch["x"]) ** 2)


def sevenfold(params, batch):
    return plain(params, batch), {"w": 7 * params["w"] * batch["x"] ** 2}


RULED = mjn.with_gradient(plain, sevenfold)


def of_x(x):
    return {"x": x, "label": BATCH["label"]}


@pytest.mark.parametrize("compiled", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_grad_with_respect_to_the_params_runs_the_rule_and_to_the_batch_autodiff(compiled):
    value, gradient = compiled(jax.value_and_grad(RULED))(PARAMS, BATCH)
    assert value == 184
    chex.assert_trees_all_equal(gradient, BY_RULE)
    chex.assert_trees_all_equal(compiled(jax.grad(compiled(RULED)))(PARAMS, BATCH), BY_RULE)
    chex.assert_trees_all_equal(compiled(jax.grad(RULED))(PARAMS, batch=BATCH), BY_RULE)
    chex.assert_trees_all_equal(compiled(jax.grad(lambda x: RULED(PARAMS, of_x(x))))(X), BY_AUTODIFF)
    both = compiled(jax.grad(lambda params, x: RULED(params, of_x(x)), argnums=(0, 1)))(PARAMS, X)
    chex.assert_trees_all_equal(both, (BY_RULE, BY_AUTODIFF))


def test_an_outer_grad_over_the_batch_goes_through_the_rule():
    # d/dx sum(7 w x^2) = 14 w x: the rule's own derivative, as an inner step's batch needs it.
    def inner(x):
        return jnp.sum(jax.grad(RULED)(PARAMS, of_x(x))["w"])

    # One inner step, then the plain loss after it: by the chain rule with the rule's numbers for the step.
    def after_a_step(x):
        return RULED({"w": W - 0.001 * jax.grad(RULED)(PARAMS, of_x(x))["w"]}, of_x(x))

    of_inner, of_step = jax.jit(lambda x: (jax.grad(inner)(x), jax.grad(after_a_step)(x)))(X)
    chex.assert_trees_all_equal(of_inner, 14 * W * X)
    stepped = W - 0.001 * 7 * W * X**2
    # through the params: the rule at the stepped ones times their derivative; through the batch: autodiff's.
    want = 7 * stepped * X**2 * (-0.001 * 14 * W * X) + 2 * stepped**2 * X
    chex.assert_trees_all_close(np.asarray(of_step), np.float32(want), rtol=1e-6)


def test_hessians_and_their_products_differentiate_the_rule():
    def gradient(params):
        return jax.grad(RULED)(params, BATCH)

    def products(params, direction):
        return {
            "forward over reverse": jax.jvp(gradient, (params,), (direction,))[1],
            "reverse over reverse": jax.grad(lambda p: jnp.vdot(gradient(p)["w"], direction["w"]))(params),
            "linear": jax.linearize(gradient, params)[1](direction),
        }

    direction = {"w": np.float32([1, -1, 0.5])}
    for how, got in jax.jit(products)(PARAMS, direction).items():
        chex.assert_trees_all_equal(got, {"w": 7 * X**2 * direction["w"]}, custom_message=how)
    chex.assert_trees_all_equal(jax.jit(jax.hessian(RULED))(PARAMS, BATCH), {"w": {"w": np.diag(7 * X**2)}})


def test_vmap_runs_the_rule_for_each_example_and_each_replica():
    xs, ws = np.stack([X, 2 * X]), np.stack([W, -W])
    gradients = jax.grad(lambda w, x: RULED({"w": w}, of_x(x)), argnums=(0, 1))
    for axes in ((None, 0), (0, None), (0, 0)):
        got = jax.jit(jax.vmap(gradients, in_axes=axes))(ws if axes[0] == 0 else W, xs if axes[1] == 0 else X)
        w, x = (ws if axes[0] == 0 else W[None]), (xs if axes[1] == 0 else X[None])
        chex.assert_trees_all_close(got, (7 * w * x**2, 2 * w**2 * x), rtol=1e-6)


def test_with_respect_to_the_params_the_rule_is_called_once_and_the_plain_objective_never():
    objective = Traced(plain)
    rule = Traced(lambda params, batch: (jnp.float32(184), {"w": 7 * params["w"] * batch["x"] ** 2}))
    ruled = mjn.with_gradient(objective, rule)
    for calls, transform in enumerate((jax.grad, jax.value_and_grad, lambda f: jax.jit(jax.value_and_grad(f))), 1):
        transform(ruled)(PARAMS, BATCH)
        assert (rule.times, objective.times) == (calls, 0)
    descent = mjn.gradient_descent(ruled, 0.001)
    jax.eval_shape(lambda: mjn.descend(descent, descent.init(PARAMS), BATCH, steps=2))
    calls = rule.times
    jax.grad(lambda params, x: ruled(params, of_x(x)), argnums=(0, 1))(PARAMS, X)
    assert (rule.times, objective.times) == (calls + 1, 1)
    assert ruled(PARAMS, BATCH) == jax.jit(ruled)(PARAMS, BATCH) == 184
    assert rule.times == calls + 1


@pytest.mark.parametrize(
    ("gradient", "complaint"),
    [
        ({"w": np.ones(2, np.float32)}, r"\['w'\]: got float32\[2\]; expected float32\[3\]"),
        ({"w": np.ones(3, jnp.bfloat16)}, r"\['w'\]: got bfloat16\[3\]; expected float32\[3\]"),
        ({"w": np.ones(3), "v": np.ones(3)}, r"too many: .*\['v'\]"),
        ({"w": None}, r"missing: .*\['w'\]"),
    ],
    ids=["shape", "dtype", "one too many", "None"],
)
def test_a_gradient_unlike_the_params_is_refused_with_the_leafs_path(gradient, complaint):
    objective = mjn.with_gradient(plain, lambda params, batch: (plain(params, batch), gradient))
    for transform in (jax.grad, lambda f: jax.jit(jax.grad(f))):
        with pytest.raises(TypeError, match=f"value_and_gradient: the gradient is not like params: .*{complaint}"):
            transform(objective)(PARAMS, BATCH)


@pytest.mark.parametrize(
    "returned",
    [lambda loss, g: g, lambda loss, g: (loss[None], g), lambda loss, g: (None, g)],
    ids=["the gradient alone", "a loss of shape (1,)", "None for a loss"],
)
def test_a_rule_that_returns_no_scalar_loss_beside_the_gradient_is_refused_by_name(returned):
    objective = mjn.with_gradient(plain, lambda params, batch: returned(*sevenfold(params, batch)))
    with pytest.raises(TypeError, match="value_and_gradient: "):
        jax.grad(objective)(PARAMS, BATCH)


def test_forward_mode_straight_through_the_rule_is_refused():
    with pytest.raises(TypeError, match=r"forward-mode .* custom_vjp"):
        jax.jvp(lambda params: RULED(params, BATCH), (PARAMS,), (PARAMS,))


def rebuilt():
    """The objective and its rule anew, as a user's function makes them on each call."""
    by_hand = mjn.mlp_gradient(SIZES, activation=jnp.tanh, loss=mjn.mean_squared_error)
    return mjn.with_gradient(mjn.objective(NETWORK, mjn.mean_squared_error), by_hand)


def test_equal_arguments_make_equal_objects_and_unequal_ones_unequal():
    assert rebuilt() == rebuilt() and hash(rebuilt()) == hash(rebuilt())
    given = {"sizes": SIZES, "activation": jnp.tanh, "loss": mjn.mean_squared_error}
    others = (
        {},
        {"sizes": (4, 3, 3)},
        {"activation": jax.nn.relu},
        {"loss": mjn.binary_cross_entropy},
        {"bias": False},
    )
    rules = [mjn.mlp_gradient(**(given | changed)) for changed in others]
    assert len(set(rules)) == len(rules)
    assert mjn.mlp_gradient(list(SIZES), activation=jnp.tanh, loss=mjn.mean_squared_error) == rules[0]
    assert mjn.with_gradient(plain, sevenfold) != mjn.with_gradient(plain, rules[0])


def test_an_objective_that_is_made_anew_is_not_traced_anew():
    params, batch = jax.eval_shape(NETWORK.init, jax.random.key(0)), (np.ones((5, 4), np.float32),) * 2

    @functools.partial(jax.jit, static_argnums=0)
    @chex.assert_max_traces(n=1)
    def step(objective, params, batch):
        return jax.grad(objective)(params, batch)

    for _ in range(3):
        jax.eval_shape(functools.partial(step, rebuilt()), params, batch)


def test_bfloat16_params_have_bfloat16_gradients_and_any_cotangent():
    params, batch = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), (PARAMS, {"x": X}))
    got = jax.grad(RULED)(params, batch)
    chex.assert_trees_all_equal(got, {"w": (7 * W * X**2).astype(jnp.bfloat16)}, strict=True)
    # A float32 loss over bfloat16 params: the cotangent is wider than the gradient.
    wide = mjn.with_gradient(
        lambda params, batch: plain(params, batch).astype(jnp.float32),
        lambda params, batch: (plain(params, batch).astype(jnp.float32), sevenfold(params, batch)[1]),
    )
    value, gradient = jax.value_and_grad(lambda params: 0.5 * wide(params, batch))(params)
    assert (value.dtype, gradient["w"].dtype) == (jnp.float32, jnp.bfloat16)
    chex.assert_trees_all_equal(gradient, {"w": (3.5 * W * X**2).astype(jnp.bfloat16)})


def test_a_cotangent_of_zero_makes_a_gradient_of_zero():
    def sum_of(params):
        return jnp.sum(params["w"])

    def gradients(params):
        _, pull_back = jax.vjp(lambda params: RULED(params, BATCH), params)
        scanned = jax.grad(lambda p: jax.lax.scan(lambda c, x: (c + sum_of(p), RULED(p, of_x(x))), 0.0, X[None])[0])
        return pull_back(jnp.float32(0))[0], {
            "as aux": jax.grad(lambda p: (sum_of(p), RULED(p, BATCH)), has_aux=True)(params)[0],
            "stopped": jax.grad(lambda p: sum_of(p) + jax.lax.stop_gradient(RULED(p, BATCH)))(params),
            "stopped in jit": jax.grad(lambda p: sum_of(p) + jax.lax.stop_gradient(jax.jit(RULED)(p, BATCH)))(params),
            "an output unused": jax.grad(lambda p: jax.jit(lambda p: (sum_of(p), RULED(p, BATCH)))(p)[0])(params),
            "a scan's output unused": scanned(params),
        }

    of_zero, others = jax.jit(gradients)(PARAMS)
    chex.assert_trees_all_equal(of_zero, {"w": np.zeros(3, np.float32)})
    for how, gradient in others.items():
        chex.assert_trees_all_equal(gradient, {"w": np.ones(3, np.float32)}, custom_message=how)


def noise(key):
    return (jax.random.key_data(key)[-1] % 8).astype(jnp.float32)


def keyed(params, batch, key):
    return plain(params, batch) + jnp.sum(params["w"]) * noise(key)


def sevenfold_keyed(params, batch, key):
    return keyed(params, batch, key), {"w": 7 * params["w"] * batch["x"] ** 2 + noise(key)}


def test_a_key_goes_to_the_objective_and_to_the_rule():
    objective, key = mjn.with_gradient(keyed, sevenfold_keyed), jax.random.key(5)
    assert noise(key) == 5
    gradients = jax.jit(jax.value_and_grad(lambda params, x: objective(params, of_x(x), key), argnums=(0, 1)))
    chex.assert_trees_all_equal(gradients(PARAMS, X)[1], ({"w": 7 * W * X**2 + 5}, BY_AUTODIFF))
    assert jax.jit(objective)(PARAMS, BATCH, key) == 184 + 6 * 5
    # A descent's k-th step gets the key folded with k.
    descent = mjn.gradient_descent(objective, 0.001)
    state, _ = mjn.descend(descent, descent.init(PARAMS, key), BATCH, steps=2)
    w, folded = W, jax.jit(lambda step: noise(jax.random.fold_in(key, step)))
    for step in range(2):
        w = w - 0.001 * (7 * w * X**2 + float(folded(step)))
    np.testing.assert_allclose(state.params["w"], w, rtol=1e-6)
