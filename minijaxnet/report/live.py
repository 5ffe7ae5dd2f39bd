"""A fit while it runs, in a notebook: a progress bar, and the losses so far."""

import time
from collections.abc import Callable
from typing import Any

from minijaxnet._tables import significant
from minijaxnet.report.curves import draw_curves
from minijaxnet.report.style import NoMatplotlib, svg_of
from minijaxnet.run.log import Progress, Sink

_SHARE = 0.1  # of the time, at most, is spent on showing


def live(show: Callable[[str], Any] | None = None) -> Sink:
    """A sink that shows the progress of a ``fit`` in a notebook: the steps, the time left, and the losses so far.

    It takes at most a tenth of the time.

    Args:
        show: is called with the HTML, each time it changes; IPython's display if None.

    Returns:
        A sink, for ``fit(sink=...)``.

    Raises:
        ImportError: IPython is not installed, and ``show`` is None.

    Example:
        >>> import jax.numpy as jnp
        >>> import minijaxnet as mjn
        >>> descent = mjn.gradient_descent(lambda weight, batch: jnp.mean((weight - batch[1]) ** 2), learning_rate=0.1)
        >>> pages = []
        >>> _ = mjn.fit(descent, descent.init(0.0), (jnp.ones(2), jnp.ones(2)), steps=20, sink=mjn.live(pages.append))
        >>> "20 of 20 steps" in pages[-1]
        True
    """
    show = _in_notebook() if show is None else show
    rows: list[dict[str, Any]] = []
    latest: Progress | None = None
    next_at = 0.0

    def update(*, at_once: bool = False) -> None:
        nonlocal next_at
        start = time.monotonic()
        if at_once or start >= next_at:
            show((_bar(latest) if latest else "") + _curves(rows))
            next_at = time.monotonic() + (time.monotonic() - start) / _SHARE

    def write(row: dict[str, Any]) -> None:
        rows.append(row)
        update(at_once=latest is not None and row["step"] >= latest.steps)

    def begin(step: int) -> None:
        rows[:] = [row for row in rows if row["step"] < step]

    def progress(progress: Progress) -> None:
        nonlocal latest
        latest = progress
        update()

    return Sink(write, begin, progress)


def _bar(progress: Progress) -> str:
    """The progress bar, in HTML.

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
        return svg_of(lambda figure: draw_curves(figure.subplots(), rows, names), f"live-{len(rows)}", 2.6)
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
