"""Arguments on a kink that a constant makes, ``0 + 1`` against ``0 + 1``: any slope between the sides is right.

The wrong ones are outside of the subdifferential, by Clarke's definition: the hull of the slopes nearby.
"""

import jax
import jax.numpy as jnp
import numpy as np

from corpora.real_kit import Kind, drawn, elementwise, f32, ruled

KIND = Kind()
right, wrong = KIND.right, KIND.wrong


def one_hot(index, n):
    return jax.nn.one_hot(index, n, dtype=jnp.float32)


# --- Hinges at scores of zero -----------------------------------------------------------------------------------------

LABEL, CLASSES = 1, 4


def hinge(z):
    return jnp.max(z + 1 - one_hot(LABEL, CLASSES)) - z[LABEL]


def first_winner(z, margin=1.0):
    return one_hot(jnp.argmax(z + margin * (1 - one_hot(LABEL, CLASSES))), CLASSES) - one_hot(LABEL, CLASSES)


def all_winners(z, share=1.0):
    scores = z + 1 - one_hot(LABEL, CLASSES)
    return share * (scores == jnp.max(scores)) - one_hot(LABEL, CLASSES)


START = np.zeros(CLASSES, np.float32)
at_start = right("multiclass hinge at zero, the tie to the first", hinge, (START,), first_winner)
right("multiclass hinge at zero, the tie shared", hinge, (START,), lambda z: all_winners(z, 1 / 3))
wrong("multiclass hinge at zero, the tie to each in full", at_start, all_winners)
wrong(
    "multiclass hinge at zero, label not pushed up",
    at_start,
    lambda z: first_winner(z) + one_hot(LABEL, CLASSES),
)
wrong(
    "multiclass hinge at zero, label among the winners",
    at_start,
    lambda z: one_hot(LABEL, CLASSES) * 0.5 + first_winner(z),
    slow=True,
)

BATCH, LABELS = drawn(3, 2, seed=11), np.int32([2, 0, 1])


def linear_hinge(w):
    scores, labels = BATCH @ w["weights"] + w["bias"], one_hot(LABELS, 3)
    return jnp.mean(jnp.max(scores + 1 - labels, axis=1) - jnp.sum(scores * labels, axis=1))


def slope_of_linear_hinge(w, count=3):
    scores, labels = BATCH @ w["weights"] + w["bias"], one_hot(LABELS, 3)
    back = (one_hot(jnp.argmax(scores + 1 - labels, axis=1), 3) - labels) / count
    return {"weights": BATCH.T @ back, "bias": jnp.sum(back, axis=0)}


ZEROS = {"weights": np.zeros((2, 3), np.float32), "bias": np.zeros(3, np.float32)}
svm = right("a linear support vector machine as it starts", linear_hinge, (ZEROS,), slope_of_linear_hinge)
wrong(
    "a linear support vector machine as it starts, summed for averaged",
    svm,
    lambda w: slope_of_linear_hinge(w, count=1),
)

SIGNS = f32(1, -1, 1)


def binary_hinge(w):
    return jnp.sum(jax.nn.relu(1 - SIGNS * (BATCH @ w["weights"] + w["bias"])))


def slope_of_binary_hinge(w, weight=1.0):
    active = 1 - SIGNS * (BATCH @ w["weights"] + w["bias"]) >= 0
    back = -SIGNS * active * weight
    return {"weights": BATCH.T @ back, "bias": jnp.sum(back)}


ON_MARGIN = {"weights": np.zeros(2, np.float32), "bias": np.float32(1)}
margin = right("hinge, two points exactly on the margin", binary_hinge, (ON_MARGIN,), slope_of_binary_hinge)
wrong("hinge, two points on the margin, half of it", margin, lambda w: slope_of_binary_hinge(w, 0.5))
wrong("hinge, two points on the margin, sign lost", margin, lambda w: slope_of_binary_hinge(w, -1.0), slow=True)


def ranking(pair):
    return jnp.sum(jax.nn.relu(0.5 - (pair["better"] - pair["worse"])))


def slope_of_ranking(pair, both=-1.0):
    active = (0.5 - (pair["better"] - pair["worse"]) >= 0).astype(jnp.float32)
    return {"better": -active, "worse": -both * active}


PAIRS = {"better": f32(0.5, 0, 1), "worse": f32(0, 0, -1)}
ranked = right("margin ranking at its margin and at equal scores", ranking, (PAIRS,), slope_of_ranking)
wrong("margin ranking, both pushed down", ranked, lambda pair: slope_of_ranking(pair, both=1.0))


def triplet(anchor):
    near, far = jnp.sum((anchor - f32(1, 0)) ** 2), jnp.sum((anchor - f32(1, 1)) ** 2)
    return jax.nn.relu(near - far + 1)


AT_ORIGIN = np.zeros(2, np.float32)
three = right(
    "triplet loss at its margin", triplet, (AT_ORIGIN,), lambda a: 2 * (f32(1, 1) - f32(1, 0)) * jnp.ones_like(a)
)
wrong("triplet loss at its margin, twice as large", three, lambda a: 4 * (f32(1, 1) - f32(1, 0)) * jnp.ones_like(a))

# --- Corners ----------------------------------------------------------------------------------------------------------


def hard_sigmoid(x):
    return jnp.clip(x / 6 + 0.5, 0, 1)


