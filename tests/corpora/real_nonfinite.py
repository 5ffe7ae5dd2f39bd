"""Losses whose autodiff is NaN, everywhere or in some elements, where the rule by hand is right."""

import jax
import jax.numpy as jnp
import numpy as np

from corpora.real_kit import Kind, elementwise, f32

KIND = Kind()
right, wrong = KIND.right, KIND.wrong

POINTS = f32([0, 0], [1, 0.5], [-0.5, 1.25])
DIAGONAL = np.eye(3, dtype=bool)

# --- Pairs, with themselves among them --------------------------------------------------------------------------------


def repulsion(x):
    distance = jnp.linalg.norm(x[:, None] - x[None], axis=-1)
    return jnp.sum(jnp.where(DIAGONAL, 0, 1 / distance)) / 2


def forces(x):
    apart = x[:, None] - x[None]
    distance = jnp.sqrt(jnp.where(DIAGONAL, 1, jnp.sum(apart**2, axis=-1)))
    return -jnp.sum(jnp.where(DIAGONAL[..., None], 0, apart / distance[..., None] ** 3), axis=1)


pairs = right("energy of pairs, forces by hand", repulsion, (POINTS,), forces)
wrong("energy of pairs, forces the other way", pairs, lambda x: -forces(x))
wrong("energy of pairs, each counted twice", pairs, lambda x: 2 * forces(x))
wrong("energy of pairs, force on one point off by a hundredth", pairs, lambda x: forces(x).at[1].multiply(1.01))


def lennard_jones(x):
    r = jnp.linalg.norm(x[:, None] - x[None], axis=-1)
    return jnp.sum(jnp.where(DIAGONAL, 0, r**-12 - r**-6)) / 2


def lennard_jones_forces(x, power=6):
    apart = x[:, None] - x[None]
    square = jnp.where(DIAGONAL, 1, jnp.sum(apart**2, axis=-1))
    slope = jnp.where(DIAGONAL, 0, (-12 * square**-6 + power * square**-3) / square)
    return jnp.sum(slope[..., None] * apart, axis=1)


attracted = right("Lennard-Jones energy, forces by hand", lennard_jones, (POINTS,), lennard_jones_forces, slow=True)
wrong("Lennard-Jones energy, 3 for 6", attracted, lambda x: lennard_jones_forces(x, power=3), slow=True)


def kernel_sum(x):
    return jnp.sum(jnp.exp(-(jnp.linalg.norm(x[:, None] - x[None], axis=-1) ** 2)))


def slope_of_kernel_sum(x, factor=-4):
    apart = x[:, None] - x[None]
    return factor * jnp.sum(jnp.exp(-jnp.sum(apart**2, axis=-1))[..., None] * apart, axis=1)


kernel = right("Gaussian kernel by distances, diagonal included", kernel_sum, (POINTS,), slope_of_kernel_sum)
wrong("Gaussian kernel by distances, one half of the pairs", kernel, lambda x: slope_of_kernel_sum(x, factor=-2))

# --- In some elements -------------------------------------------------------------------------------------------------

ROWS = f32([3, 4], [0, 0], [1, -2])


def group_lasso(w):
    return jnp.sum(jnp.linalg.norm(w, axis=1))


def slope_of_group_lasso(w):
    norm = jnp.sqrt(jnp.sum(w**2, axis=1, keepdims=True))
    return w / jnp.where(norm == 0, 1, norm)


lasso = right("group lasso with a row of zeros", group_lasso, (ROWS,), slope_of_group_lasso, hesitates=True)
wrong("group lasso with a row of zeros, not divided by the norm", lasso, lambda w: w)
wrong(
    "group lasso with a row of zeros, by the square of the norm",
    lasso,
    lambda w: w / jnp.maximum(jnp.sum(w**2, axis=1, keepdims=True), 1e-12),
    slow=True,
)


def unguarded_sinc(x):
    return jnp.where(x == 0, 1, jnp.sin(x) / x)


def slope_of_sinc(x):
    safe = jnp.where(x == 0, 1, x)
    return jnp.where(x == 0, 0, (safe * jnp.cos(safe) - jnp.sin(safe)) / safe**2)


AT_ZERO = f32(-1.5, 0, 2.0)
sinc = right(
    "unguarded sinc, its rule guarded", elementwise(unguarded_sinc, slope_of_sinc), (AT_ZERO,), plain=unguarded_sinc
)
wrong(
    "unguarded sinc, a slope of 1 where it is 0",
    sinc,
    elementwise(unguarded_sinc, lambda x: jnp.where(x == 0, 1, slope_of_sinc(x))),
)
wrong(
    "unguarded sinc, sign of the second term",
    sinc,
    elementwise(
        unguarded_sinc,
        lambda x: jnp.where(x == 0, 0, (x * jnp.cos(x) + jnp.sin(x)) / jnp.where(x == 0, 1, x) ** 2),
    ),
)


def squared_length(x):
    return jnp.sum(jnp.sqrt(jnp.sum(x**2, axis=1)) ** 4)


fourth = right(
    "fourth power of a length, at a row of zeros",
    squared_length,
    (ROWS / 4,),
    lambda x: 4 * jnp.sum(x**2, axis=1, keepdims=True) * x,
)
wrong(
    "fourth power of a length, at a row of zeros, factor 2",
    fourth,
    lambda x: 2 * jnp.sum(x**2, axis=1, keepdims=True) * x,
)

MASK = np.array([[True, True, False], [False, False, False]])
VALUES = f32(0.5, -1, 2)


def masked_attention(scores):
    """The second row attends to nothing, is NaN for a moment, and is then left out."""
    weights = jax.nn.softmax(jnp.where(MASK, scores, -jnp.inf), axis=-1)
    return jnp.sum(jnp.where(MASK.any(axis=1), weights @ VALUES, 0))


def slope_of_masked_attention(scores, centred=True):
    weights = jnp.where(MASK, jnp.exp(scores), 0)
    weights = weights / jnp.maximum(jnp.sum(weights, axis=-1, keepdims=True), 1e-9)
    mean = (weights @ VALUES)[:, None] if centred else 0
    return weights * (VALUES - mean)


attention = right(
    "attention with a row that is masked throughout",
    masked_attention,
    (f32([0.3, -0.5, 1], [0.1, 0.2, -0.3]),),
    slope_of_masked_attention,
    slow=True,
)
wrong(
    "attention with a row that is masked throughout, not centred",
    attention,
    lambda scores: slope_of_masked_attention(scores, centred=False),
    slow=True,
)
