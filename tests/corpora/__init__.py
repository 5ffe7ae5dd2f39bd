"""Right and wrong gradients by hand, on which a gradient checker is judged.

No false alarm on ``RIGHT``, no miss on ``WRONG``, the leaf (and element) named, the slip explained, in every dtype.
``SURROGATES`` are wrong on purpose; in ``AUTODIFF_SUSPECT`` the rule is right and autodiff is not: mostly NaN.
``BLIND`` is wrong by less than rounding leaves of the truth.
"""

from corpora import (
    arrays,
    elementwise,
    linear,
    losses,
    magnitudes,
    networks,
    rules_elementwise,
    rules_forms,
    rules_layers,
    sequences,
)
from corpora.kit import DTYPES, KINDS, WORKING, GradCase, Slip, Surrogate, VjpCase
from corpora.rules_forms import SURROGATES
from corpora.suspect import AUTODIFF_SUSPECT, BLIND

__all__ = [
    "AUTODIFF_SUSPECT",
    "BLIND",
    "DTYPES",
    "KINDS",
    "RIGHT",
    "SUBJECTS",
    "SURROGATES",
    "WORKING",
    "WRONG",
    "GradCase",
    "Slip",
    "Surrogate",
    "VjpCase",
]

_MODULES = [
    linear,
    elementwise,
    losses,
    networks,
    sequences,
    arrays,
    magnitudes,
    rules_elementwise,
    rules_layers,
    rules_forms,
]
SUBJECTS = {module.__name__.removeprefix("corpora."): module.SUBJECT for module in _MODULES}
RIGHT: list[GradCase | VjpCase] = [case for subject in SUBJECTS.values() for case in subject.right_ones]
WRONG: list[GradCase | VjpCase] = [case for subject in SUBJECTS.values() for case in subject.wrong_ones]
