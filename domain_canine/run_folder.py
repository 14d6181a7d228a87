"""The run folder: ours to write in, held by one run at a time, with a word on how the latest one ended."""

import json
import os
import re
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch
from accelerate.utils import broadcast_object_list
from filelock import FileLock, Timeout

from .checkpoints import MANIFEST, whole_checkpoints
from .errors import Stopped, UserError, first_line

# Written at the start of a run, with its arguments; tells our folders from other people's.
RUN_FILE = "run_arguments.json"
LAST_EXIT = "last_exit.json"
LOCK, HOLDER = ".lock", ".lock.json"
# What a run leaves that was killed at its very start.
_NOTHING = re.compile(r"run_arguments\.part|\.writing|\.lock|\.{1,2}lock\.json(\.\d+)?")
# Seconds that a lock may be held after its run was killed: loader workers have it, too, and notice within 5.
GRACE = 12


def refuse_foreign_folder(run: Path, resuming: bool) -> None:
    """Nothing of anyone's is overwritten: a run starts in a new or empty folder, or goes on in its own.

    Raises:
        UserError: the folder is taken.
    """
    if run.exists() and not run.is_dir():
        raise UserError(f"--output_dir {str(run)!r} is a file; give a folder")
    names = {entry.name for entry in run.iterdir()} if run.is_dir() else set()
    checkpoints = [name for name in names if name.startswith("checkpoint-")]
    ours = RUN_FILE in names or any((run / name / MANIFEST).is_file() for name in checkpoints)
    made = checkpoints or "model.safetensors" in names
    if all(_NOTHING.fullmatch(name) for name in names) or (ours and (resuming or not made)):
        return
    if ours:
        raise UserError(
            f"--output_dir {str(run)!r} holds an earlier run; add --resume_from_checkpoint to go on with it, "
            "or give another folder"
        )
    some = ", ".join(sorted(names)[:3]) + ", ..." * (len(names) > 3)
    raise UserError(f"--output_dir {str(run)!r} is not empty and not a run of this program ({some}); give a new folder")


def agreed(args, decide: Callable):
    """What the main process decides, or the UserError it has, on every process."""
    outcome = [None, None]
    if args.process_index == 0:
        try:
            outcome[0] = decide()
        except UserError as error:
            outcome[1] = str(error)
    if args.world_size > 1:
        broadcast_object_list(outcome)
    if outcome[1] is not None:
        raise UserError(outcome[1])
    return outcome[0]


class RunFolder:
    """Holds ``--output_dir`` while it is entered; when left, ``last_exit.json`` tells how.

    The lock is the main process's and goes with it, however it ends. Of an end that nobody could write down, by SIGKILL
    or with the machine, there is no ``last_exit.json``.
    """

    def __init__(self, args):
        self.args, self.path = args, Path(args.output_dir)
        self.lock = FileLock(self.path / LOCK)
        self.ours = False  # before that nothing is written

    def __enter__(self) -> "RunFolder":
        """
        Raises:
            UserError: the folder is another's, or a live run holds it.
        """
        agreed(self.args, self._enter)
        return self

    def _enter(self):
        resuming = self.args.resume_from_checkpoint is not None
        refuse_foreign_folder(self.path, resuming)
        try:
            if self.path.exists():
                self._hold()
            else:
                self.path.mkdir(parents=True)
                self.path.rmdir()  # it can be made; a mistake that is found later should leave none
        except OSError as error:
            raise _cannot_write(self.path, error) from error

    def claim(self, write: Callable[[], None]) -> None:
        """Make the folder this run's, by what ``write`` writes; every machine must see it then.

        Raises:
            UserError: it cannot be written, or not be seen, or another run was quicker.
        """

        def claim():
            try:
                self.path.mkdir(parents=True, exist_ok=True)
                self._hold()
                refuse_foreign_folder(self.path, self.args.resume_from_checkpoint is not None)
                (self.path / LAST_EXIT).unlink(missing_ok=True)
                write()
                self.ours = True  # at once: a signal may come before the others know
            except OSError as error:
                raise _cannot_write(self.path, error) from error

        agreed(self.args, claim)
        # A network file system may take half a minute to show another machine's file.
        waited = 0
        while not (self.path / RUN_FILE).is_file():
            if (waited := waited + 1) > 60:
                raise UserError(
                    f"--output_dir {str(self.path)!r} of the main process is not seen by {socket.gethostname()}: "
                    "several machines need a folder on a file system that they share"
                )
            time.sleep(1)
        self.ours = True

    def _hold(self):
        if self.lock.is_locked:
            return
        try:
            self.lock.acquire(timeout=GRACE)
        except Timeout:
            held = self.path / HOLDER
            told = json.loads(held.read_text()) if held.is_file() else {}
            raise UserError(
                f"--output_dir {str(self.path)!r} is held by a run that is alive (process {told.get('process', '?')} "
                f"on {told.get('machine', '?')}, since {told.get('since', '?')}); give another folder, or end that run"
            ) from None
        _write(self.path / HOLDER, {"process": os.getpid(), "machine": socket.gethostname(), "since": _now()})

    def __exit__(self, kind, error, traceback) -> None:
        status, code = "finished", 0
        if isinstance(error, Stopped):
            status, code = "stopped", error.status
        elif error is not None:
            status, code = "failed", 2 if isinstance(error, UserError) else 1
        # Of several processes the one that fails first knows why; the others lose it, and fail for that.
        first = status == "failed" and not (self.path / LAST_EXIT).exists()
        if self.ours and (first or (status != "failed" and self.args.process_index == 0)):
            whole = whole_checkpoints(self.path)
            told = {
                "status": status,
                "exit_code": code,
                "reason": None if error is None else first_line(error),
                "checkpoint": whole[-1].name if whole else None,
                "process": self.args.process_index,
                "at": _now(),
            }
            with suppress(OSError):  # a full disk must not hide what ended the run
                _write(self.path / LAST_EXIT, told)
        # Left to the interpreter's end, gloo's threads abort at times. NCCL's wait for processes that have not failed.
        distributed = torch.distributed
        if distributed.is_initialized() and (status != "failed" or distributed.get_backend() == "gloo"):
            distributed.destroy_process_group()
        self.lock.release()


def _write(path, told):
    written = path.with_name(f".{path.name}.{os.getpid()}")
    written.write_text(json.dumps(told, indent=1) + "\n")
    written.replace(path)


def _now():
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")


def _cannot_write(path, error):
    return UserError(f"--output_dir {str(path)!r} cannot be made or written: {error.strerror}; give another folder")
