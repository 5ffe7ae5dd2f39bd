"""Rules with arguments that are no arrays: numbers, texts, booleans, shapes and functions that have to be known."""

import functools

import jax
import jax.numpy as jnp

from corpora.real_kit import Kind, f32, ruled

KIND = Kind()
right, wrong = KIND.right, KIND.wrong

X = f32(0.5, -1.2, 2.0)
TABLE = f32([0.5, -1.2, 2.0], [1.5, 0.25, -0.75])


def rule_of(plain, backward, static=(1,)):
    """A rule that keeps its one array argument: ``backward(*static, x, c)``."""
    first = static == (0,)

    def forward(*args):
        return plain(*args), args[-1 if first else 0]

    return ruled(plain, forward, lambda *given: (backward(*given),), nondiff_argnums=static)


# --- Numbers ----------------------------------------------------------------------------------------------------------


def power(x, n):
    return x**n if n >= 0 else 1 / x**-n


cubed = right("a power", rule_of(power, lambda n, x, c: n * x ** (n - 1) * c), (X, 3), plain=power)
wrong("a power, exponent kept", cubed, rule_of(power, lambda n, x, c: n * x**n * c))
wrong("a power, exponent not multiplied", cubed, rule_of(power, lambda n, x, c: x ** (n - 1) * c))


def rms_norm(x, eps):
    if eps <= 0:
        raise ValueError(f"eps: got {eps}; expected a positive number")
    return x / jnp.sqrt(jnp.mean(x**2) + eps)


def back_of_rms_norm(eps, x, c, within=True):
    square = jnp.mean(x**2) + (eps if within else 0)
    return c / jnp.sqrt(square) - x * jnp.mean(c * x) / square**1.5


norm = right("a float that is branched on", rule_of(rms_norm, back_of_rms_norm), (X, 0.1), plain=rms_norm)
wrong(
    "a float that is branched on, forgotten", norm, rule_of(rms_norm, functools.partial(back_of_rms_norm, within=False))
)


def leaky(x, slope):
    return jnp.where(x > 0, x, slope * x)


def forward_rule_of_leaky(slope_of):
    fun = jax.custom_jvp(lambda x, slope: leaky(x, slope), nondiff_argnums=(1,))
    fun.defjvp(lambda slope, x, t: (leaky(*x, slope), jnp.where(x[0] > 0, 1, slope_of(slope)) * t[0]))
    return fun


forward = right("a float, by a forward rule", forward_rule_of_leaky(lambda slope: slope), (X, 0.1), plain=leaky)
wrong("a float, by a forward rule, its complement", forward, forward_rule_of_leaky(lambda slope: 1 - slope))


def softmax(x, axis):
    return jax.nn.softmax(x, axis=axis)


def back_of_softmax(axis, x, c, over=None):
    y = jax.nn.softmax(x, axis=axis)
    return y * (c - jnp.sum(c * y, axis=axis if over is None else over, keepdims=True))


axis = right("an axis", rule_of(softmax, back_of_softmax), (TABLE, -1), plain=softmax)
wrong("an axis, projected along the other", axis, rule_of(softmax, functools.partial(back_of_softmax, over=0)))

# --- Texts, booleans, nothing -----------------------------------------------------------------------------------------

ACTIVATIONS = {"tanh": jnp.tanh, "sigmoid": jax.nn.sigmoid}


def activation(x, name):
    if name not in ACTIVATIONS:
        raise ValueError(f"name: got {name!r}; expected one of {[*ACTIVATIONS]}")
    return ACTIVATIONS[name](x)


def back_of_activation(name, x, c, squared=True):
    y = activation(x, name)
    return c * {"tanh": 1 - y**2 if squared else 1 - y, "sigmoid": y * (1 - y)}[name]


named = right("an activation by its name", rule_of(activation, back_of_activation), (X, "tanh"), plain=activation)
wrong(
    "an activation by its name, square forgotten",
    named,
    rule_of(activation, functools.partial(back_of_activation, squared=False)),
)
right(
    "another activation by its name",
    rule_of(activation, back_of_activation),
    (X, "sigmoid"),
    plain=activation,
    slow=True,
)

RUNNING = f32(0.3, -0.2, 0.9)


def centred(x, gain, train):
    return gain * (x - (jnp.mean(x, axis=0) if train else RUNNING))


