"""Functions that declare another slope than their value's: ``stop_gradient``, and straight through what is discrete.

Right is autodiff's reading in every leaf. The wrong ones take it in some leaves, and the slope of the value in others.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from corpora.real_kit import Kind, f32, ruled

KIND = Kind()
right, wrong = KIND.right, KIND.wrong


def straight(discrete, x):
    return x + lax.stop_gradient(discrete(x) - x)


# --- Rounded, straight through ----------------------------------------------------------------------------------------

A, B, Y = f32(0.3, 1.7, -2.2), f32(0.8, -0.4, 1.3), f32(0.25, 1, -1)
TWO = {"a": A, "b": B}


def rounded(p):
    return jnp.sum((straight(jnp.round, p["a"]) + 2 * straight(jnp.round, p["b"]) - Y) ** 2)


def slope_of_rounded(p, a=1, b=1):
    residual = jnp.round(p["a"]) + 2 * jnp.round(p["b"]) - Y
    return {"a": a * 2 * residual, "b": b * 4 * residual}


both = right("two rounded leaves, straight through both", rounded, (TWO,), slope_of_rounded)
wrong("two rounded leaves, straight through the first alone", both, lambda p: slope_of_rounded(p, b=0))
wrong("two rounded leaves, straight through the second alone", both, lambda p: slope_of_rounded(p, a=0))
wrong("two rounded leaves, straight through both, half of one", both, lambda p: slope_of_rounded(p, b=0.5), slow=True)


def fake_quantised(x, scale):
    steps = x / scale
    return scale * straight(jnp.round, steps)


def rule_of_quantised(of_x, of_scale):
    def backward(saved, c):
        x, scale = saved
        steps = x / scale
        return of_x * c, jnp.sum(c * of_scale(steps))

    return ruled(fake_quantised, lambda x, scale: (fake_quantised(x, scale), (x, scale)), backward)


quantised = right(
    "learned step size, straight through",
    rule_of_quantised(1.0, lambda steps: jnp.round(steps) - steps),
    (A, np.float32(0.35)),
    plain=fake_quantised,
)
wrong("learned step size, slope of the value in the step", quantised, rule_of_quantised(1.0, jnp.round))
wrong(
    "learned step size, slope of the value in the argument",
    quantised,
    rule_of_quantised(0.0, lambda steps: jnp.round(steps) - steps),
)


def signed(x):
    return jnp.clip(x, -1, 1) + lax.stop_gradient(jnp.sign(x) - jnp.clip(x, -1, 1))


def binary_layer(p):
    return jnp.sum((signed(p["w"]) * signed(p["x"]) - Y) ** 2)


def slope_of_binary(p, w=1, x=1):
    residual = 2 * (jnp.sign(p["w"]) * jnp.sign(p["x"]) - Y)
    of_w = residual * jnp.sign(p["x"]) * (jnp.abs(p["w"]) < 1)
    return {"w": w * of_w, "x": x * residual * jnp.sign(p["w"]) * (jnp.abs(p["x"]) < 1)}


signs = right("a binary layer, straight through weights and inputs", binary_layer, ({"w": B, "x": A},), slope_of_binary)
wrong("a binary layer, no slope in its inputs", signs, lambda p: slope_of_binary(p, x=0))
wrong("a binary layer, no slope in its weights", signs, lambda p: slope_of_binary(p, w=0), slow=True)

# --- Targets that are held fixed --------------------------------------------------------------------------------------

BETA = 0.25


def codebook_loss(p):
    z, e = p["z"], p["e"]
    return jnp.sum((lax.stop_gradient(z) - e) ** 2) + BETA * jnp.sum((z - lax.stop_gradient(e)) ** 2)


def slope_of_codebook(p, z=BETA, e=1.0):
    apart = 2 * (p["z"] - p["e"])
    return {"z": z * apart, "e": -e * apart}


codes = right("codebook and commitment", codebook_loss, ({"z": A, "e": B},), slope_of_codebook)
wrong("codebook and commitment, nothing stopped in the encoder", codes, lambda p: slope_of_codebook(p, z=1 + BETA))
wrong("codebook and commitment, nothing stopped in the codes", codes, lambda p: slope_of_codebook(p, e=1 + BETA))

NOW, THEN, REWARD, DISCOUNT = f32(0.5, -1, 2), f32(1, 0.25, -0.5), 0.7, 0.9


def value(p, features):
    return jnp.dot(p["weights"], features) + p["bias"]


def temporal_difference(p):
    target = REWARD + DISCOUNT * lax.stop_gradient(value(p, THEN))
    return (target - value(p, NOW)) ** 2


def slope_of_temporal(p, weights=0.0, bias=0.0):
    off = 2 * (REWARD + DISCOUNT * value(p, THEN) - value(p, NOW))
    return {"weights": off * (weights * DISCOUNT * THEN - NOW), "bias": off * (bias * DISCOUNT - 1)}


LINEAR = {"weights": f32(0.4, -0.2, 1.1), "bias": np.float32(0.3)}
temporal = right("temporal difference, target fixed", temporal_difference, (LINEAR,), slope_of_temporal)
wrong("temporal difference, target moves with the bias", temporal, lambda p: slope_of_temporal(p, bias=1.0))
wrong("temporal difference, target moves with the weights", temporal, lambda p: slope_of_temporal(p, weights=1.0))


def siamese(p):
    left, right = p["scale"] * A + p["shift"], p["scale"] * B + p["shift"]
    return -jnp.sum(left * lax.stop_gradient(right))


def slope_of_siamese(p, scale=False, shift=False):
    left, right = p["scale"] * A + p["shift"], p["scale"] * B + p["shift"]
    return {
        "scale": -jnp.sum(right * A) - scale * jnp.sum(left * B),
        "shift": -jnp.sum(right) - shift * jnp.sum(left),
    }


TWIN = {"scale": np.float32(0.8), "shift": np.float32(-0.3)}
twins = right("two views, one of them fixed", siamese, (TWIN,), slope_of_siamese)
wrong("two views, one of them fixed in one leaf only", twins, lambda p: slope_of_siamese(p, scale=True))
wrong(
    "two views, one of them fixed in the other leaf only", twins, lambda p: slope_of_siamese(p, shift=True), slow=True
)


def around_the_mean(p):
    return jnp.sum((p["a"] + p["b"] - lax.stop_gradient(jnp.mean(p["a"] + p["b"]))) ** 3)


def slope_around_the_mean(p, centred):
    total = p["a"] + p["b"]
    back = 3 * (total - jnp.mean(total)) ** 2
    return {name: back - jnp.mean(back) * (name in centred) for name in ("a", "b")}


mean = right(
    "around a mean that is held fixed", around_the_mean, (TWO,), lambda p: slope_around_the_mean(p, ()), slow=True
)
wrong("around a mean that is held fixed in one leaf only", mean, lambda p: slope_around_the_mean(p, ("b",)), slow=True)


def chosen(p):
    """The best of each, as one-hot in the value and as softmax in the slope."""

    def hard(logits):
        soft = jax.nn.softmax(logits)
        return soft + lax.stop_gradient(jax.nn.one_hot(jnp.argmax(logits), 3) - soft)

    return jnp.dot(hard(p["a"]), Y) + 2 * jnp.dot(hard(p["b"]), Y)


def slope_of_chosen(p, a=1, b=1):
    def back(logits):
        soft = jax.nn.softmax(logits)
        return soft * (Y - jnp.dot(soft, Y))

    return {"a": a * back(p["a"]), "b": b * 2 * back(p["b"])}


choice = right("one-hot by argmax, straight through a softmax", chosen, (TWO,), slope_of_chosen, slow=True)
wrong("one-hot by argmax, straight through in one leaf only", choice, lambda p: slope_of_chosen(p, a=0), slow=True)


# The value's own slope in every leaf is another reading than the one that was meant.
moving = right(
    "a target that is not to move", lambda x: jnp.sum(x * lax.stop_gradient(x)), (f32(0.5, 0.7, -0.3),), lambda x: x
)
wrong("a target that is not to move, moved", moving, lambda x: 2 * x)
centred = right(
    "centred by a mean that is not to move",
    lambda x: jnp.sum((x - lax.stop_gradient(jnp.mean(x))) ** 3),
    (f32(0.5, 0.7, -0.3),),
    lambda x: 3 * (x - jnp.mean(x)) ** 2,
)
wrong(
    "centred by a mean that is not to move, moved",
    centred,
    lambda x: 3 * (x - jnp.mean(x)) ** 2 - jnp.mean(3 * (x - jnp.mean(x)) ** 2),
)
