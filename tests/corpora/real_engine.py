"""Rules by other means than ``custom_vjp``: primitives of JAX's new engine, and linear functions with a transpose."""

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import linear_call

from corpora.real_kit import Kind, f32

try:  # JAX 0.12 and 0.10 name it differently.
    from jax.experimental.hijax import HiPrim
except ImportError:
    from jax.experimental.hijax import VJPHiPrimitive as HiPrim

LINEAR, PRIMITIVES = Kind(), Kind()
X = f32(0.5, -1.2, 2.0)
MATRIX = f32([2, 0.5, -0.3], [0.1, 1.5, 0.4], [-0.7, 0.2, 1.1])

# --- Linear functions with a transpose by hand ------------------------------------------------------------------------

right, wrong = LINEAR.right, LINEAR.wrong


def linear(function, transpose, *residuals):
    """``function(*residuals, x)`` and ``transpose(*residuals, c)``."""
    return lambda x: linear_call(
        lambda residuals, x: function(*residuals, x), lambda residuals, c: transpose(*residuals, c), residuals, x
    )


scaled = right("a linear call, scaled", linear(jnp.multiply, jnp.multiply, X), (X + 1,), plain=lambda x: X * x)
wrong("a linear call, scaled twice on the way back", scaled, linear(jnp.multiply, lambda r, c: r * r * c, X))
product = right(
    "a linear call, a product", linear(jnp.matmul, lambda a, c: a.T @ c, MATRIX), (X,), plain=lambda x: MATRIX @ x
)
wrong("a linear call, a product, not transposed", product, linear(jnp.matmul, jnp.matmul, MATRIX))
solved = right(
    "a linear call, a system solved",
    linear(jnp.linalg.solve, lambda a, c: jnp.linalg.solve(a.T, c), MATRIX),
    (X,),
    plain=lambda x: jnp.linalg.solve(MATRIX, x),
    slow=True,
)
wrong(
    "a linear call, a system solved, not transposed",
    solved,
    linear(jnp.linalg.solve, jnp.linalg.solve, MATRIX),
    slow=True,
)
summed = right(
    "a linear call, sums from the left", linear(jnp.cumsum, lambda c: jnp.cumsum(c[::-1])[::-1]), (X,), plain=jnp.cumsum
)
wrong("a linear call, sums from the left on the way back, too", summed, linear(jnp.cumsum, jnp.cumsum))


def shift(x):
    return jnp.concatenate([x[1:], jnp.zeros_like(x[:1])])


def shift_back(c):
    return jnp.concatenate([jnp.zeros_like(c[:1]), c[:-1]])


shifted = right(
    "a linear call, shifted, within a sine", lambda x: jnp.sin(linear(shift, shift_back)(x)), (X,), slow=True
)
wrong(
    "a linear call, shifted the same way on the way back",
    shifted,
    lambda x: jnp.sin(linear(shift, shift)(x)),
    plain=lambda x: jnp.sin(shift(x)),
    slow=True,
)

# --- Primitives of the new engine -------------------------------------------------------------------------------------

right, wrong = PRIMITIVES.right, PRIMITIVES.wrong


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


class SineALittleOff(Sine):
    def vjp_bwd_retval(self, kept, c):
        return (1.001 * jnp.cos(*kept) * c,)


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


def normalised(x):
    return x / jnp.sqrt(jnp.mean(x**2) + 1e-5)


class Normed(Ruled):
    def expand(self, x):
        return normalised(x)

    def vjp_bwd_retval(self, kept, c):
        (x,) = kept
        square = jnp.mean(x**2) + 1e-5
        return (c / jnp.sqrt(square) - x * jnp.mean(c * x) / square**1.5,)


class NormedByAConstant(Normed):
    def vjp_bwd_retval(self, kept, c):
        (x,) = kept
        return (c / jnp.sqrt(jnp.mean(x**2) + 1e-5),)


def within(rule):
    """Under jit, in a scan."""

    @jax.jit
    def fun(x):
        return lax.scan(lambda carry, _: (rule(carry) + x, None), x, length=2)[0]

    return fun


sine = right("a primitive of the new engine", Sine.on, (X,), plain=jnp.sin)
wrong("a primitive of the new engine, sign lost", sine, SineWithoutSign.on)
wrong("a primitive of the new engine, a thousandth off", sine, SineALittleOff.on)
exchange = right("a primitive of two arguments, no vmap", Product.on, (X, X + 1), plain=jnp.multiply)
wrong("a primitive of two arguments, slopes exchanged", exchange, ProductExchanged.on)
normed = right("a primitive that normalises", Normed.on, (X,), plain=normalised, slow=True)
wrong("a primitive that normalises by a constant", normed, NormedByAConstant.on, slow=True)
inside = right("a primitive of the new engine, in a scan", within(Sine.on), (X,), plain=within(jnp.sin), slow=True)
wrong("a primitive of the new engine, in a scan, sign lost", inside, within(SineWithoutSign.on), slow=True)
