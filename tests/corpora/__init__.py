"""Right and wrong gradients by hand, on which a gradient checker is tested.

No false alarm on ``RIGHT``, no miss on ``WRONG``, the leaf (and element) named, the slip explained, in every dtype.
``SURROGATES`` are wrong on purpose; in ``AUTODIFF_SUSPECT`` the rule is right and autodiff is not: mostly NaN.
``BLIND`` is wrong by less than rounding leaves of the truth. ``CODE`` is code as people write it, by kind.
"""

from corpora import (
    arrays,
    casts,
    complex_numbers,
    forms,
    functions,
    host,
    kinks,
    losses,
    magnitudes,
    networks,
    rules,
    signatures,
    slips,
    unreferenced,
)
from corpora.kit import DTYPES, KINDS, WORKING, GradCase, Slip, Surrogate, VjpCase
from corpora.signatures import SURROGATES

__all__ = [
    "AUTODIFF_SUSPECT",
    "BLIND",
    "CODE",
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

SUBJECTS = {
    "functions": functions.CASES,
    "magnitudes": magnitudes.CASES,
    "arrays": arrays.CASES,
    "losses": losses.CASES,
    "networks": networks.CASES,
    "rules": rules.CASES,
    "signatures": signatures.CASES,
}
RIGHT: list[GradCase | VjpCase] = [case for subject in SUBJECTS.values() for case in subject.right]
WRONG: list[GradCase | VjpCase] = [case for subject in SUBJECTS.values() for case in subject.wrong]
AUTODIFF_SUSPECT: list[GradCase] = magnitudes.SUSPECT.right
BLIND: list[GradCase] = magnitudes.BLIND.wrong
CODE = {
    "casts": casts.CASTS,
    "closed over": casts.CLOSURES,
    "computed beforehand": casts.BEFOREHAND,
    "complex": complex_numbers.COMPLEX,
    "host callbacks": host.CALLBACKS,
    "kernels interpreted": host.INTERPRETED,
    "kernels as they are": host.AS_THEY_ARE,
    "autodiff not finite": kinks.NOT_FINITE,
    "kinks": kinks.KINKS,
    "surrogates": kinks.SURROGATES,
    "static arguments": forms.STATIC,
    "linear calls": forms.LINEAR,
    "primitives of the new engine": forms.PRIMITIVES,
    "no reference": unreferenced.UNREFERENCED,
    "slips": slips.SLIPS,
}