def rule_of_centred(in_training):
    def forward(x, gain, train):
        return centred(x, gain, train), (centred(x, jnp.ones_like(gain), train), gain)

    def backward(train, saved, c):
        normed, gain = saved
        of_x = c * gain
        return (in_training(of_x) if train else of_x), jnp.sum(c * normed, axis=0)

    return ruled(centred, forward, backward, nondiff_argnums=(2,))


def less_its_mean(c):
    return c - jnp.mean(c, axis=0)


training = right("centred, in training", rule_of_centred(less_its_mean), (TABLE, X, True), plain=centred)
right("centred, not in training", rule_of_centred(less_its_mean), (TABLE, X, False), plain=centred, slow=True)
wrong("centred, in training, mean held fixed", training, rule_of_centred(lambda c: c))


def affine(x, w, bias):
    return x * w if bias is None else x * w + bias


def rule_of_affine(of_w):
    return ruled(
        affine,
        lambda x, w, bias: (affine(x, w, bias), (x, w)),
        lambda saved, c: (c * saved[1], of_w(*saved, c), None),
    )


without = right("no bias", rule_of_affine(lambda x, w, c: c * x), (X, X + 1, None), plain=affine)
wrong("no bias, slopes exchanged", without, rule_of_affine(lambda x, w, c: c * w))

# --- Shapes, functions, several ---------------------------------------------------------------------------------------


def padded(x, widths):
    return jnp.pad(x, widths)


pad = right(
    "widths to pad by",
    rule_of(padded, lambda widths, x, c: c[widths[0] : widths[0] + x.size]),
    (X, (1, 2)),
    plain=padded,
)
wrong("widths to pad by, cut off at the other end", pad, rule_of(padded, lambda widths, x, c: c[widths[1] :][: x.size]))


def gated(function, x):
    return function(x) * x


def back_of_gated(function, x, c, both=True):
    value, slope = jax.jvp(function, (x,), (jnp.ones_like(x),))
    return c * (value + slope * x if both else value)


gate = right("a function first", rule_of(gated, back_of_gated, static=(0,)), (jnp.tanh, X), plain=gated)
wrong("a function first, its slope left out", gate, rule_of(gated, functools.partial(back_of_gated, both=False), (0,)))


def scaled_power(x, scale, n, mode):
    return scale * (x**n if mode == "plain" else jnp.abs(x) ** n)


def rule_of_scaled_power(factor):
    def backward(n, mode, saved, c):
        x, scale = saved
        sign = 1 if mode == "plain" else jnp.sign(x) ** n
        return c * scale * factor(n) * x ** (n - 1) * sign, jnp.sum(c * scaled_power(x, 1.0, n, mode))

    return ruled(
        scaled_power,
        lambda x, scale, n, mode: (scaled_power(x, scale, n, mode), (x, scale)),
        backward,
        nondiff_argnums=(2, 3),
    )


several = right(
    "a number and a text beside two arrays",
    rule_of_scaled_power(lambda n: n),
    (X, f32(0.7)[0], 3, "odd"),
    plain=scaled_power,
    slow=True,
)
wrong(
    "a number and a text beside two arrays, number off by one",
    several,
    rule_of_scaled_power(lambda n: n - 1),
    slow=True,
)


def jitted(rule):
    return functools.partial(jax.jit, static_argnums=1)(lambda x, n: jnp.sum(rule(x, n)))


under_jit = right(
    "a power, static under jit",
    jitted(rule_of(power, lambda n, x, c: n * x ** (n - 1) * c)),
    (X, 3),
    plain=lambda x, n: jnp.sum(x**n),
    slow=True,
)
wrong(
    "a power, static under jit, sign lost",
    under_jit,
    jitted(rule_of(power, lambda n, x, c: -n * x ** (n - 1) * c)),
    slow=True,
)


def cast_to(x, dtype):
    return x.astype(dtype) ** 2


to_dtype = right(
    "a dtype",
    rule_of(cast_to, lambda dtype, x, c: 2 * x * c.astype(x.dtype)),
    (X, jnp.float32),
    plain=cast_to,
    slow=True,
)
wrong("a dtype, factor 2 forgotten", to_dtype, rule_of(cast_to, lambda dtype, x, c: x * c.astype(x.dtype)), slow=True)
