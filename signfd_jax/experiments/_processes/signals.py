"""Ctrl-C and SIGTERM: one way to stop, also where Python would forget it."""

import _thread
import contextlib
import signal
import sys
import threading
from collections.abc import Iterator

_PAUSE = 0.05  # seconds: until the callback that swallowed it is over


class Terminated(KeyboardInterrupt):
    """SIGTERM came, as the schedulers of clusters send it: stop as Ctrl-C does."""


def stopped_by(number: int) -> KeyboardInterrupt:
    """What to raise where a signal stops a run."""
    return Terminated() if number == signal.SIGTERM else KeyboardInterrupt()


def _terminate(number, _):
    raise stopped_by(number)


@contextlib.contextmanager
def heeded_interrupts() -> Iterator[None]:
    """Make Ctrl-C and SIGTERM end what runs in the context, wherever they strike.

    SIGTERM is made to strike as Ctrl-C does, unless it is ignored or has a handler.

    It strikes as a `KeyboardInterrupt` in whatever Python code the main thread is at.
    In a callback of the garbage collector, of which JAX has one, or in a finaliser,
    Python prints "Exception ignored in ..." and goes on. Here nothing is printed, and
    the interrupt is sent again a moment later, until it comes through.
    """
    before, again = sys.unraisablehook, []

    def send_again(ignored):
        if not isinstance(ignored.exc_value, KeyboardInterrupt):
            before(ignored)
            return
        number = signal.SIGINT
        if isinstance(ignored.exc_value, Terminated):
            number = signal.SIGTERM
        again.append(threading.Timer(_PAUSE, _thread.interrupt_main, [number]))
        again[-1].daemon = True
        again[-1].start()

    in_main = threading.current_thread() is threading.main_thread()
    heed = in_main and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    if heed:
        signal.signal(signal.SIGTERM, _terminate)
    sys.unraisablehook = send_again
    try:
        yield
    finally:
        sys.unraisablehook = before
        if heed:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        for timer in again:
            timer.cancel()
