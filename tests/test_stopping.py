"""Signals, and launchers that die: training ends after a step with a checkpoint, and says so where schedulers look."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from conftest import ROOT
from test_run import BIN, QUICK

from domain_canine import checkpoints, stopping
from domain_canine.errors import Stopped
from domain_canine.run_folder import LAST_EXIT
from domain_canine.stopping import StopRequest

SCRIPT = str(ROOT / "run_mlm_domains.py")
# Long enough not to end by itself.
LONG = [*QUICK, "--epochs", "10000", "--dataset", "sample", "--num_samples", "500", "--save_steps", "10", "--use_cpu"]
LAUNCHERS = {
    "python": [sys.executable],
    "accelerate": [BIN / "accelerate", "launch", "--quiet", "--config_file", ROOT / "accelerate_configs" / "cpu.yaml"],
}


class Run:
    """A run of the command in a session of its own, its output in a file."""

    def __init__(self, folder: Path, *flags, by="python"):
        self.folder, self.said = folder / "run", folder / "said.txt"
        command = [*LAUNCHERS[by], SCRIPT, *LONG, "--output_dir", self.folder, *flags]
        with self.said.open("w") as said:
            self.launched = subprocess.Popen(
                list(map(str, command)), stderr=said, stdout=said, cwd=ROOT, start_new_session=True,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
            )  # fmt: skip
        deadline = time.monotonic() + 90
        while not checkpoints.whole_checkpoints(self.folder):
            assert self.launched.poll() is None and time.monotonic() < deadline, self.said.read_text()
            time.sleep(0.05)
        processes = psutil.Process(self.launched.pid).children(recursive=True)
        self.training = processes[0] if by == "accelerate" else psutil.Process(self.launched.pid)
        self.workers = self.training.children()

    def end(self) -> dict:
        """Wait for all of it to be gone; what is in last_exit.json."""
        _, alive = psutil.wait_procs([self.training, *self.workers], timeout=60)
        assert not alive, self.said.read_text()
        path = self.folder / LAST_EXIT
        return json.loads(path.read_text()) if path.exists() else {}


@pytest.fixture
def start(tmp_path):
    runs = []

    def begin(*flags, **options):
        runs.append(Run(tmp_path, *flags, **options))
        return runs[-1]

    yield begin
    for run in runs:
        for process in (*run.workers, run.training, run.launched):
            with contextlib.suppress(psutil.Error):
                process.kill()
        run.launched.wait()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_all_processes_ends_the_run_in_good_order(start, number):
    run = start("--dataloader_num_workers", "2")
    assert len(run.workers) >= 2
    os.killpg(run.launched.pid, number)  # as Ctrl-C does
    assert run.launched.wait(60) == 128 + number, run.said.read_text()
    told, said = run.end(), run.said.read_text()
    newest = checkpoints.whole_checkpoints(run.folder)[-1]
    assert (told["status"], told["exit_code"], told["checkpoint"]) == ("stopped", 128 + number, newest.name)
    assert f"stopped by {number.name} after step {checkpoints.step_of(newest)}: {newest.name} is written" in said
    assert f"{number.name}: the run ends after this step" in said and "Traceback" not in said
    assert checkpoints.damage(newest, digests=True) is None


def test_a_launcher_that_hides_the_code_leaves_it_in_the_folder(start):
    run = start("--dataloader_num_workers", "1", by="accelerate")
    run.training.send_signal(signal.SIGTERM)
    assert run.launched.wait(60) != 0
    assert run.end()["exit_code"] == 143


def test_a_run_whose_launcher_has_died_ends_with_a_checkpoint(start):
    run = start("--dataloader_num_workers", "1", by="accelerate")
    os.kill(run.launched.pid, signal.SIGKILL)
    told = run.end()
    assert told["exit_code"] == 143 and "launcher has died" in told["reason"]
    step = checkpoints.step_of(checkpoints.whole_checkpoints(run.folder)[-1])
    assert f"after step {step}: checkpoint-{step} is written" in told["reason"]


def test_a_second_signal_ends_at_once(start, monkeypatch):
    run = start("--dataloader_num_workers", "1", "--config_overrides", "num_hidden_layers=1", "--batch_size", "500",
                "--gradient_accumulation_steps", "500", "--save_steps", "1", "--save_total_limit", "1")  # fmt: skip
    before = checkpoints.whole_checkpoints(run.folder)[-1]
    run.training.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    run.training.send_signal(signal.SIGTERM)
    assert run.launched.wait(5) == 143
    assert run.end() == {}  # nobody was left to write it
    assert checkpoints.whole_checkpoints(run.folder)[-1] == before


def test_signals_outside_of_training_end_the_program_at_once():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Stopped) as stopped, StopRequest():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)
    assert stopped.value.status == 143 and signal.getsignal(signal.SIGTERM) == before


ORPHAN = """
import os, signal, subprocess, sys, time
parent = os.getppid()
print(os.getpid(), flush=True)
while os.getppid() == parent:
    time.sleep(0.01)
