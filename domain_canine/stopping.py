"""Signals and the death of the launcher: training ends after a step, with a checkpoint; all else ends at once."""

import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .errors import Stopped, speaks

# A closed terminal is SIGHUP; nohup has it ignored, and it stays so.
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
# Seconds within which a second signal is the first one again: a terminal or a scheduler tells every process, and
# torchrun and accelerate then pass on what they got.
ECHO = 2.0
LAUNCHERS = {"accelerate", "accelerate-launch", "accelerate.commands.launch", "torchrun", "torch.distributed.run"}
# What these set for the processes that they start.
MARKS = {"ACCELERATE_MIXED_PRECISION", "TORCHELASTIC_RUN_ID"}


class StopRequest:
    """Takes signals while it is entered; at the end the handlers are what they were.

    Args:
        parent: the process that has started this one; the present one by default.
    """

    def __init__(self, parent: int | None = None):
        self.signal: signal.Signals | None = None
        self.why = ""
        self._in_training = False
        self._since = 0.0
        self._launcher = _launcher(os.getppid() if parent is None else parent)

    def __enter__(self) -> "StopRequest":
        taken = [each for each in SIGNALS if signal.getsignal(each) != signal.SIG_IGN]
        self._before = {each: signal.signal(each, self._receive) for each in taken}
        return self

    def __exit__(self, *exception) -> None:
        for each, handler in self._before.items():
            signal.signal(each, handler)

    @contextmanager
    def after_a_step(self) -> Iterator[None]:
        """While entered, a signal is kept for ``asked`` instead of ending the program."""
        self._in_training = True
        try:
            yield
        finally:
            self._in_training = False

    def asked(self) -> bool:
        """Whether training is to end."""
        if self.signal is None and self._launcher and os.getppid() != self._launcher:
            self.signal, self.why, self._since = signal.SIGTERM, "ended, since its launcher has died,", time.monotonic()
        return self.signal is not None

    def _receive(self, number, frame):
        number, now = signal.Signals(number), time.monotonic()
        if self.signal is None:
            self.signal, self.why, self._since = number, f"stopped by {number.name}", now
            if not self._in_training:
                raise Stopped(number, self.why)
            # Not print: the program may be in the middle of one.
            _say(f"\n{number.name}: the run ends after this step, with a checkpoint; a second signal ends it at once\n")
        elif now - self._since > (ECHO if self._launcher else 0):
            os._exit(128 + number)


def _launcher(parent):
    """The parent's process number if it is a launcher, else 0: a run that nohup has started outlives its shell."""
    import psutil

    try:
        launched = {Path(word).name for word in psutil.Process(parent).cmdline()} & LAUNCHERS
    except psutil.Error:  # it has died meanwhile
        launched = MARKS & set(os.environ)
    return parent if launched else 0


def _say(text):
    if not speaks():
        return
    with suppress(OSError, ValueError):  # the terminal may be gone
        os.write(sys.__stderr__.fileno(), text.encode())
