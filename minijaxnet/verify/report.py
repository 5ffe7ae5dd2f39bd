"""What a gradient check found: verdicts, and the figures of each leaf they rest on."""

import math
import re
import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, NoReturn

from minijaxnet.tables import figure, html_of, text_table

_COLUMNS = 100


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
    """How one leaf of the gradient compares; values are float64.

    Attributes:
        path: of the leaf, as ``jax.tree_util.keystr`` writes it.
        shape: of the leaf.
        error: the absolute difference between hand rule and autodiff, at the element that is worst for its tolerance.
        tolerance: what rounding can explain there.
        blind: the largest tolerance in the leaf: an error below it may go unseen.
        index: of that element.
        hand: its value by the hand rule.
        reference: its value by autodiff.
        finite_difference: its value by finite differences; None unless it was asked for.
        ulps: the error in units of the last place of the working dtype.
        share_wrong: the share of elements beyond their tolerance.
        precision_ratio: the hand rule's rounding error in the working dtype over autodiff's own; below 1 it is the
            more precise of the two. None where it was not measured.
        note: a remark on the comparison, such as a convention at a kink.
    """

    path: str
    shape: tuple[int, ...]
    error: float
    tolerance: float
    blind: float
    index: tuple[int, ...]
    hand: float
    reference: float
    finite_difference: float | None = None
    ulps: float = 0.0
    share_wrong: float = 0.0
    precision_ratio: float | None = None
    note: str = ""

    @property
    def ok(self) -> bool:
        """Whether no element is beyond its tolerance."""
        return self.share_wrong == 0


class GradReport:
    """The result of a check: print it, or ask it for ``.ok``.

    Attributes:
        verdicts: ``{question: Verdict}``.
        leaves: ``{path: LeafReport}``.
        hints: sentences that say how a wrong gradient is wrong.
    """

    def __init__(
        self,
        verdicts: dict[str, Verdict],
        leaves: dict[str, LeafReport],
        hints: tuple[str, ...] = (),
        subject: str = "gradient by hand against autodiff",
    ):
        """Keep what was found."""
        self.verdicts, self.leaves, self.hints, self.subject = verdicts, leaves, hints, subject

    @property
    def ok(self) -> bool:
        """False if a verdict is "fail", or if the algebra could not be checked."""
        states = {name: verdict.state for name, verdict in self.verdicts.items()}
        return "fail" not in states.values() and states.get("algebra") == "pass"

    @property
    def headline(self) -> str:
        """ "right", "NOT RIGHT", or "unchecked" where nothing failed and the algebra could not be checked."""
        failed = any(verdict.state == "fail" for verdict in self.verdicts.values())
        return "right" if self.ok else "NOT RIGHT" if failed else "unchecked"

    @property
    def worst(self) -> LeafReport | None:
        """The leaf whose error is largest against its tolerance; None if no leaf could be compared."""
        return max(self.leaves.values(), key=_excess, default=None)

    def to_dict(self) -> dict[str, Any]:
        """The whole report in JSON's own kinds; what is not finite becomes None."""
        return {
            "ok": self.ok,
            "verdicts": {name: verdict._asdict() for name, verdict in self.verdicts.items()},
            "leaves": {path: _plain(asdict(leaf)) for path, leaf in self.leaves.items()},
            "hints": list(self.hints),
        }

    def __bool__(self) -> NoReturn:
        """Refuse: ``assert check_grad(...)`` would always pass."""
        raise TypeError("a GradReport is neither true nor false: use its .ok")

    def __str__(self) -> str:
        """The verdicts, a table of the leaves, the worst element and the hints, in at most 100 columns."""
        lines = [f"{self.subject}: {self.headline}"]
        for name, (state, reason) in self.verdicts.items():
            lines += _wrapped(f"  {name:<12} {state:<10}", reason)
        lines += ["", self._table()] if self.leaves else []
        worst = self.worst
        if worst is not None and not worst.ok:
            place = f"{worst.path}{list(worst.index) if worst.index else ''}"
            how = f"by hand {worst.hand:.12g}, by autodiff {worst.reference:.12g}"
            if worst.finite_difference is not None:
                how += f", by finite differences {worst.finite_difference:.6g}"
            share = f"{100 * worst.share_wrong:.3g} % of the elements of this leaf are wrong"
            lines += ["", *_wrapped("worst: ", f"{place}: {how}; off by {worst.ulps:.3g} ulps; {share}")]
        for path, leaf in self.leaves.items():
            lines += _wrapped("note:  ", f"{path}: {leaf.note}") if leaf.note else []
        for hint in self.hints:
            lines += _wrapped("hint:  ", hint)
        return "\n".join(lines)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return html_of(self)

    def cells(self) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
        """The table of the leaves: its columns, and a row a leaf."""
        rows = [
            (
                path,
                "x".join(map(str, leaf.shape)) or "scalar",
                f"{leaf.error:.1e}",
                f"{leaf.blind:.1e}",
                "-" if leaf.precision_ratio is None else figure(leaf.precision_ratio, 3),
                "pass" if leaf.ok else "FAIL",
            )
            for path, leaf in self.leaves.items()
        ]
        return ("leaf", "shape", "error", "blind below", "rounding / autodiff's", "algebra"), rows

    def _table(self) -> str:
        (_, *columns), cells = self.cells()
        room = _COLUMNS - len(text_table(("", *columns), [("", *row) for _, *row in cells]).splitlines()[1])
        rows = []
        for path, *row in cells:
            first, *rest = textwrap.wrap(path, max(room, 12), break_on_hyphens=False)
            rows += [(first, *row), *((part, *[""] * len(row)) for part in rest)]
        return text_table(("leaf", *columns), rows)


