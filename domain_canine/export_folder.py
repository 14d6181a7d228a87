"""The folder that an export makes: whole or absent, and never in the place of anything else."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from tempfile import TemporaryDirectory

from .errors import UserError
from .stopping import StopRequest

# What ``save_pretrained`` of a configuration and a tokenizer leaves.
SAVED = ("config.json", "tokenizer*.json", "added_tokens.json", "special_tokens_map.json", "*_domain_canine.py")


def refuse_other_folder(folder: Path, mark: str, made: tuple[str, ...], overwrite: bool) -> None:
    """Of what is there only an earlier export is replaced, and only if that is asked for.

    Args:
        mark: a file that every such export has.
        made: patterns of what else may be in one, beside SAVED: what is not of these is somebody's own.

    Raises:
        UserError: it is to stay.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--output {str(folder)!r} is a file: give a folder")
    there = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}
    known = (mark, *made, *SAVED)
    strange = sorted(name for name in there if not any(fnmatch(name, each) for each in known))
    if there and (strange or mark not in there):
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
            before = Path(beside) / "before"
            try:
                if folder.exists():
                    os.replace(folder, before)
                os.replace(whole, folder)
            except BaseException:  # a signal, too
                if before.exists() and not folder.exists():
                    os.replace(before, folder)
                raise
    except OSError as error:
        raise UserError(f"--output {str(folder)!r} cannot be written: {error.strerror}") from error
