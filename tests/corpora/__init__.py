"""Right and wrong gradients by hand, on which a gradient checker is judged.

No false alarm on ``RIGHT``, no miss on ``WRONG``, the leaf (and element) named, the slip explained, in every dtype.
``SURROGATES`` are wrong on purpose; in ``AUTODIFF_SUSPECT`` the rule is right and autodiff is not: mostly NaN.
``BLIND`` is wrong by less than rounding leaves of the truth.
"""

from corpora import right_math, right_networks, right_numbers, vjp_right, vjp_wrong, wrong_content, wrong_shape
from corpora.kit import DTYPES, KINDS, WORKING, GradCase, Slip, Surrogate, VjpCase

__all__ = [
    "AUTODIFF_SUSPECT",
    "BLIND",
    "DTYPES",
    "KINDS",
    "RIGHT",
    "SURROGATES",
    "WORKING",
    "WRONG",
    "GradCase",
    "Slip",
    "Surrogate",
    "VjpCase",
]

RIGHT: list[GradCase | VjpCase] = [
    *right_math.RIGHT,
    *right_networks.RIGHT,
    *right_numbers.RIGHT,
    *vjp_right.RIGHT,
]
WRONG: list[GradCase | VjpCase] = [
    *wrong_shape.WRONG,
    *wrong_content.WRONG,
    *vjp_wrong.WRONG,
]
SURROGATES: list[Surrogate] = vjp_wrong.SURROGATES
AUTODIFF_SUSPECT: list[GradCase] = right_numbers.AUTODIFF_SUSPECT
BLIND: list[GradCase] = wrong_content.BLIND
