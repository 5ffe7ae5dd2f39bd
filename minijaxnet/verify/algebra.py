"""Are two rules the same function? Element by element in float64; kinks and errors of autodiff are allowed for."""

from collections.abc import Sequence

import numpy as np

from minijaxnet.verify.comparison import Comparison, compare_all
from minijaxnet.verify.estimates import typical_sizes
from minijaxnet.verify.evaluation import Evaluation
from minijaxnet.verify.kinks import excused_at_kinks
from minijaxnet.verify.oracle import clearly_wrong, settled
from minijaxnet.verify.report import Verdict, listed
from minijaxnet.verify.rounding import Rounding, enlarged_tolerances, tolerances
from minijaxnet.verify.widening import largest

# A difference of so large a part of an element, with so large a part of the whole effect, has to be reported.
_LARGE, _EFFECT = 0.1, 0.05


def algebra(at: Evaluation, seen: Rounding) -> tuple[Evaluation, list[Comparison]]:
    """The results compared, values first; and the evaluation with the tolerances that this took.

    What differs by more than the rounding seen nearby is compared with finite differences. Where they clearly confirm
    autodiff, and there is no kink, the rule is wrong. Otherwise every rounding is enlarged, and both sides of kinks are
    looked at.
    """
    n = at.problem.n_values
    at = at._replace(tolerances=tolerances(at, seen))
    results = compare_all(at, at.names)
    if any(result.wrong.any() for result in results) and not np.isfinite(at.value(at.params())):
        # Where the function itself overflows, so does what autodiff makes of it.
        results = [result.without_wrong() for result in results]
    doubtful = [i for i, result in enumerate(results) if result.wrong.any()]
    if doubtful and not all(i >= n and clearly_wrong(at, i - n, results[i]) for i in doubtful):
        at, results = with_enlarged_roundings(at, seen, at.names)
    return at, [*results[:n], *_hidden(at, seen, settled(at, results[n:]))]


def with_enlarged_roundings(at: Evaluation, seen: Rounding, names: list[str]) -> tuple[Evaluation, list[Comparison]]:
    """The results compared within the tolerances of enlarged roundings, conventions at kinks excused."""
    at = at._replace(tolerances=enlarged_tolerances(at, seen))
    results = compare_all(at, names)
    wrong = any(result.wrong.any() for result in results)
    return at, excused_at_kinks(at, results) if wrong else results


def _hidden(at: Evaluation, seen: Rounding, results: Sequence[Comparison]) -> list[Comparison]:
    """What passes only because rounding may do much: the difference is as large as the gradient, and has an effect.

    The effect of a gradient is what it does to the objective when its argument moves by its own size.
    """
    n, sizes = at.problem.n_values, list(map(typical_sizes, at.params()))
    strict = tolerances(at, seen._replace(narrow=[np.zeros_like(x) for x in seen.narrow]))[n:]
    effects = [np.maximum(np.abs(r.hand), np.abs(r.reference)) * size for r, size in zip(results, sizes, strict=True)]
    most = max(*map(largest, effects), np.nan_to_num(abs(at.value(at.params())), posinf=0.0))
    share = min(_EFFECT, max([1e-9, *(64 * unit for unit in seen.narrow_kinds.values())]))
    found = []
    for result, tolerance, effect, size in zip(results, strict, effects, sizes, strict=True):
        change = result.errors * size
        large = (result.errors > tolerance) & (change > _LARGE * effect) & (change > share * most)
        found.append(result.hiding(large & ~result.wrong & ~result.undecided & ~result.excused))
    return found


def verdict(at: Evaluation, seen: Rounding, compared: Sequence[Comparison]) -> Verdict:
    """The verdict on the gradients compared."""
    if wrong := [c.name for c in compared if c.wrong.any()]:
        return Verdict("fail", f"wrong beyond rounding in {listed(wrong)}")
    if undecided := [c.name for c in compared if c.undecided.any()]:
        why = "autodiff suspect: the function or its gradient is not finite there, and finite differences do not settle"
        return Verdict("unchecked", f"{why}: {listed(undecided)}")
    if hidden := [c.name for c in compared if c.hidden.any()]:
        why = "rounding errors may be as large as the difference of the two"
        return Verdict("unchecked", f"{why}, and that is as large as the gradient: {listed(hidden)}")
    notes = list(at.compiled.notes)
    if any((narrow > apart).any() for narrow, apart in zip(seen.narrow, seen.apart, strict=True)):
        what = listed(list(seen.narrow_kinds))
        notes.append(f"constants arrive rounded ({what}): an error of the size of their last digit goes unseen")
    return Verdict("pass", "; ".join(["equal to rounding in float64, every element of every leaf", *notes]))
