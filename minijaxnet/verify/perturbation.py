"""How results are perturbed, to measure how much a program amplifies rounding errors."""

import re
from decimal import Decimal
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax

from minijaxnet.verify.widening import is_inexact


class Perturbation(NamedTuple):
    """How far to move results. All are arguments of the compiled program: scalars, float64 but for the seed.

    A value v becomes ``v * (1 + size * s)``, a zero becomes ``lift * s``, where
    ``s = random * (-1 to 1) + shift + ramp * (from 1 at the first element to -1 at the last) + turn * (1, then -1)``.
    The random part comes from a hash of the value's bits, its place and the seed: loops need no counter (Parker, "Monte
    Carlo arithmetic", 1997).

    Attributes:
        size: the relative perturbation of what is rounded to float64.
        lift: how far a zero is moved, off its kink.
        random: how much of s is random.
        shift: the part of s that is the same everywhere.
        ramp: the part of s that falls with the element's place.
        turn: the part of s that changes its sign from one array to the next.
        inputs: 1 to perturb the differentiated arguments, too, and 0 not to.
        narrow: the perturbation of values with fewer digits than float64 (numbers in the program, results of host
            callbacks), in units of their own epsilon.
        seed: of the random part, uint32.
    """

    size: Any = 0.0
    lift: Any = 0.0
    random: Any = 1.0
    shift: Any = 0.0
    ramp: Any = 0.0
    turn: Any = 0.0
    inputs: Any = 0.0
    narrow: Any = 0.0
    seed: Any = np.uint32(0)

    def arrays(self) -> "Perturbation":
        """The same as arrays of the dtypes that a compiled program takes."""
        *numbers, seed = self
        return Perturbation(*(np.asarray(x, np.float64) for x in numbers), seed=np.asarray(seed, np.uint32))


def perturbed(value: Any, by: Perturbation, salt: int) -> Any:
    """A floating or complex value moved, any other as it is."""
    if not is_inexact(value) or value.size == 0:
        return value
    if jnp.issubdtype(value.dtype, jnp.complexfloating):
        return lax.complex(perturbed(value.real, by, 2 * salt), perturbed(value.imag, by, 2 * salt + 1))
    place = lax.iota(jnp.uint64, value.size).reshape(value.shape)
    bits = lax.bitcast_convert_type(value, jnp.uint64)
    # Odd multipliers with well mixed bits, as in splitmix64 (Steele, Lea and Flood, 2014).
    bits = bits ^ (place * np.uint64(0x9E3779B97F4A7C15))
    bits = bits + (by.seed.astype(jnp.uint64) + np.uint64(salt + 1)) * np.uint64(0xD1B54A32D192ED03)
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    random = lax.bitcast_convert_type(bits, jnp.int64).astype(jnp.float64) * 2.0**-63
    falling = 1 - 2 * place.astype(jnp.float64) / max(value.size - 1, 1)
    s = by.random * random + by.shift + by.ramp * falling + by.turn * (1 - 2 * (salt % 2))
    return jnp.where((value == 0) & (by.lift > 0), by.lift * s, value * (1 + by.size * s))


class LostDigits(NamedTuple):
    """What rounding may have taken from a value before it arrived.

    Attributes:
        mask: which elements may have lost digits.
        unit: the relative size of the last digit that is left.
        how: to what it was rounded, in words.
    """

    mask: np.ndarray
    unit: float
    how: str


def lost_digits(value: Any, dtype: Any) -> LostDigits:
    """Whether a value of a dtype was rounded to fewer digits than float64 has.

    Small whole numbers and fractions, such as 2 and 0.5, are exact. A float64 equal to a float32 of more than 11 bits
    is taken for a rounded float32: by chance that happens to one in 2^29. A single number of 7 to 14 decimal digits is
    taken for one that was cut off there, unless its last digits stand out after zeros or nines, as in 1.000001.
    """
    if not jnp.issubdtype(dtype, jnp.inexact):
        return LostDigits(np.zeros(np.shape(value), bool), 0.0, "")
    wide, full = np.asarray(value).astype(np.complex128), dtype in (np.float64, np.complex128)
    info = jnp.finfo(np.float32 if full else dtype)
    whole = 2.0 ** min(info.nmant + 1, 17)  # up to here all whole numbers are exact

    def lost(x: np.ndarray) -> np.ndarray:
        bits = 11 if info.nmant > 16 else info.nmant // 2
        long = np.isfinite(x) & ((np.frexp(x)[0] * 2.0**bits) % 1 != 0)
        if full:
            return long & (x.astype(np.float32) == x)
        return np.isfinite(x) & np.where(np.abs(x) < whole, (x * 64) % 1 != 0, long)

    with np.errstate(invalid="ignore", over="ignore", under="ignore"):
        mask = lost(wide.real) | lost(wide.imag)
    if full and not mask.any() and np.ndim(value) == 0 and np.isrealobj(value) and np.isfinite(value):
        digits, exponent = f"{Decimal(repr(float(value))).normalize():e}".lower().split("e")
        digits = digits.strip("-").replace(".", "")
        if 7 <= len(digits) <= 14 and not re.search("000|999", digits):
            unit = 10.0 ** (int(exponent) - len(digits) + 1) / abs(float(value))
            return LostDigits(np.array(True), unit, f"of {len(digits)} digits")
    return LostDigits(mask, float(info.eps), f"in {info.dtype}")
