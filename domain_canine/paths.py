"""Paths as users give them."""

import os
from pathlib import Path

from .errors import UserError, first_line


def user_path(text: str | Path) -> Path:
    """A path with ``~`` spelled out, whether or not there is something.

    Raises:
        UserError: nothing could be there: it is too long, or leads through a folder that may not be entered.
    """
    # Path.expanduser raises where there is no such user, and Path.exists where a name is too long (Python 3.11).
    path = Path(os.path.expanduser(text))
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (OSError, ValueError) as error:
        shown = str(text) if len(str(text)) < 100 else f"{str(text)[:100]}…"
        raise UserError(f"{shown!r} is no path: {getattr(error, 'strerror', None) or first_line(error)}") from error
    return path
