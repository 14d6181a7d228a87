"""The launch command in the benchmarks' hands."""

import time

import psutil
import pytest

from benchmarks import launched
from domain_canine.errors import UserError

# Starts a process in a session of its own, as some launchers do.
SCRIPT = """
import subprocess, sys, time
child = subprocess.Popen(["sleep", "600"], start_new_session=True)
print("child", child.pid, "of", sys.argv[1], flush=True)
time.sleep(600)
"""


def test_a_kill_reaches_all_and_says_what_was_said(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    with launched.Launched(["--anything"], tmp_path / "said.txt", script=str(script), OMP_NUM_THREADS="1") as run:
        deadline = time.monotonic() + 90
        while "child" not in run.text():
            assert run.ended() is None and time.monotonic() < deadline, run.text()
            time.sleep(0.05)
        training, child = run.training().pid, int(run.text().split()[1])
        assert psutil.Process(training).ppid() == run.launcher.pid
        with pytest.raises(UserError, match=r"(?s)has not ended within 0\.1 s:\n.*of --anything"):
            run.wait(0.1)
        # A zombie that nobody waits for is dead, too.
        alive = [p for p in (training, child) if psutil.pid_exists(p) and psutil.Process(p).status() != "zombie"]
        assert not alive and run.ended() == -9
