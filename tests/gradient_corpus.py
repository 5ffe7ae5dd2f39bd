"""Right and wrong gradients by hand, on which a gradient checker is judged.

No false alarm on ``RIGHT``, no miss on ``WRONG``, the leaf (and element) named, the slip explained, in every dtype.
``SURROGATES`` are wrong on purpose; in ``AUTODIFF_SUSPECT`` the rule is right and autodiff is not: mostly NaN.
``BLIND`` is wrong by less than rounding leaves of the truth.
"""

import gradient_corpus_right_math
import gradient_corpus_right_networks
import gradient_corpus_right_numbers
import gradient_corpus_vjp_right
import gradient_corpus_vjp_wrong
import gradient_corpus_wrong_content
import gradient_corpus_wrong_shape
from gradient_corpus_kit import DTYPES, KINDS, WORKING, GradCase, Slip, Surrogate, VjpCase

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
    *gradient_corpus_right_math.RIGHT,
    *gradient_corpus_right_networks.RIGHT,
    *gradient_corpus_right_numbers.RIGHT,
    *gradient_corpus_vjp_right.RIGHT,
]
WRONG: list[GradCase | VjpCase] = [
    *gradient_corpus_wrong_shape.WRONG,
    *gradient_corpus_wrong_content.WRONG,
    *gradient_corpus_vjp_wrong.WRONG,
]
SURROGATES: list[Surrogate] = gradient_corpus_vjp_wrong.SURROGATES
AUTODIFF_SUSPECT: list[GradCase] = gradient_corpus_right_numbers.AUTODIFF_SUSPECT
BLIND: list[GradCase] = gradient_corpus_wrong_content.BLIND
