"""What is said on a terminal, which may be gone or know few letters.

Saying something never ends what is being done: results are kept in files.
"""

import codecs
import contextlib
import difflib
import io
import os
import shutil
import sys
from collections.abc import Collection, Iterator
from typing import Any

_PLAIN = {"±": "+/-", "─": "-", "│": "|", "…": "..."}


def _spell_out(error):
    """What an encoding lacks, in letters that every encoding has."""
    lacking = error.object[error.start : error.end]
    return "".join(_PLAIN.get(c, ascii(c)[1:-1]) for c in lacking), error.end


codecs.register_error("signfd_plain", _spell_out)


class _Patient:
    """A text stream that never raises; see `patient`."""

    def __init__(self, stream):
        self.stream = io.StringIO() if stream is None else stream
        self.lost = stream is None

    def __getattr__(self, name):
        return getattr(self.stream, name)

    def __eq__(self, other):
        """By which progress bars know that a line goes to where they are."""
        return isinstance(other, _Patient) and self.stream is other.stream

    def __hash__(self):
        return hash(self.stream)

    def write(self, text):
        self._try(self._write, text)
        return len(text)

    def flush(self):
        self._try(self.stream.flush)

    def isatty(self):
        return bool(self._try(self.stream.isatty))

    def _write(self, text):
        try:
            self.stream.write(text)
        except UnicodeEncodeError as error:
            plain = text.encode(error.encoding, "signfd_plain").decode(error.encoding)
            self.stream.write(plain)

    def _try(self, do, *arguments):
        if self.lost:
            return None
        try:
            return do(*arguments)
        except (OSError, ValueError) as error:  # the latter where it is closed
            self.lost = True
            reader_is_gone = isinstance(error, BrokenPipeError | ValueError)
            if not reader_is_gone and self != patient(sys.stderr):
                warn(f"nothing more can be printed ({reason(error)})")
            return None


def patient(stream: Any) -> Any:
    r"""Make a text stream that never raises: what cannot be written is left out.

    Letters that the stream's encoding lacks are spelled out. Once the stream is closed,
    its reader gone or its disk full, the rest is left out. Of a full disk one line on
    stderr tells.
    """
    return stream if isinstance(stream, _Patient) else _Patient(stream)


@contextlib.contextmanager
def steady() -> Iterator[None]:
    """Make what is printed in the context unable to end it.

    Standard files that are closed are opened to nowhere first: else the next file that
    is opened would get their number, and what a library prints.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    before = sys.stdout, sys.stderr
    ours = sys.stdout, sys.stderr = patient(before[0]), patient(before[1])
    try:
        yield
    finally:
        for stream in ours:
            stream.flush()
        sys.stdout, sys.stderr = before
        for stream in ours:
            if stream.lost:
                _lead_nowhere(stream)


def _lead_nowhere(stream):
    """Python flushes it once more when it ends, and would complain then."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def unknown(kind: str, name: str, known: Collection[str]) -> str:
    """What to say of a name that there is not, with the one that may be meant."""
    close = difflib.get_close_matches(name, known, n=1)
    hint = f" (did you mean {close[0]}?)" if close else ""
    return f"unknown {kind} {name!r}{hint}; known are {', '.join(known)}"


def warn(text: object) -> None:
    """Say one line on stderr, whatever the text was."""
    line = f"signfd: {' '.join(str(text).split())}"
    print(line, file=patient(sys.stderr), flush=True)


# A title, the bar, and what is said behind it: 80 columns hold a million rounds.
_BAR = "{desc} |{bar}| {n_fmt}/{total_fmt} [{remaining} left{postfix}]"
_ACCURACY = "accuracy 0.000"
_REMAINING = "00:00:00"


def bar(total: int, *, initial: int = 0, shown: bool = True) -> Any:
    """A progress bar on stderr: a context, in which `show` says what it is about."""
    from tqdm.auto import tqdm

    return tqdm(
        total=total,
        initial=initial,
        disable=not shown,
        bar_format=_BAR,
        file=patient(sys.stderr),
    )


def show(bar: Any, title: str, postfix: str = "") -> None:
    """Set a bar's title, cut to what the terminal has room for, and what follows."""
    empty = _BAR.format(
        desc="",
        bar=" " * 10,
        n_fmt=bar.total,
        total_fmt=bar.total,
        remaining=_REMAINING,
        postfix=f", {max(_ACCURACY, postfix, key=len)}",
    )
    room = max(shutil.get_terminal_size().columns - 1 - len(empty), 4)
    if len(title) > room:
        title = title[: room - 3] + "..."
    bar.set_description_str(title, refresh=False)
    bar.set_postfix_str(postfix)


def reason(error: BaseException) -> str:
    r"""One line of an exception that may have many."""
    if isinstance(error, OSError) and error.strerror:
        where = f": {error.filename}" if error.filename else ""
        return f"{error.strerror}{where}"[:200]
    lines = str(error).split("\n")
    return lines[0][:200] or type(error).__name__


@contextlib.contextmanager
def spared(what: str) -> Iterator[None]:
    """Let something fail that is beside the point, with one line that says why."""
    try:
        yield
    except Exception as error:
        warn(f"{what}: {reason(error)}")