class GradientMismatch(AssertionError):
    """A gradient that is not right; ``report`` has the whole of what was found, and the text shows it."""

    def __init__(self, report: GradReport):
        """Keep the report."""
        super().__init__(f"\n{report}")
        self.report = report


def misbuilt(why: str) -> GradReport:
    """The report on a gradient that could not stand where it should."""
    unchecked = Verdict("unchecked", "the structure differs")
    verdicts = {"structure": Verdict("fail", why), "algebra": unchecked, "precision": unchecked}
    shapes = re.findall(r"\[([\d,]*)\]; expected \w+\[([\d,]*)\]", why)
    hints = []
    for got, expected in ((tuple(filter(None, x.split(","))) for x in pair) for pair in shapes):
        if got != expected and got[::-1] == expected:
            hints.append("the shape is that of the transpose: transposed")
        elif len(got) > len(expected) or (len(got) == len(expected) and "1" in expected):
            hints.append("there is an axis too many: sum over what was broadcast")
    return GradReport(verdicts, {}, tuple(hints))


def raise_unless_ok(report: GradReport) -> None:
    """Raise ``GradientMismatch`` for a report that is not ok."""
    if not report.ok:
        raise GradientMismatch(report)


def listed(names: Sequence[str]) -> str:
    """The first few of several names.

    >>> listed(["a", "b", "c", "d"])
    'a, b, c and 1 more'
    """
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _wrapped(head: str, text: str) -> list[str]:
    return textwrap.wrap(head + text, _COLUMNS, subsequent_indent=" " * len(head), break_on_hyphens=False)


def _excess(leaf: LeafReport) -> float:
    """Error over tolerance, where neither need be a finite number above zero."""
    if leaf.ok:
        return 0.0
    return leaf.error / leaf.tolerance if 0 < leaf.tolerance < math.inf else math.inf


def _plain(leaf: dict[str, Any]) -> dict[str, Any]:
    return {key: None if isinstance(x, float) and not math.isfinite(x) else x for key, x in leaf.items()}
