"""Points on a kink, losses whose autodiff is NaN, and functions that declare another gradient than their value's."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from corpora.kit import Code, custom, elementwise, f32

KINKS, NOT_FINITE, SURROGATES = Code(), Code(), Code()

# --- On a kink: the wrong ones are outside of the hull of the gradients nearby, Clarke's subdifferential --------------

grad, rule = KINKS.grad, KINKS.rule
LABEL = np.float32([0, 1, 0, 0])


def hinge(z):
    return jnp.max(z + 1 - LABEL) - z[1]


def winners(z, share=1.0):
    scores = z + 1 - LABEL
    return share * (scores == jnp.max(scores)) - LABEL


START = np.zeros(4, np.float32)
grad(
    "multiclass hinge at zero, the tie to the first",
    hinge,
    (START,),
    lambda z: jax.nn.one_hot(jnp.argmax(z + 1 - LABEL), 4) - LABEL,
    {"the tie to each in full": winners},
)
grad("multiclass hinge at zero, the tie shared", hinge, (START,), lambda z: winners(z, 1 / 3))


def hard_sigmoid(x):
    return jnp.clip(x / 6 + 0.5, 0, 1)


def sloped(at_corner):
    slope = lambda x: jnp.where(jnp.abs(x) < 3, 1 / 6, 0) + jnp.where(jnp.abs(x) == 3, at_corner, 0)  # noqa: E731
    return elementwise(hard_sigmoid, slope)


CORNERS = (f32(-3, 0.5, 3, 4),)
rule("hard sigmoid, slope of the inside", sloped(1 / 6), CORNERS, {"of both sides added up": sloped(1 / 3)})
rule("hard sigmoid, slope of the outside", sloped(0.0), CORNERS)


def at_shift(of_w, of_b):
    """The gradient of relu(w + b) with these slopes at the kink; by no move of both are they different."""
    return lambda p: {"w": jnp.heaviside(p["w"] + p["b"], of_w), "b": jnp.heaviside(p["w"] + p["b"], of_b)}


grad(
    "relu of w + b with b = -w",
    lambda p: jnp.sum(jax.nn.relu(p["w"] + p["b"])),
    ({"w": f32(0.1, -1.7, 2), "b": f32(-0.1, 1.7, 1)},),
    at_shift(0.5, 0.5),
    {"sign of b": at_shift(1.0, -1.0), "w from the right and b from the left": at_shift(1.0, 0.0)},
)


def rule_of_pooled(choose):
    pooled = lambda x: jnp.max(x.reshape(2, 2) + 1, axis=1)  # noqa: E731
    backward = lambda x, c: ((choose(x.reshape(2, 2)) * c[:, None]).reshape(-1),)  # noqa: E731
    return custom(pooled, lambda x: (pooled(x), x), backward)


rule(
    "max pooling of zeros and a bias, to the first",
    rule_of_pooled(lambda rows: jax.nn.one_hot(jnp.argmax(rows, axis=1), 2)),
    (START,),
    {"to each": rule_of_pooled(jnp.ones_like)},
)

# --- Autodiff is NaN, everywhere or in some elements, and the rule by hand is right -----------------------------------

grad, rule = NOT_FINITE.grad, NOT_FINITE.rule
POINTS = f32([0, 0], [1, 0.5], [-0.5, 1.25])
DIAGONAL = np.eye(3, dtype=bool)


def repulsion(x):
    distance = jnp.linalg.norm(x[:, None] - x[None], axis=-1)
    return jnp.sum(jnp.where(DIAGONAL, 0, 1 / distance)) / 2


def forces(x):
    apart = x[:, None] - x[None]
    distance = jnp.sqrt(jnp.where(DIAGONAL, 1, jnp.sum(apart**2, axis=-1)))
    return -jnp.sum(jnp.where(DIAGONAL[..., None], 0, apart / distance[..., None] ** 3), axis=1)


grad(
    "energy of pairs, forces by hand",
    repulsion,
    (POINTS,),
    forces,
    {"each counted twice": lambda x: 2 * forces(x), "one off by a hundredth": lambda x: forces(x).at[1].multiply(1.01)},
)
ROWS = f32([3, 4], [0, 0], [1, -2])


def slope_of_group_lasso(w):
    norm = jnp.sqrt(jnp.sum(w**2, axis=1, keepdims=True))
    return w / jnp.where(norm == 0, 1, norm)


grad(
    "group lasso with a row of zeros",
    lambda w: jnp.sum(jnp.linalg.norm(w, axis=1)),
    (ROWS,),
    slope_of_group_lasso,
    {"not divided by the norm": lambda w: w},
    hesitates=True,
)


def unguarded_sinc(x):
    return jnp.where(x == 0, 1, jnp.sin(x) / x)


def rule_of_sinc(at_zero):
    def slope(x):
        safe = jnp.where(x == 0, 1, x)
        return jnp.where(x == 0, at_zero, (safe * jnp.cos(safe) - jnp.sin(safe)) / safe**2)

    return elementwise(unguarded_sinc, slope)


rule("unguarded sinc, its rule guarded", rule_of_sinc(0), (f32(-1.5, 0, 2.0),), {"a slope of 1 at 0": rule_of_sinc(1)})


# --- Surrogates: right is autodiff's reading in every leaf; the wrong ones take the value's gradient in some ----------

grad, rule = SURROGATES.grad, SURROGATES.rule
held = lax.stop_gradient
A, B, Y = f32(0.3, 1.7, -2.2), f32(0.8, -0.4, 1.3), f32(0.25, 1, -1)


def straight(x):
    return x + held(jnp.round(x) - x)


def slope_of_rounded(p, b=1):
    residual = jnp.round(p["a"]) + 2 * jnp.round(p["b"]) - Y
    return {"a": 2 * residual, "b": b * 4 * residual}


grad(
    "two rounded leaves, straight through both",
    lambda p: jnp.sum((straight(p["a"]) + 2 * straight(p["b"]) - Y) ** 2),
    ({"a": A, "b": B},),
    slope_of_rounded,
    {"through the first alone": lambda p: slope_of_rounded(p, 0)},
)


def quantised(x, scale):
    return scale * straight(x / scale)


def rule_of_quantised(of_scale):
    backward = lambda saved, c: (c, jnp.sum(c * of_scale(saved[0] / saved[1])))  # noqa: E731
    return custom(quantised, lambda x, scale: (quantised(x, scale), (x, scale)), backward)


rule(
    "learned step size, straight through",
    rule_of_quantised(lambda steps: jnp.round(steps) - steps),
    (A, np.float32(0.35)),
    {"slope of the value in the step": rule_of_quantised(jnp.round)},
)


def codebook_loss(p):
    return jnp.sum((held(p["z"]) - p["e"]) ** 2) + 0.25 * jnp.sum((p["z"] - held(p["e"])) ** 2)


def slope_of_codebook(p, z=0.25):
    apart = 2 * (p["z"] - p["e"])
    return {"z": z * apart, "e": -apart}


grad(
    "codebook and commitment",
    codebook_loss,
    ({"z": A, "e": B},),
    slope_of_codebook,
    {"nothing stopped in the encoder": lambda p: slope_of_codebook(p, 1.25)},
)
grad(
    "a target that is not to move",
    lambda x: jnp.sum(x * held(x)),
    (f32(0.5, 0.7, -0.3),),
    lambda x: x,
    {"moved": lambda x: 2 * x},
)
