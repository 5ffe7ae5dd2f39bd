"""SIGINT and SIGTERM: asked to stop, a run comes to a good end; asked twice, it ends at once."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stop:
    """Whether somebody asked to stop: ``signum`` is the signal's number, 0 while nobody did."""

    signum = 0

    def __bool__(self) -> bool:
        """Whether to stop."""
        return bool(self.signum)


@contextmanager
def stop_signals(*, raises: bool = False) -> Iterator[Stop]:
    """A ``Stop`` that the first SIGINT or SIGTERM sets.

    From then on they act as before. Outside the main thread nothing is caught: Python hands signals to no other.

    Args:
        raises: whether the first one raises ``KeyboardInterrupt(signum)``, too, where nobody looks at the ``Stop``; a
            second one then kills the process, since threads that are busy keep an exception waiting.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {signum: signal.getsignal(signum) for signum in _SIGNALS}

    def restore() -> None:
        for signum, handler in before.items():
            signal.signal(signum, signal.SIG_DFL if handler is None else handler)

    def on_signal(signum: int, frame: Any) -> None:
        stop.signum = signum
        if not raises:
            restore()
            return
        for each in _SIGNALS:
            signal.signal(each, signal.SIG_DFL)
        raise KeyboardInterrupt(signum)

    for signum in _SIGNALS:
        signal.signal(signum, on_signal)
    try:
        yield stop
    finally:
        restore()
