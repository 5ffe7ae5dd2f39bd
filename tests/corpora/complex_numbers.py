"""Complex numbers, inside a real loss and as arguments, by JAX's convention.

A gradient of a real loss is ``df/dRe - i df/dIm``, and a cotangent is multiplied by the derivative, neither conjugated:
what PyTorch returns, and what descends, is the conjugate.

Source: the JAX documentation, "The autodiff cookbook", complex numbers and differentiation.
"""

import jax.numpy as jnp
import numpy as np

from corpora.kit import Code, custom, elementwise, f32

COMPLEX = Code()
grad, rule = COMPLEX.grad, COMPLEX.rule


def c64(*values):
    return np.asarray(values, np.complex64)


# --- Complex inside ---------------------------------------------------------------------------------------------------

W, K = f32(0.3, -1.2, 2.0, 0.7), f32(1, 2, -1, 0.5)


def phases(w):
    return jnp.exp(1j * (w * K).astype(jnp.complex64))


def slope_of_power(w, sign=-2):
    return sign * K * jnp.imag(jnp.conj(jnp.sum(phases(w))) * phases(w))


grad(
    "power of a sum of phases",
    lambda w: jnp.abs(jnp.sum(phases(w))) ** 2,
    (W,),
    slope_of_power,
    {"turned the other way": lambda w: slope_of_power(w, 2)},
)
SPECTRUM = c64(0.5, 1 - 1j, -0.25 + 0.5j, 1 + 1j)
grad(
    "distance of spectra",
    lambda x: jnp.sum(jnp.abs(jnp.fft.fft(x) - SPECTRUM) ** 2),
    (W,),
    lambda x: 2 * x.size * jnp.fft.ifft(jnp.fft.fft(x) - SPECTRUM).real,
    {"scale of the inverse forgotten": lambda x: 2 * jnp.fft.ifft(jnp.fft.fft(x) - SPECTRUM).real},
)

# --- Complex arguments of a real loss ---------------------------------------------------------------------------------

Z = c64(0.5 + 1j, -1.25 + 0.5j, 2 - 0.75j)
MATRIX = c64([1 + 1j, 0.5, -0.5j], [0.25, 1 - 2j, 1.5])
MEASURED = c64(1, -0.5 + 1j)
grad(
    "squared modulus of complex parameters",
    lambda z: jnp.sum(jnp.abs(z) ** 2),
    (Z,),
    lambda z: 2 * z.conj(),
    {"conjugated": lambda z: 2 * z},
)
grad(
    "complex least squares",
    lambda z: jnp.sum(jnp.abs(MATRIX @ z - MEASURED) ** 2),
    (Z,),
    lambda z: 2 * MATRIX.T @ jnp.conj(MATRIX @ z - MEASURED),
    {"the direction of descent": lambda z: 2 * MATRIX.T.conj() @ (MATRIX @ z - MEASURED)},
)


def slope_of_product(p, conjugate=jnp.conj):
    off = p["gain"] * p["z"] - MEASURED[0]
    return {"gain": 2 * jnp.real(jnp.conj(off) * p["z"]), "z": 2 * p["gain"] * conjugate(off)}


grad(
    "complex product with a real parameter",
    lambda p: jnp.sum(jnp.abs(p["gain"] * p["z"] - MEASURED[0]) ** 2),
    ({"gain": f32(0.5, -1, 2), "z": Z},),
    slope_of_product,
    {"complex one conjugated": lambda p: slope_of_product(p, lambda off: off)},
)

# --- Rules of complex functions ---------------------------------------------------------------------------------------


def cube(z):
    return z**3


def modulus(z):
    return jnp.abs(z) ** 2


rule(
    "a holomorphic rule",
    elementwise(cube, lambda z: 3 * z**2),
    (Z,),
    {"conjugated": elementwise(cube, lambda z: 3 * jnp.conj(z) ** 2)},
)
rule(
    "a real function of complex numbers",
    elementwise(modulus, lambda z: 2 * jnp.conj(z)),
    (Z,),
    {"conjugated": elementwise(modulus, lambda z: 2 * z)},
)


def rule_of_fft(backward):
    return custom(jnp.fft.fft, lambda z: (jnp.fft.fft(z), None), lambda _, c: (backward(c),))


rule(
    "Fourier transform, its own transpose",
    rule_of_fft(jnp.fft.fft),
    (Z,),
    {"its adjoint instead": rule_of_fft(lambda c: c.size * jnp.fft.ifft(c))},
)


def rule_of_euler(conjugate):
    euler = lambda x: jnp.exp(1j * x)  # noqa: E731
    return custom(euler, lambda x: (euler(x), euler(x)), lambda y, c: (jnp.real(conjugate(c) * 1j * y),))


rule(
    "complex values of real numbers",
    rule_of_euler(lambda c: c),
    (f32(0.3, -1.2, 2.0),),
    {"cotangent conjugated": rule_of_euler(jnp.conj)},
)