from domain_canine.stopping import StopRequest
stop = StopRequest(parent)
open(sys.argv[1], "w").write(f"{stop.asked()} {stop.why}")
"""


@pytest.mark.parametrize("launched", [True, False])
def test_a_launcher_that_dies_before_the_imports_are_done_leaves_no_orphan(tmp_path, launched):
    told, ours = tmp_path / "told", {"PYTHONPATH": str(ROOT)}
    ours |= {"ACCELERATE_MIXED_PRECISION": "no"} if launched else {}
    starts = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {ORPHAN!r}, {str(told)!r}]).wait()"
    environment = {name: value for name, value in os.environ.items() if name not in stopping.MARKS}
    launcher = subprocess.Popen([sys.executable, "-c", starts], stdout=subprocess.PIPE, env=environment | ours)
    assert int(launcher.stdout.readline())
    launcher.kill()
    launcher.wait()
    deadline = time.monotonic() + 60
    while not (told.exists() and told.read_text()) and time.monotonic() < deadline:
        time.sleep(0.05)
    expected = "True ended, since its launcher has died," if launched else "False "
    assert told.read_text() == expected


def test_an_echo_does_not_disturb_the_end_and_a_second_signal_does(monkeypatch):
    exits = []
    monkeypatch.setattr(os, "_exit", exits.append)
    monkeypatch.setattr(stopping, "ECHO", 0.2)
    with StopRequest() as stop:
        stop._launcher = os.getppid()
        with stop.after_a_step():
            os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)  # while the end is written down
        assert exits == []
        time.sleep(0.3)
        os.kill(os.getpid(), signal.SIGTERM)
        assert exits == [143]


def test_nobody_who_catches_all_errors_catches_a_signal():
    with pytest.raises(Stopped), StopRequest(), contextlib.suppress(Exception):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)


def test_what_a_launcher_passes_on_is_no_second_signal(monkeypatch):
    exits = []
    monkeypatch.setattr(os, "_exit", exits.append)
    monkeypatch.setattr(stopping, "ECHO", 0.2)
    for launched, expected in ((True, [143]), (False, [143, 143])):
        exits.clear()
        with StopRequest() as stop, stop.after_a_step():
            stop._launcher = os.getppid() if launched else 0
            for pause in (0, 0, 0.3):
                time.sleep(pause)
                os.kill(os.getpid(), signal.SIGTERM)
            assert stop.asked()
        assert exits == expected


def test_a_hangup_is_heeded_unless_nohup_has_it_ignored():
    with StopRequest() as stop, stop.after_a_step():
        os.kill(os.getpid(), signal.SIGHUP)
        assert stop.asked() and stop.signal == signal.SIGHUP
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopRequest() as stop, stop.after_a_step():
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop.asked()
    finally:
        signal.signal(signal.SIGHUP, before)


def test_processes_stop_after_the_same_step_when_one_is_told(tmp_path):
    """SIGTERM to the second of two; the first has heard nothing."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--rdzv_backend", "c10d",
               "--rdzv_endpoint", "localhost:0", SCRIPT, *LONG, "--ddp_backend", "gloo", "--output_dir",
               str(tmp_path / "run"), "--dataloader_num_workers", "1"]  # fmt: skip
    with (tmp_path / "said.txt").open("w") as said:
        launched = subprocess.Popen(
            command, stderr=said, stdout=said, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}
        )
    try:
        deadline = time.monotonic() + 90
        while not checkpoints.whole_checkpoints(tmp_path / "run"):
            assert launched.poll() is None and time.monotonic() < deadline, (tmp_path / "said.txt").read_text()
            time.sleep(0.05)
        ranks = [each for each in psutil.Process(launched.pid).children() if SCRIPT in each.cmdline()]
        assert len(ranks) == 2
        second = next(each for each in ranks if each.environ()["RANK"] == "1")
        second.send_signal(signal.SIGTERM)
        launched.wait(60)
    finally:
        for process in (*psutil.Process().children(recursive=True),):
            process.kill()
    told = json.loads((tmp_path / "run" / LAST_EXIT).read_text())
    newest = checkpoints.whole_checkpoints(tmp_path / "run")[-1]
    assert told["exit_code"] == 143 and told["checkpoint"] == newest.name and "checkpoint-" in told["reason"]
    assert f"after step {checkpoints.step_of(newest)}:" in told["reason"]
    assert {"rng_state_0.pth", "rng_state_1.pth"} <= {path.name for path in newest.iterdir()}
