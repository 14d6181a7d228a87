"""Mistakes that a user can mend: shown as one message, without a traceback."""

import errno
import os
import signal
import sys
from contextlib import suppress


class UserError(Exception):
    """What is wrong, with the value, and what to do about it."""


class OwnError(UserError):
    """Of one of several processes: it speaks, whichever it is; other errors are those of all, and the first one's."""


class BadInput(UserError):
    """The input itself is at fault: to try again with it would end the same way."""


class Stopped(BaseException):
    """A signal ended the program in good order; its exit status is 128 and the signal's number.

    As KeyboardInterrupt it is no ``Exception``: whoever catches all errors of a library must not catch it.
    """

    def __init__(self, number: signal.Signals, told: str):
        super().__init__(told)
        self.status = 128 + number


def first_line(error: BaseException) -> str:
    """What an error of a library says, without its list of causes; its kind where it says nothing."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


def speaks() -> bool:
    """Whether this is the process that tells, of several on a machine."""
    return int(os.environ.get("LOCAL_RANK", 0)) == 0


class _Tolerant:
    """A stream whose reader may die, with a terminal or a launcher: a run does not end for want of somebody to tell."""

    def __init__(self, stream):
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError:
            return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            self._stream.flush()

    def __getattr__(self, name):
        return getattr(self._stream, name)


def run(main, after_interrupt: str = "") -> None:
    """Call a command's ``main`` and exit; of several processes on a machine the first alone speaks."""
    # Each may have been closed before the start.
    sys.stdout = sys.stdout or open(os.devnull, "w")
    sys.stderr = _Tolerant(sys.stderr or open(os.devnull, "w"))
    if signal.getsignal(signal.SIGINT) == signal.SIG_DFL:  # a script's, for the time of its imports
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        status = main()
        sys.stdout.flush()  # here, where it can be told
    except UserError as error:
        if speaks() or isinstance(error, OwnError):
            print(f"error: {error}", file=sys.stderr)
        status = 2
    except Stopped as stopped:
        if speaks():
            print(f"\n{stopped}", file=sys.stderr)
        status = stopped.status
    except KeyboardInterrupt:
        if speaks():
            print(f"\ninterrupted{after_interrupt}", file=sys.stderr)
        status = 130
    except BrokenPipeError:  # whoever read standard output has seen enough
        status = 128 + signal.SIGPIPE
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        print(f"error: {error.filename or 'what was to be written'}: no space is left", file=sys.stderr)
        status = 2
    try:
        sys.stdout.flush()
    except OSError:  # of what is left the interpreter would complain at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(status)
