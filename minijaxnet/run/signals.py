"""SIGINT and SIGTERM as news that the loop reads between chunks."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_HEARD = (signal.SIGINT, signal.SIGTERM)


class Stop:
    """Whether somebody asked to stop: ``signum`` is the signal's number, 0 while nobody did."""

    signum = 0

    def __bool__(self) -> bool:
        """Whether to stop."""
        return bool(self.signum)


@contextmanager
def stop_between_chunks() -> Iterator[Stop]:
    """A ``Stop`` that the first SIGINT or SIGTERM sets; from then on they act as ever, so a second one ends at once.

    Outside the main thread nothing is caught: Python hands signals to no other.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {signum: signal.getsignal(signum) for signum in _HEARD}

    def restore() -> None:
        for signum, handler in before.items():
            signal.signal(signum, signal.SIG_DFL if handler is None else handler)

    def on_signal(signum: int, frame: Any) -> None:
        stop.signum = signum
        restore()

    for signum in _HEARD:
        signal.signal(signum, on_signal)
    try:
        yield stop
    finally:
        restore()


@contextmanager
def sigterm_interrupts() -> Iterator[Stop]:
    """SIGTERM raises ``KeyboardInterrupt``, as SIGINT does; the ``Stop`` says which of them it was."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def on_signal(signum: int, frame: Any) -> None:
        stop.signum = signum
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, on_signal)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)
