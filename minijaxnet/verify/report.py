"""What a gradient check found: verdicts, and the numbers of each leaf that they rest on."""

import math
import textwrap
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, NoReturn

from minijaxnet._tables import html_result, significant, text_table

_COLUMNS = 100


class Subject(NamedTuple):
    """What was checked, and by what."""

    checked: str
    reference: str

    def __str__(self) -> str:
        """In one phrase."""
        return f"{self.checked} against {self.reference}"


GRADIENT_BY_HAND = Subject("gradient by hand", "autodiff")


class Verdict(NamedTuple):
    """The answer to one question.

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
        finite_difference: its value by finite differences; None where it was not computed.
        ulps: the error in units in the last place of the working dtype; None where the reference is not finite, or tiny
            against its leaf.
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
    ulps: float | None = 0.0
    share_wrong: float = 0.0
    precision_ratio: float | None = None
    note: str = ""

    @property
    def ok(self) -> bool:
        """Whether no element is beyond its tolerance."""
        return self.share_wrong == 0

    @property
    def excess(self) -> float:
        """Error over tolerance; 0 for a leaf that is right, infinite where the tolerance is 0 or infinite."""
        if self.ok:
            return 0.0
        return self.error / self.tolerance if 0 < self.tolerance < math.inf else math.inf

    @property
    def place(self) -> str:
        """The worst element by its name."""
        return f"{self.path}{list(self.index) if self.index else ''}"


class GradReport:
    """The result of a check: print it, or ask it for ``.ok``.

    Attributes:
        verdicts: ``{question: Verdict}``.
        leaves: ``{path: LeafReport}``.
        hints: sentences that say how a wrong gradient is wrong.
        subject: what was checked, and by what.
    """

    def __init__(
        self,
        verdicts: dict[str, Verdict],
        leaves: dict[str, LeafReport],
        hints: Sequence[str] = (),
        subject: Subject = GRADIENT_BY_HAND,
    ):
        """Keep what was found."""
        self.verdicts, self.leaves, self.subject = verdicts, leaves, subject
        self.hints = _grouped(hints, leaves)

    @property
    def ok(self) -> bool:
        """False if a verdict is "fail", or if the algebra could not be checked."""
        states = {name: verdict.state for name, verdict in self.verdicts.items()}
        return "fail" not in states.values() and states.get("algebra") == "pass"

    @property
    def headline(self) -> str:
        """ "right", "NOT RIGHT", or "unchecked" where nothing failed but the algebra could not be checked."""
        return "right" if self.ok else "NOT RIGHT" if self._reasons("fail") else "unchecked"

    def _reasons(self, state: str) -> list[str]:
        return [f"{name}: {verdict.reason}" for name, verdict in self.verdicts.items() if verdict.state == state]

    @property
    def worst(self) -> LeafReport | None:
        """The leaf whose error is largest against its tolerance; None if no leaf could be compared."""
        return max(self.leaves.values(), key=lambda leaf: leaf.excess, default=None)

    @property
    def summary(self) -> str:
        """One line: the first wrong leaf that a hint names, or else the worst, with its values; and the hint."""
        wrong = {path: leaf for path, leaf in self.leaves.items() if not leaf.ok}
        named = dict(_split(hint, wrong) for hint in self.hints)
        leaf = next((wrong[path] for path in named if path), self.worst)
        if leaf is None or leaf.ok:
            reasons = self._reasons("fail") or self._reasons("unchecked") or ["nothing is wrong"]
            return ": ".join((reasons[0], *self.hints[:1]))
        hint = named.get(leaf.path) or next(iter(self.hints), "")
        return ": ".join(filter(None, (leaf.place, values(leaf.hand, leaf.reference, self.subject), hint)))

    def to_dict(self) -> dict[str, Any]:
        """The whole report in JSON's own kinds; what is not finite becomes None."""
        return {
            "ok": self.ok,
            "headline": self.headline,
            "subject": self.subject._asdict(),
            "verdicts": {name: verdict._asdict() for name, verdict in self.verdicts.items()},
            "leaves": {path: _finite_only(asdict(leaf)) for path, leaf in self.leaves.items()},
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
        if (worst := self.worst) is not None and not worst.ok:
            parts = [f"{worst.place}: {values(worst.hand, worst.reference, self.subject, digits=12)}"]
            if worst.finite_difference is not None:
                parts[0] += f", {worst.finite_difference:.6g} by finite differences"
            parts += [] if worst.ulps is None else [f"off by {worst.ulps:.3g} ulps"]
            parts += [f"{100 * worst.share_wrong:.3g} % of the elements of this leaf are wrong"]
            lines += ["", *_wrapped("worst: ", "; ".join(parts))]
        for path, leaf in self.leaves.items():
            lines += _wrapped("note:  ", f"{path}: {leaf.note}") if leaf.note else []
        for hint in self.hints:
            lines += _wrapped("hint:  ", hint)
        return "\n".join(lines)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        verdicts = [(name, state, reason) for name, (state, reason) in self.verdicts.items()]
        title = f"{self.subject}: {self.headline}"
        return html_result(title, (("verdict", "state", "reason"), verdicts), self.cells(), remarks=self.hints)

    def cells(self) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
        """The table of the leaves: its columns, and a row a leaf; without rounding errors where none was measured."""
        measured = any(leaf.precision_ratio is not None for leaf in self.leaves.values())
        ratio = ("rounding / autodiff's",) if measured else ()
        rows = []
        for leaf in self.leaves.values():
            shape = "x".join(map(str, leaf.shape)) or "scalar"
            rounding = (
                ("-" if leaf.precision_ratio is None else significant(leaf.precision_ratio, 3),) if measured else ()
            )
            row = (leaf.path, shape, f"{leaf.error:.1e}", f"{leaf.blind:.1e}", *rounding, "pass" if leaf.ok else "FAIL")
            rows.append(row)
        return ("leaf", "shape", "error", "blind below", *ratio, "algebra"), rows

    def _table(self) -> str:
        (_, *columns), cells = self.cells()
        room = _COLUMNS - len(text_table(("", *columns), [("", *row) for _, *row in cells]).splitlines()[1])
        rows = []
        for path, *row in cells:
            first, *rest = textwrap.wrap(path, max(room, 12), break_on_hyphens=False)
            rows += [(first, *row), *((part, *[""] * len(row)) for part in rest)]
        return text_table(("leaf", *columns), rows)


class GradientMismatch(AssertionError):
    """A gradient that is not right; ``report`` is the whole report, which the text shows after a summary."""

    def __init__(self, report: GradReport):
        """Keep the report."""
        super().__init__(f"{report.summary}\n\n{report}")
        self.report = report


def raise_unless_ok(report: GradReport) -> None:
    """Raise ``GradientMismatch`` for a report that is not ok."""
    if not report.ok:
        raise GradientMismatch(report)


def misbuilt(
    difference: str, got: Sequence[Any] = (), expected: Sequence[Any] = (), subject: Subject = GRADIENT_BY_HAND
) -> GradReport:
    """The report on a gradient whose structure differs from its argument's; ``got`` and ``expected`` are leaves."""
    unchecked, hints = Verdict("unchecked", "the structure differs"), []
    for a, b in zip(got, expected, strict=False):
        mine, right = getattr(a, "shape", ()), getattr(b, "shape", ())
        if mine != right and mine[::-1] == right:
            hints.append("the shape is that of the transpose: transposed")
        elif len(mine) > len(right) or (mine != right and len(mine) == len(right) and 1 in right):
            hints.append("there is an axis too many: sum over what was broadcast")
    verdicts = {"structure": Verdict("fail", difference), "algebra": unchecked, "precision": unchecked}
    return GradReport(verdicts, {}, hints, subject)


def headline_of(report: Mapping[str, Any]) -> str:
    """The headline of what ``to_dict`` made of a report."""
    return "right" if report["ok"] else "unchecked" if report.get("headline") == "unchecked" else "NOT RIGHT"


def subject_of(report: Mapping[str, Any]) -> Subject:
    """The subject of what ``to_dict`` made of a report."""
    return Subject(**report["subject"]) if "subject" in report else GRADIENT_BY_HAND


def values(hand: float, reference: float, subject: Subject, digits: int = 6) -> str:
    """The two values of an element, and where they come from.

    >>> values(3.0, 2.0, GRADIENT_BY_HAND), values(3.0, 2.0, Subject("autodiff", "finite differences"))
    ('3 by hand, 2 by autodiff', '3 by autodiff, 2 by finite differences')
    """
    by = "autodiff" if subject.checked == "autodiff" else "hand"
    return f"{hand:.{digits}g} by {by}, {reference:.{digits}g} by {subject.reference}"


def listed(names: Sequence[str]) -> str:
    """The first few of several names.

    >>> listed(["a", "b", "c", "d"])
    'a, b, c and 1 more'
    """
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _grouped(hints: Sequence[str], leaves: Collection[str]) -> tuple[str, ...]:
    """Each hint once, with all the leaves that it is about."""
    paths_of: dict[str, list[str]] = {}
    for hint in hints:
        path, sentence = _split(hint, leaves)
        paths_of.setdefault(sentence, []).extend([path] if path else [])
    return tuple(f"{listed(paths)}: {sentence}" if paths else sentence for sentence, paths in paths_of.items())


def _split(hint: str, leaves: Collection[str]) -> tuple[str, str]:
    """The first leaf that a hint names at its beginning, "" if none, and the rest."""
    paths, _, sentence = hint.partition(": ")
    path = paths.split(", ")[0].split(" and ")[0]
    return (path, sentence) if sentence and path in leaves else ("", hint)


def _wrapped(head: str, text: str) -> list[str]:
    return textwrap.wrap(head + text, _COLUMNS, subsequent_indent=" " * len(head), break_on_hyphens=False)


def _finite_only(leaf: dict[str, Any]) -> dict[str, Any]:
    return {key: None if isinstance(x, float) and not math.isfinite(x) else x for key, x in leaf.items()}
