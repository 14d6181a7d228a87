"""Mistakes that a user can mend: shown as one message, without a traceback."""

import os
import sys


class UserError(Exception):
    """What is wrong, with the value, and what to do about it."""


class BadInput(UserError):
    """The input itself is at fault: to try again with it would end the same way."""


def first_line(error: Exception) -> str:
    """What an error of a library says, without its list of causes; its kind where it says nothing."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


def run(main, after_interrupt: str = "") -> None:
    """Call a command's ``main`` and exit; of several processes on a machine the first alone speaks."""
    try:
        status = main()
    except UserError as error:
        if int(os.environ.get("LOCAL_RANK", 0)) == 0:
            print(f"error: {error}", file=sys.stderr)
        status = 2
    except KeyboardInterrupt:
        print(f"\ninterrupted{after_interrupt}", file=sys.stderr)
        status = 130
    sys.exit(status)
