"""Pallas kernels, forward and backward, interpreted; and as they stand, compiled where a device can."""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from corpora.real_kit import Kind, f32, ruled

INTERPRETED, AS_THEY_ARE = Kind(), Kind()

X = f32([0.5, -1.2, 2.0, 0.1], [1.5, 0.25, -0.75, -2.0])


def kernel_on(kernel, *args, interpret):
    like = jax.ShapeDtypeStruct(args[0].shape, args[0].dtype)
    return pl.pallas_call(kernel, out_shape=like, interpret=interpret)(*args)


def rows_on(kernel, *args, interpret):
    """One row at a time."""
    block = pl.BlockSpec((1, args[0].shape[1]), lambda i: (i, 0))
    return pl.pallas_call(
        kernel,
        out_shape=jax.ShapeDtypeStruct(args[0].shape, args[0].dtype),
        grid=(args[0].shape[0],),
        in_specs=[block] * len(args),
        out_specs=block,
        interpret=interpret,
    )(*args)


# --- Scaled tanh ------------------------------------------------------------------------------------------------------


def cap_forward(x, out):
    out[...] = 3 * jnp.tanh(x[...] / 3)


def cap_backward(y, c, out):
    out[...] = c[...] * (1 - (y[...] / 3) ** 2)


def cap_backward_unscaled(y, c, out):
    out[...] = c[...] * (1 - y[...] ** 2)


def cap_backward_a_little_off(y, c, out):
    out[...] = c[...] * (1.001 - (y[...] / 3) ** 2)


def cap(x):
    return 3 * jnp.tanh(x / 3)


def rule_of(run, forward_kernel, backward_kernel, interpret):
    """A rule that keeps the value."""
    on = functools.partial(run, interpret=interpret)

    def forward(x):
        y = on(forward_kernel, x)
        return y, y

    return ruled(lambda x: on(forward_kernel, x), forward, lambda y, c: (on(backward_kernel, y, c),))


def cap_forward_wide(x, out):
    out[...] = (3 * jnp.tanh(x[...].astype(jnp.float32) / 3)).astype(out.dtype)


def cap_backward_wide(y, c, out):
    out[...] = (c[...].astype(jnp.float32) * (1 - (y[...].astype(jnp.float32) / 3) ** 2)).astype(out.dtype)


def cap_backward_wide_unscaled(y, c, out):
    out[...] = (c[...].astype(jnp.float32) * (1 - y[...].astype(jnp.float32) ** 2)).astype(out.dtype)


half = INTERPRETED.right(
    "tanh kernel in bfloat16, computed in float32",
    rule_of(kernel_on, cap_forward_wide, cap_backward_wide, True),
    (X.astype(jnp.bfloat16),),
    plain=cap,
    options={"reference": cap},
    slow=True,
)
INTERPRETED.wrong(
    "tanh kernel in bfloat16, value not scaled on the way back",
    half,
    rule_of(kernel_on, cap_forward_wide, cap_backward_wide_unscaled, True),
    slow=True,
)

# --- Softmax, row by row ----------------------------------------------------------------------------------------------


def softmax_forward(x, out):
    shifted = jnp.exp(x[...] - jnp.max(x[...], axis=-1, keepdims=True))
    out[...] = shifted / jnp.sum(shifted, axis=-1, keepdims=True)


def softmax_backward(y, c, out):
    out[...] = y[...] * (c[...] - jnp.sum(y[...] * c[...], axis=-1, keepdims=True))


def softmax_backward_not_projected(y, c, out):
    out[...] = y[...] * c[...]


def softmax_backward_mean(y, c, out):
    out[...] = y[...] * (c[...] - jnp.mean(y[...] * c[...], axis=-1, keepdims=True))


for kind, interpret, how in ((INTERPRETED, True, "interpreted"), (AS_THEY_ARE, False, "as it is")):
    tanh = kind.right(
        f"tanh kernel, {how}",
        rule_of(kernel_on, cap_forward, cap_backward, interpret),
        (X,),
        plain=cap,
        options={"reference": cap},
    )
    kind.wrong(
        f"tanh kernel, {how}, value not scaled on the way back",
        tanh,
        rule_of(kernel_on, cap_forward, cap_backward_unscaled, interpret),
    )
    kind.wrong(
        f"tanh kernel, {how}, a thousandth off",
        tanh,
        rule_of(kernel_on, cap_forward, cap_backward_a_little_off, interpret),
        slow=True,
    )
    rows = kind.right(
        f"softmax kernel by rows, {how}",
        rule_of(rows_on, softmax_forward, softmax_backward, interpret),
        (X,),
        plain=jax.nn.softmax,
        options={"reference": jax.nn.softmax},
        slow=not interpret,
    )
    kind.wrong(
        f"softmax kernel by rows, {how}, not projected",
        rows,
        rule_of(rows_on, softmax_forward, softmax_backward_not_projected, interpret),
    )
    kind.wrong(
        f"softmax kernel by rows, {how}, a mean for a sum",
        rows,
        rule_of(rows_on, softmax_forward, softmax_backward_mean, interpret),
        slow=True,
    )
    # A kernel on the way back only: the plain function is there, no reference is needed.
    backward = functools.partial(kernel_on, interpret=interpret)
    back = kind.right(
        f"a kernel on the way back only, {how}",
        ruled(cap, lambda x: (cap(x), cap(x)), lambda y, c, on=backward: (on(cap_backward, y, c),)),
        (X,),
        plain=cap,
    )
    kind.wrong(
        f"a kernel on the way back only, {how}, not scaled",
        back,
        ruled(cap, lambda x: (cap(x), cap(x)), lambda y, c, on=backward: (on(cap_backward_unscaled, y, c),)),
    )

NO_REFERENCE = rule_of(kernel_on, cap_forward, cap_backward, True)
NO_REFERENCE_AS_IT_IS = rule_of(kernel_on, cap_forward, cap_backward, False)
