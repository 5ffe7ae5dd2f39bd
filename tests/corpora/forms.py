"""Rules with arguments that are no arrays, linear functions with a transpose, primitives of JAX's new engine."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.custom_derivatives import linear_call

from corpora.kit import Code, custom, f32

try:  # JAX 0.12 and 0.10 name it differently.
    from jax.experimental.hijax import HiPrim
except ImportError:
    from jax.experimental.hijax import VJPHiPrimitive as HiPrim

STATIC, LINEAR, PRIMITIVES = Code(), Code(), Code()
X = f32(0.5, -1.2, 2.0)
TABLE = f32([0.5, -1.2, 2.0], [1.5, 0.25, -0.75])

# --- Numbers, texts, booleans, shapes and functions that must be known ------------------------------------------------

rule = STATIC.rule


def rule_of(plain, backward, static=1):
    """A rule that keeps its one array argument: ``backward(static, x, c)``."""
    forward = lambda *args: (plain(*args), args[1 - static])  # noqa: E731
    return custom(plain, forward, lambda *given: (backward(*given),), nondiff_argnums=(static,))


def power(x, n):
    return x**n if n >= 0 else 1 / x**-n


def back_of_power(n, x, c):
    return n * x ** (n - 1) * c


rule("a power", rule_of(power, back_of_power), (X, 3), {"exponent kept": rule_of(power, lambda n, x, c: n * x**n * c)})


def jitted(rule):
    return functools.partial(jax.jit, static_argnums=1)(lambda x, n: jnp.sum(rule(x, n)))


sign_lost = jitted(rule_of(power, lambda n, x, c: -back_of_power(n, x, c)))
rule("a power, static under jit", jitted(rule_of(power, back_of_power)), (X, 3), {"sign lost": sign_lost})


def rms_norm(x, eps):
    if eps <= 0:
        raise ValueError(f"eps: got {eps}; expected a positive number")
    return x / jnp.sqrt(jnp.mean(x**2) + eps)


def back_of_rms_norm(eps, x, c, within=1):
    square = jnp.mean(x**2) + within * eps
    return c / jnp.sqrt(square) - x * jnp.mean(c * x) / square**1.5


forgotten = rule_of(rms_norm, functools.partial(back_of_rms_norm, within=0))
rule("a float that is branched on", rule_of(rms_norm, back_of_rms_norm), (X, 0.1), {"forgotten": forgotten})


def leaky(x, slope):
    return jnp.where(x > 0, x, slope * x)


def rule_of_leaky(slope_of):
    along = lambda slope, x, t: (leaky(*x, slope), jnp.where(x[0] > 0, 1, slope_of(slope)) * t[0])  # noqa: E731
    fun = jax.custom_jvp(lambda x, slope: leaky(x, slope), nondiff_argnums=(1,))
    fun.defjvp(along)
    return fun


complement = rule_of_leaky(lambda slope: 1 - slope)
rule("a float, by a forward rule", rule_of_leaky(lambda slope: slope), (X, 0.1), {"its complement": complement})


def softmax(x, axis):
    return jax.nn.softmax(x, axis=axis)


def back_of_softmax(axis, x, c, over=None):
    y = jax.nn.softmax(x, axis=axis)
    return y * (c - jnp.sum(c * y, axis=axis if over is None else over, keepdims=True))


other_axis = rule_of(softmax, functools.partial(back_of_softmax, over=0))
rule("an axis", rule_of(softmax, back_of_softmax), (TABLE, -1), {"projected along the other": other_axis})
ACTIVATIONS = {"tanh": jnp.tanh, "sigmoid": jax.nn.sigmoid}


def activation(x, name):
    if name not in ACTIVATIONS:
        raise ValueError(f"name: got {name!r}; expected one of {[*ACTIVATIONS]}")
    return ACTIVATIONS[name](x)


def back_of_activation(name, x, c, power=2):
    y = activation(x, name)
    return c * {"tanh": 1 - y**power, "sigmoid": y * (1 - y)}[name]


unsquared = rule_of(activation, functools.partial(back_of_activation, power=1))
rule("an activation by its name", rule_of(activation, back_of_activation), (X, "tanh"), {"square forgotten": unsquared})


def affine(x, w, bias):
    return x * w if bias is None else x * w + bias


def rule_of_affine(of_w):
    forward = lambda x, w, bias: (affine(x, w, bias), (x, w))  # noqa: E731
    return custom(affine, forward, lambda saved, c: (c * saved[1], of_w(*saved, c), None))


exchanged = rule_of_affine(lambda x, w, c: c * w)
rule("no bias", rule_of_affine(lambda x, w, c: c * x), (X, X + 1, None), {"slopes exchanged": exchanged})


def rule_of_padded(start):
    return rule_of(lambda x, widths: jnp.pad(x, widths), lambda widths, x, c: c[widths[start] :][: x.size])


rule("widths to pad by", rule_of_padded(0), (X, (1, 2)), {"cut off at the other end": rule_of_padded(1)})


def gated(function, x):
    return function(x) * x


def back_of_gated(function, x, c, both=1):
    value, slope = jax.jvp(function, (x,), (jnp.ones_like(x),))
    return c * (value + both * slope * x)


without = rule_of(gated, functools.partial(back_of_gated, both=0), 0)
rule("a function first", rule_of(gated, back_of_gated, 0), (jnp.tanh, X), {"its slope left out": without})

# --- Linear functions with a transpose by hand ------------------------------------------------------------------------

MATRIX = f32([2, 0.5, -0.3], [0.1, 1.5, 0.4], [-0.7, 0.2, 1.1])


def linear(function, transpose, residual):
    return lambda x: linear_call(function, transpose, residual, x)


not_transposed = linear(jnp.matmul, jnp.matmul, MATRIX)
right = linear(jnp.matmul, lambda a, c: a.T @ c, MATRIX)
LINEAR.rule("a linear call, a product", right, (X,), {"not transposed": not_transposed})

# --- Primitives of the new engine -------------------------------------------------------------------------------------

rule = PRIMITIVES.rule


class Ruled(HiPrim):
    """A primitive with a reverse rule, and as little else as JAX asks for."""

    def __init__(self, *avals):
        self.in_avals, self.out_aval, self.params = avals, avals[0], {}
        super().__init__()

    @classmethod
    def on(cls, *args):
        return cls(*map(jax.typeof, args))(*args)

    def vjp_fwd(self, nonzero, /, *args):
        return self(*args), args


class Sine(Ruled):
    def expand(self, x):
        return jnp.sin(x)

    def vjp_bwd_retval(self, kept, c):
        return (jnp.cos(*kept) * c,)

    def batch(self, axis_data, args, dims):
        return type(self).on(*args), dims[0]


class SineWithoutSign(Sine):
    def vjp_bwd_retval(self, kept, c):
        return (jnp.abs(jnp.cos(*kept)) * c,)


class Product(Ruled):
    def expand(self, x, y):
        return x * y

    def vjp_bwd_retval(self, kept, c):
        x, y = kept
        return y * c, x * c


class ProductExchanged(Product):
    def vjp_bwd_retval(self, kept, c):
        x, y = kept
        return x * c, y * c


def within(rule):
    """Under jit, in a scan."""
    return jax.jit(lambda x: lax.scan(lambda carry, _: (rule(carry) + x, None), x, length=2)[0])


rule("a primitive of the new engine", Sine.on, (X,), {"sign lost": SineWithoutSign.on})
rule("a primitive of two arguments, no vmap", Product.on, (X, X + 1), {"slopes exchanged": ProductExchanged.on})
rule("a primitive of the new engine, in a scan", within(Sine.on), (X,), {"sign lost": within(SineWithoutSign.on)})
AN_INTEGER = {"NumPy": np.int32(3), "array": np.array(3), "JAX": jnp.int32(3)}
