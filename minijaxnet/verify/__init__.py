"""Verify: is this gradient right?"""

from minijaxnet.verify.check import assert_grad, check_grad, check_grad_at
from minijaxnet.verify.check_vjp import assert_vjp, check_vjp
from minijaxnet.verify.report import GradientMismatch, GradReport, LeafReport, Verdict

__all__ = [
    "GradReport",
    "GradientMismatch",
    "LeafReport",
    "Verdict",
    "assert_grad",
    "assert_vjp",
    "check_grad",
    "check_grad_at",
    "check_vjp",
]
