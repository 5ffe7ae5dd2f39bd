"""What a gradient check found: verdicts, and the figures of each leaf they rest on."""

from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, NoReturn

from minijaxnet.tables import figure, text_table


class Verdict(NamedTuple):
    """One question answered.

    Attributes:
        state: "pass", "fail" or "unchecked".
        reason: why, in a sentence.
    """

    state: str
    reason: str


@dataclass(frozen=True)
class LeafReport:
    """How one leaf of the gradient compares.

    Attributes:
        path: of the leaf, as ``jax.tree_util.keystr`` writes it.
        shape: of the leaf.
        error: the largest absolute difference between hand rule and autodiff, both in float64.
        tolerance: the largest that rounding can explain; an error below it cannot be seen.
        index: of the element that is worst against its tolerance.
        hand: its value by the hand rule, in float64.
        reference: its value by autodiff, in float64.
        share_wrong: the share of elements beyond the tolerance.
        precision_ratio: the hand rule's rounding error in the working dtype over autodiff's own; below 1 it is the
            more precise of the two. None where it was not measured.
    """

    path: str
    shape: tuple[int, ...]
    error: float
    tolerance: float
    index: tuple[int, ...]
    hand: float
    reference: float
    share_wrong: float
    precision_ratio: float | None


class GradReport:
    """The result of ``check_grad``: print it, or ask it for ``.ok``.

    Attributes:
        verdicts: ``{question: Verdict}``.
        leaves: ``{path: LeafReport}``.
    """

    def __init__(self, verdicts: dict[str, Verdict], leaves: dict[str, LeafReport]):
        """Keep what was found."""
        self.verdicts, self.leaves = verdicts, leaves

    @property
    def ok(self) -> bool:
        """False if a verdict is "fail", or if the algebra could not be checked."""
        states = {name: verdict.state for name, verdict in self.verdicts.items()}
        return "fail" not in states.values() and states.get("algebra") == "pass"

    @property
    def worst(self) -> LeafReport | None:
        """The leaf whose error is largest against its tolerance; None if no leaf could be compared."""
        return max(self.leaves.values(), key=_excess, default=None)

    def to_dict(self) -> dict[str, Any]:
        """The whole report in JSON's own kinds."""
        return {
            "ok": self.ok,
            "verdicts": {name: verdict._asdict() for name, verdict in self.verdicts.items()},
            "leaves": {path: asdict(leaf) for path, leaf in self.leaves.items()},
        }

    def __bool__(self) -> NoReturn:
        """Refuse: ``assert check_grad(...)`` would always pass."""
        raise TypeError("a GradReport is neither true nor false: use its .ok")

    def __str__(self) -> str:
        """The verdicts, then a table of the leaves, in at most 100 columns."""
        lines = [f"gradient by hand against autodiff: {'right' if self.ok else 'NOT RIGHT'}"]
        lines += [f"  {name:<10} {verdict.state:<9} {verdict.reason}" for name, verdict in self.verdicts.items()]
        rows = [
            (
                path,
                "x".join(map(str, leaf.shape)) or "scalar",
                f"{leaf.error:.1e}",
                f"{leaf.tolerance:.1e}",
                "-" if leaf.precision_ratio is None else figure(leaf.precision_ratio, 3),
                "pass" if leaf.error <= leaf.tolerance else "FAIL",
            )
            for path, leaf in self.leaves.items()
        ]
        if rows:
            columns = ("leaf", "shape", "error", "blind below", "rounding / autodiff's", "algebra")
            lines += ["", text_table(columns, rows)]
        worst = self.worst
        if worst is not None and not worst.error <= worst.tolerance:
            place = f"{worst.path}{list(worst.index) if worst.index else ''}"
            lines += [
                "",
                f"worst: {place}: by hand {worst.hand:.17g}, by autodiff {worst.reference:.17g};",
                f"       {100 * worst.share_wrong:.3g} % of the elements of this leaf are wrong",
            ]
        return "\n".join(lines)

    __repr__ = __str__


def _excess(leaf: LeafReport) -> float:
    """Error over tolerance, where neither need be a finite number above zero."""
    if leaf.error <= leaf.tolerance:
        return leaf.error / leaf.tolerance if leaf.tolerance else 0.0
    return leaf.error / leaf.tolerance if 0 < leaf.tolerance < float("inf") else float("inf")
