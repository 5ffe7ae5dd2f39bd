"""How is a wrong gradient wrong? Slips that people make, and what one change of autodiff's own program would give."""

from minijaxnet.verify.hints.convergence import not_converged
from minijaxnet.verify.hints.mutants import explained

__all__ = ["explained", "not_converged"]
