"""Verify: is this gradient right?"""

from minijaxnet.verify.check import assert_grad, check_grad, grad_checker
from minijaxnet.verify.check_vjp import assert_vjp, check_vjp, vjp_checker
from minijaxnet.verify.report import GradientMismatch, GradReport, LeafReport, Verdict

__all__ = [
    "GradReport",
    "GradientMismatch",
    "LeafReport",
    "Verdict",
    "assert_grad",
    "assert_vjp",
    "check_grad",
    "check_vjp",
    "grad_checker",
    "vjp_checker",
]
