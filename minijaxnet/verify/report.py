"""What a gradient check found: verdicts, and the figures of each leaf they rest on."""

import math
import re
import textwrap
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, NoReturn

from minijaxnet._tables import html_of, significant, text_table

_COLUMNS = 100
SUBJECT = "gradient by hand against autodiff"


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
        ulps: the error in units of the last place of the working dtype; NaN where the reference is tiny against its
            leaf, for then they say nothing.
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
        subject: str = SUBJECT,
    ):
        """Keep what was found."""
        self.verdicts, self.leaves, self.subject = verdicts, leaves, subject
        self.hints = _told_once(hints, leaves)

    @property
    def ok(self) -> bool:
        """False if a verdict is "fail", or if the algebra could not be checked."""
        states = {name: verdict.state for name, verdict in self.verdicts.items()}
        return "fail" not in states.values() and states.get("algebra") == "pass"

    @property
    def headline(self) -> str:
        """The whole in a word: right, NOT RIGHT, or unchecked where nothing failed and the algebra was not judged."""
        return "right" if self.ok else "NOT RIGHT" if self._reasons("fail") else "unchecked"

    def _reasons(self, state: str) -> list[str]:
        return [f"{name}: {reason}" for name, (its, reason) in self.verdicts.items() if its == state]

    @property
    def worst(self) -> LeafReport | None:
        """The leaf whose error is largest against its tolerance; None if no leaf could be compared."""
        return max(self.leaves.values(), key=_excess, default=None)

    @property
    def summary(self) -> str:
        """One line: the leaf that is most wrong, or the one that a hint is for, with its values; and the hint."""
        wrong = {path: leaf for path, leaf in self.leaves.items() if not leaf.ok}
        hinted = {path: rest for path, rest in map(_of_leaf, self.hints, [wrong] * len(self.hints)) if path}
        leaf = next((wrong[path] for path in hinted), self.worst)
        if leaf is None or leaf.ok:
            reasons = self._reasons("fail") or self._reasons("unchecked") or ["nothing is wrong"]
            return ": ".join((reasons[0], *self.hints[:1]))
        hint = hinted.get(leaf.path) or next(iter(self.hints), "")
        return ": ".join(filter(None, (place(leaf), values(leaf.hand, leaf.reference, self.subject), hint)))

    def to_dict(self) -> dict[str, Any]:
        """The whole report in JSON's own kinds; what is not finite becomes None."""
        return {
            "ok": self.ok,
            "headline": self.headline,
            "subject": self.subject,
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
            how = values(worst.hand, worst.reference, self.subject, digits=12)
            if worst.finite_difference is not None:
                how += f", {worst.finite_difference:.6g} by finite differences"
            parts = [
                f"{place(worst)}: {how}",
                *([f"off by {worst.ulps:.3g} ulps"] if math.isfinite(worst.ulps) else []),
            ]
            parts.append(f"{100 * worst.share_wrong:.3g} % of the elements of this leaf are wrong")
            lines += ["", *_wrapped("worst: ", "; ".join(parts))]
        for path, leaf in self.leaves.items():
            lines += _wrapped("note:  ", f"{path}: {leaf.note}") if leaf.note else []
        for hint in self.hints:
            lines += _wrapped("hint:  ", hint)
        return "\n".join(lines)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return html_of(self)

    def cells(self) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
        """The table of the leaves: its columns, and a row a leaf; without rounding errors where none was measured."""
        columns = {
            "leaf": lambda leaf: leaf.path,
            "shape": lambda leaf: "x".join(map(str, leaf.shape)) or "scalar",
            "error": lambda leaf: f"{leaf.error:.1e}",
            "blind below": lambda leaf: f"{leaf.blind:.1e}",
            "rounding / autodiff's": lambda leaf: (
                "-" if leaf.precision_ratio is None else significant(leaf.precision_ratio, 3)
            ),
            "algebra": lambda leaf: "pass" if leaf.ok else "FAIL",
        }
        if all(leaf.precision_ratio is None for leaf in self.leaves.values()):
            del columns["rounding / autodiff's"]
        return tuple(columns), [tuple(cell(leaf) for cell in columns.values()) for leaf in self.leaves.values()]

    def _table(self) -> str:
        (_, *columns), cells = self.cells()
        room = _COLUMNS - len(text_table(("", *columns), [("", *row) for _, *row in cells]).splitlines()[1])
        rows = []
        for path, *row in cells:
            first, *rest = textwrap.wrap(path, max(room, 12), break_on_hyphens=False)
            rows += [(first, *row), *((part, *[""] * len(row)) for part in rest)]
        return text_table(("leaf", *columns), rows)


class GradientMismatch(AssertionError):
    """A gradient that is not right; ``report`` has the whole of what was found, and the text shows it.

    Its first line says which leaf is wrong, how, and the first hint.
    """

    def __init__(self, report: GradReport):
        """Keep the report."""
        super().__init__(f"{report.summary}\n\n{report}")
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


def always(report: GradReport) -> Callable[[tuple[Any, ...]], GradReport]:
    """A check that has its report before it is called."""
    return lambda args: report


def raise_unless_ok(report: GradReport) -> None:
    """Raise ``GradientMismatch`` for a report that is not ok."""
    if not report.ok:
        raise GradientMismatch(report)


def headline_of(told: Mapping[str, Any]) -> str:
    """The headline of what ``to_dict`` made of a report."""
    return "right" if told["ok"] else "unchecked" if told.get("headline") == "unchecked" else "NOT RIGHT"


def subject_of(told: Mapping[str, Any]) -> tuple[str, str]:
    """What was judged in what ``to_dict`` made of a report, and by what."""
    judged, _, judge = told.get("subject", SUBJECT).partition(" against ")
    return judged, judge


def place(leaf: LeafReport) -> str:
    """The element of a leaf that is worst."""
    return f"{leaf.path}{list(leaf.index) if leaf.index else ''}"


def values(hand: float, reference: float, subject: str, digits: int = 6) -> str:
    """The two values of an element, and what they are by.

    >>> values(3.0, 2.0, "gradient by hand against autodiff"), values(3.0, 2.0, "autodiff against finite differences")
    ('3 by hand, 2 by autodiff', '3 by autodiff, 2 by finite differences')
    """
    judged, _, judge = subject.partition(" against ")
    by = "autodiff" if judged == "autodiff" else "hand"
    return f"{hand:.{digits}g} by {by}, {reference:.{digits}g} by {judge or 'autodiff'}"


def listed(names: Sequence[str]) -> str:
    """The first few of several names.

    >>> listed(["a", "b", "c", "d"])
    'a, b, c and 1 more'
    """
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _told_once(hints: Sequence[str], leaves: Collection[str]) -> tuple[str, ...]:
    """Hints, each with all the leaves that it holds for."""
    named: dict[str, list[str]] = {}
    for path, sentence in map(_of_leaf, hints, [leaves] * len(hints)):
        named.setdefault(sentence, []).extend([path] if path else [])
    return tuple(f"{listed(paths)}: {sentence}" if paths else sentence for sentence, paths in named.items())


def _of_leaf(hint: str, leaves: Collection[str]) -> tuple[str, str]:
    """The leaf that a hint begins with, "" if with none, and the rest; of several leaves the first."""
    paths, _, sentence = hint.partition(": ")
    path = paths.split(", ")[0].split(" and ")[0]
    return (path, sentence) if sentence and path in leaves else ("", hint)


def _wrapped(head: str, text: str) -> list[str]:
    return textwrap.wrap(head + text, _COLUMNS, subsequent_indent=" " * len(head), break_on_hyphens=False)


def _excess(leaf: LeafReport) -> float:
    """Error over tolerance, where neither need be a finite number above zero."""
    if leaf.ok:
        return 0.0
    return leaf.error / leaf.tolerance if 0 < leaf.tolerance < math.inf else math.inf


def _plain(leaf: dict[str, Any]) -> dict[str, Any]:
    return {key: None if isinstance(x, float) and not math.isfinite(x) else x for key, x in leaf.items()}
