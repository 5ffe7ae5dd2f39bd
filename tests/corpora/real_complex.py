"""Complex numbers, inside a real loss and as arguments, by JAX's convention.

A gradient of a real loss is ``df/dRe - i df/dIm``, and a cotangent is multiplied by the derivative, neither conjugated:
what PyTorch returns, and what descends, is the conjugate.

Source: the JAX documentation, "The autodiff cookbook", complex numbers and differentiation.
"""

import jax.numpy as jnp
import numpy as np
from jax import lax

from corpora.real_kit import Kind, elementwise, f32, ruled

KIND = Kind()
right, wrong = KIND.right, KIND.wrong


def c64(*values):
    return np.asarray(values, np.complex64)


# --- Complex inside ---------------------------------------------------------------------------------------------------

W = f32(0.3, -1.2, 2.0, 0.7)
K = f32(1, 2, -1, 0.5)


def array_factor(w):
    return jnp.abs(jnp.sum(jnp.exp(1j * (w * K).astype(jnp.complex64)))) ** 2


def slope_of_array_factor(w):
    z = jnp.exp(1j * (w * K).astype(jnp.complex64))
    return -2 * K * jnp.imag(jnp.conj(jnp.sum(z)) * z)


array = right("power of a sum of phases", array_factor, (W,), slope_of_array_factor)
wrong("power of a sum of phases, turned the other way", array, lambda w: -slope_of_array_factor(w))
wrong("power of a sum of phases, wave number forgotten", array, lambda w: slope_of_array_factor(w) / K, slow=True)

SPECTRUM = c64(0.5, 1 - 1j, -0.25 + 0.5j, 1 + 1j)


def spectral_distance(x):
    return jnp.sum(jnp.abs(jnp.fft.fft(x) - SPECTRUM) ** 2)


spectral = right(
    "distance of spectra",
    spectral_distance,
    (W,),
    lambda x: 2 * x.size * jnp.fft.ifft(jnp.fft.fft(x) - SPECTRUM).real,
)
wrong(
    "distance of spectra, scale of the inverse transform forgotten",
    spectral,
    lambda x: 2 * jnp.fft.ifft(jnp.fft.fft(x) - SPECTRUM).real,
)
wrong(
    "distance of spectra, transformed forth for back",
    spectral,
    lambda x: 2 * jnp.fft.fft(jnp.fft.fft(x) - SPECTRUM).real,
)


def half_power(x):
    return jnp.sum(jnp.abs(jnp.fft.rfft(x)) ** 2)


def slope_of_half_power(x):
    """The inverse counts what lies between the ends twice; the loss does not."""
    spectrum = jnp.fft.rfft(x)
    ends = spectrum[0].real + spectrum[-1].real * (-1.0) ** np.arange(x.size)
    return x.size * jnp.fft.irfft(spectrum) + ends.astype(x.dtype)


half = right("power of half a spectrum", half_power, (W,), slope_of_half_power)
wrong("power of half a spectrum, its ends twice", half, lambda x: 2 * x.size * jnp.fft.irfft(jnp.fft.rfft(x)))


def rotation_x(angle):
    c, s = jnp.cos(angle / 2).astype(jnp.complex64), -1j * jnp.sin(angle / 2).astype(jnp.complex64)
    return jnp.stack([jnp.stack([c, s]), jnp.stack([s, c])])


def rotation_z(angle):
    phase = jnp.exp(-0.5j * angle.astype(jnp.complex64))
    return jnp.diag(jnp.stack([phase, jnp.conj(phase)]))


def expectation(angles):
    state = jnp.asarray(c64(1, 0))
    for turn, angle in zip((rotation_x, rotation_z, rotation_x), angles, strict=True):
        state = turn(angle) @ state
    return jnp.sum(f32(1, -1) * jnp.abs(state) ** 2)


def parameter_shift(angles, scale=0.5):
    steps = np.float32(np.pi / 2) * np.eye(3, dtype=np.float32)
    return scale * jnp.stack([expectation(angles + step) - expectation(angles - step) for step in steps])


circuit = right(
    "a quantum circuit, by the parameter shift rule", expectation, (f32(0.4, 1.1, -0.8),), parameter_shift, slow=True
)
wrong("the parameter shift rule without its half", circuit, lambda angles: parameter_shift(angles, 1.0), slow=True)


def phase_loss(a, b):
    return jnp.sum(jnp.angle(lax.complex(a, b)) ** 2)


def slope_of_phase(a, b, sign=-1):
    angle, power = jnp.arctan2(b, a), a**2 + b**2
    return sign * 2 * angle * b / power, 2 * angle * a / power


