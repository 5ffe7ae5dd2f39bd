"""SIGINT and SIGTERM: the first signal stops a run after the current chunk, a second one ends it at once."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stop:
    """Whether a signal has come; ``signum`` is its number, or 0."""

    signum = 0

    def __bool__(self) -> bool:
        """Whether a signal has come."""
        return bool(self.signum)


@contextmanager
def stop_signals(*, raises: bool = False) -> Iterator[Stop]:
    """A ``Stop`` that the first SIGINT or SIGTERM sets.

    After it the signals have their former effect. Outside the main thread no signal is caught, since Python passes
    signals only to the main thread.

    Args:
        raises: whether the first signal also raises ``KeyboardInterrupt(signum)``, for code that does not check the
            ``Stop``. A second one then kills the process, since an exception would have to wait for busy threads.
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
