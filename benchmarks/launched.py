"""A launch command as people start it, in a session of its own: waited for, or killed with all it has started."""

import os
import subprocess
import sys
import time
import uuid
from pathlib import Path

import psutil

from domain_canine.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
# A model so small that a step takes a few milliseconds, dropout on.
SMALLEST = [
    "--model_size", "tiny", "--config_overrides",
    "num_hidden_layers=1,hidden_size=32,num_attention_heads=2,intermediate_size=64,num_hash_buckets=512",
]  # fmt: skip
MARK = "DOMAIN_CANINE_LAUNCHED"  # inherited by whatever the command starts, in whichever session


class Launched:
    """A running ``accelerate launch ... run_mlm_domains.py``.

    Args:
        flags: of the training command.
        said: the file that gets its output.
        config: which of ``accelerate_configs``.
        script: another training command.
        environment: what is set beside this process's own.
    """

    def __init__(
        self, flags: list, said: Path, config: str = "cpu",
        script: str = "run_mlm_domains.py", **environment: str,
    ):  # fmt: skip
        command = [
            sys.executable, "-m", "accelerate.commands.launch", "--quiet", "--config_file",
            ROOT / "accelerate_configs" / f"{config}.yaml", ROOT / script, *flags,
        ]  # fmt: skip
        self.said, self.script = said, script
        self._mark, self.since = uuid.uuid4().hex, time.monotonic()
        with said.open("w") as output:
            self.launcher = subprocess.Popen(
                list(map(str, command)), cwd=ROOT, stdout=output, stderr=output, stdin=subprocess.DEVNULL,
                start_new_session=True, env=os.environ | environment | {MARK: self._mark},
            )  # fmt: skip

    def __enter__(self) -> "Launched":
        return self

    def __exit__(self, *exception) -> None:
        self.kill()

    def seconds(self) -> float:
        """Since the start."""
        return time.monotonic() - self.since

    def text(self) -> str:
        """Its output until now."""
        return self.said.read_text(errors="replace")

    def ended(self) -> int | None:
        """The exit status, None while it runs."""
        return self.launcher.poll()

    def training(self) -> psutil.Process | None:
        """The first training process, the launcher's child; None before it is there."""
        try:
            children = psutil.Process(self.launcher.pid).children()
            return next((each for each in children if any(self.script in word for word in each.cmdline())), None)
        except psutil.Error:
            return None

    def kill(self) -> None:
        """SIGKILL to the process group at once, then to what is left in other sessions; returns when all are gone."""
        if self.launcher.poll() is None:  # not reaped: the number is no other process's yet
            os.killpg(self.launcher.pid, 9)
            self.launcher.wait()
        deadline = time.monotonic() + 30
        while left := self._marked():
            for process in left:
                try:
                    process.kill()
                except psutil.Error:
                    continue
            if time.monotonic() > deadline:
                raise UserError(f"processes outlive SIGKILL: {left}")
            time.sleep(0.01)

    def _marked(self):
        """Its processes; a zombie, which holds nothing any more, has no environment."""
        found = psutil.process_iter(["environ"])
        return [each for each in found if (each.info["environ"] or {}).get(MARK) == self._mark]

    def wait(self, seconds: float | None = None) -> None:
        """Until it has ended well.

        Raises:
            UserError: it has failed, or the time is up; then it is killed.
        """
        try:
            if self.launcher.wait(seconds) == 0:
                return
        except subprocess.TimeoutExpired:
            self.kill()
            raise UserError(f"the run has not ended within {seconds:g} s:\n{self.text()[-3000:]}") from None
        raise self.failure()

    def failure(self) -> UserError:
        """What it said last."""
        return UserError(f"the run failed with status {self.ended()}:\n{self.text()[-3000:]}")
