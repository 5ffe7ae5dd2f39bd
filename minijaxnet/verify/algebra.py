"""Are two rules the same function? Element by element in float64, kinks and errors of autodiff being allowed for."""

from collections.abc import Sequence

import numpy as np

from minijaxnet.verify.compared import Compared, compare
from minijaxnet.verify.estimates import typical_sizes
from minijaxnet.verify.evaluation import Evaluation
from minijaxnet.verify.kinks import excused_at_kinks
from minijaxnet.verify.report import Verdict, listed
from minijaxnet.verify.rounding import Rounding, enlarged_tolerances, tolerances
from minijaxnet.verify.witness import decided, plainly_wrong

# A difference of so large a part of an element, which counts for so much of all leaves, is not passed over in silence.
_MUCH, _COUNTS = 0.1, 0.05


def compare_all(at: Evaluation) -> list[Compared]:
    """All results of the two rules, values first, within the tolerances of an evaluation."""
    names = [*["value"] * at.problem.n_values, *at.problem.names]
    return [compare(*each) for each in zip(names, at.hand, at.reference, at.tolerances, strict=True)]


def algebra(at: Evaluation, seen: Rounding) -> tuple[Evaluation, list[Compared]]:
    """The results compared, values first; and the evaluation with the tolerances that this took.

    What differs by more than the rounding seen nearby is held against finite differences. Where they side with autodiff
    plainly, and there is no kink, the rule is wrong. Otherwise every rounding is enlarged, and both sides of kinks are
    looked at.
    """
    at = at._replace(tolerances=tolerances(at, seen))
    results = compare_all(at)
    first = at.problem.n_values
    if any(result.wrong.any() for result in results) and not np.isfinite(at.value(at.differentiated())):
        # Where the function itself overflows, so does what autodiff makes of it.
        results = [r._replace(wrong=np.zeros_like(r.wrong), undecided=r.undecided | r.wrong) for r in results]
    doubtful = [i for i, result in enumerate(results) if result.wrong.any()]
    if doubtful and not all(i >= first and plainly_wrong(at, i - first, results[i]) for i in doubtful):
        at = at._replace(tolerances=enlarged_tolerances(at, seen))
        results = compare_all(at)
        if any(result.wrong.any() for result in results):
            results = excused_at_kinks(at, results)
    return at, [*results[:first], *_hidden(at, seen, decided(at, results[first:]))]


def _hidden(at: Evaluation, seen: Rounding, results: Sequence[Compared]) -> list[Compared]:
    """What passes only because rounding may do much: the difference is as large as the gradient, and counts for much.

    A gradient counts by what it does to the objective when its argument moves by its own size, beside the objective.
    """
    first, sizes = at.problem.n_values, [typical_sizes(x) for x in at.differentiated()]
    plain = tolerances(at, seen._replace(narrow=[np.zeros_like(x) for x in seen.narrow]))[first:]
    pulls = [np.maximum(np.abs(r.hand), np.abs(r.reference)) * size for r, size in zip(results, sizes, strict=True)]
    most = max(float(np.max(pull, initial=0.0, where=np.isfinite(pull))) for pull in pulls)
    most = max(most, np.nan_to_num(abs(at.value(at.differentiated())), posinf=0.0))
    share = min(_COUNTS, max([1e-9, *(64 * unit for unit in seen.narrow_kinds.values())]))
    found = []
    for result, strict, pull, size in zip(results, plain, pulls, sizes, strict=True):
        much = (result.errors > strict) & (result.errors * size > _MUCH * pull) & (result.errors * size > share * most)
        found.append(result.hiding(much & ~result.wrong & ~result.undecided & ~result.excused))
    return found


def verdict(at: Evaluation, seen: Rounding, compared: Sequence[Compared]) -> Verdict:
    """What the gradients, compared, amount to."""
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
        notes.append(f"constants arrive rounded ({what}): what their last digit does is allowed for, and goes unseen")
    return Verdict("pass", "; ".join(["equal to rounding in float64, every element of every leaf", *notes]))
