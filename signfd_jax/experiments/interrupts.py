"""Ctrl-C, where Python would forget it."""

import _thread
import contextlib
import sys
import threading
from collections.abc import Iterator

__all__ = ["heeded_interrupts"]

_PAUSE = 0.05  # seconds: until the callback that swallowed it is over


@contextlib.contextmanager
def heeded_interrupts() -> Iterator[None]:
    """Make Ctrl-C end what runs in the context, wherever it strikes.

    It strikes as a `KeyboardInterrupt` in whatever Python code the main thread is at.
    In a callback of the garbage collector, of which JAX has one, or in a finaliser,
    Python prints "Exception ignored in ..." and goes on. Here nothing is printed, and
    the interrupt is sent again a moment later, until it comes through.

    Returns:
        A context manager.

    Raises:
        KeyboardInterrupt: in the context, at Ctrl-C.

    Examples:
        >>> with heeded_interrupts():
        ...     print("as ever")
        as ever
    """
    before, again = sys.unraisablehook, []

    def send_again(ignored):
        if not isinstance(ignored.exc_value, KeyboardInterrupt):
            before(ignored)
            return
        again.append(threading.Timer(_PAUSE, _thread.interrupt_main))
        again[-1].daemon = True
        again[-1].start()

    sys.unraisablehook = send_again
    try:
        yield
    finally:
        sys.unraisablehook = before
        for timer in again:
            timer.cancel()