CORNERS = f32(-3, 0.5, 3, 4)
corner = right(
    "hard sigmoid at its corners, slope of the inside",
    elementwise(hard_sigmoid, lambda x: jnp.where(jnp.abs(x) <= 3, 1 / 6, 0)),
    (CORNERS,),
    plain=hard_sigmoid,
)
right(
    "hard sigmoid at its corners, slope of the outside",
    elementwise(hard_sigmoid, lambda x: jnp.where(jnp.abs(x) < 3, 1 / 6, 0)),
    (CORNERS,),
    plain=hard_sigmoid,
    slow=True,
)
right(
    "hard sigmoid at its corners, inside at one and outside at the other",
    elementwise(hard_sigmoid, lambda x: jnp.where((x >= -3) & (x < 3), 1 / 6, 0)),
    (CORNERS,),
    plain=hard_sigmoid,
)
wrong(
    "hard sigmoid at its corners, slope of both sides added up",
    corner,
    elementwise(hard_sigmoid, lambda x: jnp.where(jnp.abs(x) <= 3, 1 / 6, 0) + jnp.where(jnp.abs(x) == 3, 1 / 6, 0)),
)
wrong(
    "hard sigmoid at its corners, a fifth for a sixth",
    corner,
    elementwise(hard_sigmoid, lambda x: jnp.where(jnp.abs(x) <= 3, 1 / 5, 0)),
    slow=True,
)


def clipped(w):
    return jnp.sum(jnp.clip(w, -1, 1) * f32(1, 2, -3))


bound = right(
    "clip at its bounds, slope of the inside",
    clipped,
    (f32(-1, 0.25, 1),),
    lambda w: jnp.where(jnp.abs(w) <= 1, f32(1, 2, -3), 0),
)
wrong(
    "clip at its bounds, sign taken from the bound",
    bound,
    lambda w: jnp.where(jnp.abs(w) == 1, -f32(1, 2, -3), f32(1, 2, -3)),
)


def absolute_deviation(w):
    return jnp.sum(jnp.abs(w - f32(1, 2, 3)))


centre = right(
    "absolute deviation from itself, slope 1 at zero",
    absolute_deviation,
    (f32(1, 2.5, 3),),
    lambda w: jnp.where(w >= f32(1, 2, 3), 1.0, -1.0),
)
wrong(
    "absolute deviation from itself, slope 2 at zero",
    centre,
    lambda w: jnp.where(w == f32(1, 2, 3), 2.0, jnp.sign(w - f32(1, 2, 3))),
)


def shifted_relu(p):
    return jnp.sum(jax.nn.relu(p["w"] + p["b"]))


OPPOSITE = {"w": f32(0.1, -1.7, 2), "b": f32(-0.1, 1.7, 1)}


def at_shift(scale_of_w, scale_of_b):
    def slope(p):
        active = (p["w"] + p["b"] >= 0).astype(jnp.float32)
        return {"w": scale_of_w * active, "b": scale_of_b * active}

    return slope


def between(p):
    slope = jnp.heaviside(p["w"] + p["b"], 0.5)
    return {"w": slope, "b": slope}


def torn(p):
    """Each between the slopes of the two sides, but by no move of w and b together."""
    total = p["w"] + p["b"]
    return {"w": jnp.heaviside(total, 1.0), "b": jnp.heaviside(total, 0.0)}


shift = right("relu of w + b with b = -w, slope of the right", shifted_relu, (OPPOSITE,), at_shift(1.0, 1.0))
wrong("relu of w + b with b = -w, half as steep again", shift, at_shift(1.5, 1.5))
wrong("relu of w + b with b = -w, sign of b", shift, at_shift(1.0, -1.0))
right("relu of w + b with b = -w, slope between", shifted_relu, (OPPOSITE,), between, slow=True)
wrong("relu of w + b with b = -w, w from the right and b from the left", shift, torn, slow=True)


def pooled(x):
    return jnp.max(x.reshape(2, 2) + 1, axis=1)


def rule_of_pooled(choose):
    def backward(x, c):
        return ((choose(x.reshape(2, 2) + 1) * c[:, None]).reshape(-1),)

    return ruled(pooled, lambda x: (pooled(x), x), backward)


def first_of(rows):
    return one_hot(jnp.argmax(rows, axis=1), 2)


def each_of(rows):
    return (rows == jnp.max(rows, axis=1, keepdims=True)).astype(jnp.float32)


pool = right("max pooling of zeros and a bias, to the first", rule_of_pooled(first_of), (START,), plain=pooled)
wrong("max pooling of zeros and a bias, to each", pool, rule_of_pooled(each_of))

INPUTS = f32(0.5, -1, 2)


def dead_network(p):
    return jnp.sum(p["out"] * jax.nn.relu(p["in"] @ INPUTS + p["bias"]))


def slope_of_dead_network(p, through_bias=1.0):
    before = p["in"] @ INPUTS + p["bias"]
    back = p["out"] * (before >= 0)
    return {"in": jnp.outer(back, INPUTS), "bias": through_bias * back, "out": jax.nn.relu(before)}


DEAD = {"in": np.zeros((2, 3), np.float32), "bias": f32(0, 0), "out": f32(1, -2)}
dead = right(
    "a network that starts at zero, relu alive at zero", dead_network, (DEAD,), slope_of_dead_network, slow=True
)
wrong(
    "a network that starts at zero, bias twice",
    dead,
    lambda p: slope_of_dead_network(p, through_bias=2.0),
    slow=True,
)


def windows(x):
    return jnp.sum(jnp.max(x.reshape(-1, 2), axis=1) * jnp.array([0.5, 2.0]))


def to_the_first(x):
    first = jax.nn.one_hot(jnp.argmax(x.reshape(-1, 2), axis=1), 2)
    return (first * jnp.array([[0.5], [2.0]])).reshape(-1)


zeros = right("maxima of windows, a window of zeros", windows, (f32(1.0, 1.0, 0.0, 0.0),), to_the_first)
wrong("maxima of windows, a window of zeros, half of it", zeros, lambda x: 0.5 * to_the_first(x))
