"""A fit as it comes along, in a notebook: a bar, and the losses so far."""

import time
from collections.abc import Callable
from typing import Any

from minijaxnet._tables import significant
from minijaxnet.report.curves import draw_curves
from minijaxnet.report.style import NoMatplotlib, figure, styled, to_svg
from minijaxnet.run.log import Progress, Sink

_SHARE = 0.1  # of the time, at most, goes into showing


def live(show: Callable[[str], Any] | None = None) -> Sink:
    """A sink that shows in a notebook how far a ``fit`` has come, what is left of it, and the losses so far.

    It takes at most a tenth of the time.

    Args:
        show: is given the HTML, each time anew; that of IPython if None.

    Raises:
        ImportError: IPython is not installed, and nothing else shows it.

    Example:
        >>> import jax.numpy as jnp
        >>> import minijaxnet as mjn
        >>> descent = mjn.gradient_descent(lambda weight, batch: jnp.mean((weight - batch[1]) ** 2), learning_rate=0.1)
        >>> shown = []
        >>> _ = mjn.fit(descent, descent.init(0.0), (jnp.ones(2), jnp.ones(2)), steps=20, sink=mjn.live(shown.append))
        >>> "20 of 20 steps" in shown[-1]
        True
    """
    show = _in_notebook() if show is None else show
    rows: list[dict[str, Any]] = []
    seen: list[Progress] = []
    next_at = 0.0

    def shown(*, at_once: bool) -> None:
        nonlocal next_at
        began = time.monotonic()
        if at_once or began >= next_at:
            show(_bar(seen[-1]) + _curves(rows) if seen else _curves(rows))
            next_at = time.monotonic() + (time.monotonic() - began) / _SHARE

    def write(row: dict[str, Any]) -> None:
        rows.append(row)
        shown(at_once=bool(seen) and row["step"] >= seen[-1].steps)

    def begin(step: int) -> None:
        rows[:] = [row for row in rows if row["step"] < step]

    def progress(progress: Progress) -> None:
        seen[:] = [progress]
        shown(at_once=False)

    return Sink(write, begin, progress)


def _bar(progress: Progress) -> str:
    """How far it is, in HTML.

    >>> print(_bar(Progress(50, 200, 0.25, 1.0, 10.0)))
    <p><progress value="50" max="200"></progress> 50 of 200 steps, loss 0.25, 10 steps/s, 15 s left</p>
    """
    done, steps = progress.step, progress.steps
    left_s = (steps - done) / progress.steps_per_s if progress.steps_per_s else 0.0
    words = f"{done:,} of {steps:,} steps, loss {significant(progress.loss)}, {progress.steps_per_s:,.0f} steps/s"
    return f'<p><progress value="{done}" max="{steps}"></progress> {words}, {significant(left_s, 2)} s left</p>'


def _curves(rows: list[dict[str, Any]]) -> str:
    names = [name for name in (rows[0] if rows else ()) if name.endswith("loss") and name != "loss"] or ["loss"]
    if len(rows) < 2:
        return ""
    try:
        with styled():
            made = figure(height=2.6)
            draw_curves(made.subplots(), rows, names)
            return to_svg(made, f"live-{len(rows)}")
    except NoMatplotlib as error:
        return f"<p>{error}</p>"


def _in_notebook() -> Callable[[str], Any]:
    try:
        from IPython.display import HTML, display  # pyright: ignore[reportMissingImports] - where there is a notebook
    except ImportError:
        raise ImportError("live: IPython is not installed; expected a notebook, or show=") from None
    handle = None

    def show(text: str) -> None:
        nonlocal handle
        if handle is None:
            handle = display(HTML(text), display_id=True)
        else:
            handle.update(HTML(text))

    return show
