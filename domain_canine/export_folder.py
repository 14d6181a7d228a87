"""The folder that an export makes: whole or absent, and never in the place of anything else."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from .errors import UserError
from .stopping import StopRequest


def refuse_other_folder(folder: Path, is_export: Callable[[set[str]], bool], overwrite: bool) -> None:
    """Of what is there only an earlier export is replaced, and only if that is asked for.

    Args:
        is_export: whether the names in a folder are those of an export, and of no more.

    Raises:
        UserError: it is to stay.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--output {str(folder)!r} is a file: give a folder")
    there = {entry.name for entry in folder.iterdir()} if folder.is_dir() else set()
    if there and not is_export(there):
        raise UserError(f"--output {str(folder)!r} is not empty and no export of this program: give another folder")
    if there and not overwrite:
        raise UserError(f"--output {str(folder)!r} exists; add --overwrite to replace it, or give another folder")


@contextmanager
def made_whole(folder: Path) -> Iterator[Path]:
    """A new folder beside, to be made; it gets its place when the block ends well, and is gone if it does not.

    Raises:
        UserError: it cannot be written.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with StopRequest(), TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as beside:
            whole = Path(beside) / folder.name
            whole.mkdir()
            yield whole
            if folder.exists():
                os.replace(folder, Path(beside) / "before")
            os.replace(whole, folder)
    except OSError as error:
        raise UserError(f"--output {str(folder)!r} cannot be written: {error.strerror}") from error