PARTS = (f32(0.5, -1.0, 2.0), f32(1.5, 0.25, -1.0))
phase = right("phase of two real parts", phase_loss, PARTS, slope_of_phase, options={"argnums": (0, 1)})
wrong(
    "phase of two real parts, a sign in the real one",
    phase,
    lambda a, b: slope_of_phase(a, b, sign=1),
)
in_double = right(
    "power of a sum of phases, complex128",
    lambda w: jnp.abs(jnp.sum(jnp.exp(1j * w))) ** 2,
    (W.astype(np.float64),),
    lambda w: -2 * jnp.imag(jnp.conj(jnp.sum(jnp.exp(1j * w))) * jnp.exp(1j * w)),
    x64=True,
    slow=True,
)
wrong(
    "power of a sum of phases, complex128, real part for imaginary",
    in_double,
    lambda w: -2 * jnp.real(jnp.conj(jnp.sum(jnp.exp(1j * w))) * jnp.exp(1j * w)),
    slow=True,
)

# --- Complex arguments of a real loss ---------------------------------------------------------------------------------

Z = c64(0.5 + 1j, -1.25 + 0.5j, 2 - 0.75j)
MATRIX = c64([1 + 1j, 0.5, -0.5j], [0.25, 1 - 2j, 1.5])
MEASURED = c64(1, -0.5 + 1j)

power = right("squared modulus of complex parameters", lambda z: jnp.sum(jnp.abs(z) ** 2), (Z,), lambda z: 2 * z.conj())
wrong("squared modulus of complex parameters, conjugated", power, lambda z: 2 * z)
imaginary = right(
    "imaginary part of complex parameters", lambda z: jnp.sum(z.imag**2), (Z,), lambda z: (-2j * z.imag).astype(z.dtype)
)
wrong("imaginary part of complex parameters, conjugated", imaginary, lambda z: (2j * z.imag).astype(z.dtype))
fitted = right(
    "complex least squares",
    lambda z: jnp.sum(jnp.abs(MATRIX @ z - MEASURED) ** 2),
    (Z,),
    lambda z: 2 * MATRIX.T @ jnp.conj(MATRIX @ z - MEASURED),
)
wrong(
    "complex least squares, the direction of descent",
    fitted,
    lambda z: 2 * MATRIX.T.conj() @ (MATRIX @ z - MEASURED),
)
wrong("complex least squares, half of it", fitted, lambda z: MATRIX.T @ jnp.conj(MATRIX @ z - MEASURED), slow=True)
real_part = right(
    "complex product with a real parameter",
    lambda p: jnp.sum(jnp.abs(p["gain"] * p["z"] - MEASURED[0]) ** 2),
    ({"gain": f32(0.5, -1, 2), "z": Z},),
    lambda p: {
        "gain": 2 * jnp.real(jnp.conj(p["gain"] * p["z"] - MEASURED[0]) * p["z"]),
        "z": 2 * p["gain"] * jnp.conj(p["gain"] * p["z"] - MEASURED[0]),
    },
    slow=True,
)
wrong(
    "complex product with a real parameter, complex one conjugated",
    real_part,
    lambda p: {
        "gain": 2 * jnp.real(jnp.conj(p["gain"] * p["z"] - MEASURED[0]) * p["z"]),
        "z": 2 * p["gain"] * (p["gain"] * p["z"] - MEASURED[0]),
    },
    slow=True,
)

# --- Rules of complex functions ---------------------------------------------------------------------------------------


def cube(z):
    return z**3


def modulus(z):
    return jnp.abs(z) ** 2


holomorphic = right("a holomorphic rule", elementwise(cube, lambda z: 3 * z**2), (Z,), plain=cube)
wrong("a holomorphic rule, conjugated", holomorphic, elementwise(cube, lambda z: 3 * jnp.conj(z) ** 2))
wrong("a holomorphic rule, factor 2 for 3", holomorphic, elementwise(cube, lambda z: 2 * z**2), slow=True)
squared = right(
    "a real function of complex numbers", elementwise(modulus, lambda z: 2 * jnp.conj(z)), (Z,), plain=modulus
)
wrong("a real function of complex numbers, conjugated", squared, elementwise(modulus, lambda z: 2 * z))


def rule_of_fft(backward):
    return ruled(jnp.fft.fft, lambda z: (jnp.fft.fft(z), None), lambda _, c: (backward(c),))


transform = right("Fourier transform, its own transpose", rule_of_fft(jnp.fft.fft), (Z,), plain=jnp.fft.fft)
wrong("Fourier transform, its adjoint for its transpose", transform, rule_of_fft(lambda c: c.size * jnp.fft.ifft(c)))


def euler(x):
    return jnp.exp(1j * x)


def rule_of_euler(backward):
    return ruled(euler, lambda x: (euler(x), euler(x)), lambda y, c: (backward(y, c),))


from_real = right(
    "complex values of real numbers",
    rule_of_euler(lambda y, c: jnp.real(c * 1j * y)),
    (f32(0.3, -1.2, 2.0),),
    plain=euler,
)
wrong(
    "complex values of real numbers, cotangent conjugated",
    from_real,
    rule_of_euler(lambda y, c: jnp.real(jnp.conj(c) * 1j * y)),
)
