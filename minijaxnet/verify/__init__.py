"""Verify: is this gradient right?"""

from minijaxnet.verify.check import check_grad
from minijaxnet.verify.report import GradReport, LeafReport, Verdict

__all__ = ["GradReport", "LeafReport", "Verdict", "check_grad"]
