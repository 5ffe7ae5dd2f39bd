"""How results show themselves in a notebook: a verdict, a table and a picture, as HTML.

The rooms below know nothing of pictures: their ``_repr_html_`` asks ``tables.html_of``, which is told here what to make
of each kind of result. Without this module they show as they print.
"""

import html
import zlib
from collections.abc import Callable, Sequence
from typing import Any

from minijaxnet._tables import html_of, html_table, significant
from minijaxnet.bench import StepComparison, StepTiming
from minijaxnet.history import DIVERGED, FLAT, STOPPED_EARLY
from minijaxnet.report.curves import draw_curves, draw_trace
from minijaxnet.report.gradients import draw_errors, verdict_line, worst_element
from minijaxnet.report.rates import draw_sweep
from minijaxnet.report.style import NoMatplotlib, figure, styled, to_svg
from minijaxnet.report.timing import draw_forest
from minijaxnet.run import FitResult
from minijaxnet.sweeps import SweepResult
from minijaxnet.sweeps.result import shown
from minijaxnet.verify import GradReport
from minijaxnet.verify.report import subject_of

_ROW = 0.28  # inches a row of a table in a picture


@html_of.register
def _of_fit(result: FitResult) -> str:
    taken, status = result.steps_taken, result.status
    how = {FLAT: f"flat after {taken:,} steps", DIVERGED: f"diverged at step {taken:,}"}
    how[STOPPED_EARLY] = f"stopped early after {taken:,} steps"
    verdict = how.get(status, f"took {taken:,} steps" + (", then was interrupted" if result.interrupted else ""))
    seen = result.rows
    names = [name for name in seen[0] if name != "step"] if seen else []
    rows = [(name, *(_number(row.get(name)) for row in (seen[0], seen[-1]))) for name in names]
    ends = tuple(f"at step {row['step']:,}" for row in (seen[0], seen[-1])) if seen else ("at the start", "at the end")

    def draw(axes: Any) -> None:
        both = [name for name in ("train_loss", "test_loss") if name in names]
        if len(both) < 2:
            draw_trace(axes, result.trace, first_step=result.first_step)
            return
        at = {"flat_at": taken if status == FLAT else None, "diverged_at": taken if status == DIVERGED else None}
        draw_curves(axes, result.rows, both, **at)

    return _shown(f"Descent: {verdict}", ("", *ends), rows, result.notes, draw, 2.8)


@html_of.register
def _of_check(result: GradReport) -> str:
    worst = worst_element(result)
    failed = [f"{name}: {reason}" for name, (state, reason) in result.verdicts.items() if state != "pass"]
    remarks = [*failed, *([f"worst: {worst}"] if worst else []), *result.hints]
    draw, height = (lambda axes: draw_errors(axes, result)), 1.6 + _ROW * len(result.leaves)
    judged = subject_of(result.to_dict())[0].capitalize()
    return _shown(f"{judged}: {verdict_line(result)}", *result.cells(), remarks, draw, height)


@html_of.register
def _of_comparison(result: StepComparison) -> str:
    verdicts = ", ".join(f"{name} is {word}" for name, word in result.verdicts.items())
    verdict = f"Steps, against {result.baseline}: {verdicts or 'nothing to compare'}"
    draw, height = (lambda axes: draw_forest(axes, result)), 0.9 + _ROW * (len(result.arms) + 1)
    return _shown(verdict, *result.cells(), result.conclusions(), draw, height)


@html_of.register
def _of_timing(result: StepTiming) -> str:
    """Two tables; their numbers are so far apart that a picture would show less."""
    verdict = f"A step takes {significant(1e6 * result.fused_s.median)} us inside a compiled loop"
    tables = html_table(("once", "ms"), result.once()) + html_table(*result.cells())
    remarks = "".join(f"<p>{html.escape(text)}</p>" for text in result.conclusions())
    return f"<div><p><strong>{html.escape(verdict)}</strong></p>{tables}{remarks}</div>"


@html_of.register
def _of_sweep(result: SweepResult) -> str:
    try:
        losses = result.losses
    except TypeError:  # no trace, so no ends to tell of
        axes = ", ".join(f"{name} ({len(values):,})" for name, values in result.axes.items())
        return f"<p>Sweep over {html.escape(axes)}; its output is no descent's</p>"
    verdict = f"Sweep: {losses.size:,} descents, {int((losses == float('inf')).sum()):,} diverged"
    try:
        best = result.best()
        places = best.place if len(best.place) == len(result.axes) else best.place * len(result.axes)
        each = zip(result.axes.items(), places, strict=True)
        where = ", ".join(f"{name} {shown(values, i)}" for (name, values), i in each)
        verdict += f"; lowest: {significant(best.loss)} at {where}"
    except ValueError:
        verdict += "; none ended at a finite loss"
    return _shown(verdict, *result.cells(), (), lambda axes: draw_sweep(axes, result), 3.0)


def _shown(
    verdict: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[Any]],
    remarks: Sequence[str],
    draw: Callable[[Any], None],
    height: float,
) -> str:
    """The verdict, the table, remarks and the picture; where that fails, a line that says why."""
    parts = [f"<p><strong>{html.escape(verdict)}</strong></p>", html_table(columns, rows) if rows else ""]
    parts += [f"<p>{html.escape(text)}</p>" for text in remarks]
    try:
        with styled():
            made = figure(height=height)
            draw(made.subplots())
            # Pictures of one page must not share ids, so the name says what is in it.
            parts.append(to_svg(made, f"notebook-{zlib.crc32(''.join(parts).encode()):08x}"))
    except NoMatplotlib as error:
        parts.append(f"<p>{html.escape(str(error))}</p>")
    except Exception as error:
        parts.append(f"<p>no picture: {html.escape(f'{type(error).__name__}: {error}')}</p>")
    return f"<div>{''.join(parts)}</div>"


def _number(value: Any) -> str:
    return significant(float(value)) if isinstance(value, int | float) else "-"
