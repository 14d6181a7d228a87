"""The run folder: held by one run, and telling how the latest one ended."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT
from test_run import QUICK, call_main

from domain_canine import run_folder, startup
from domain_canine.errors import UserError, run
from domain_canine.guards import out_of_memory
from domain_canine.run_file import _same
from domain_canine.run_folder import LAST_EXIT, RUN_FILE, RunFolder, refuse_foreign_folder

HOLD = """
import sys, time
from types import SimpleNamespace
from domain_canine.run_folder import RunFolder
args = SimpleNamespace(output_dir=sys.argv[1], process_index=0, world_size=1, resume_from_checkpoint="newest")
folder = RunFolder(args).__enter__()
folder.claim(lambda: (folder.path / "run_arguments.json").write_text("[]"))
print("held", flush=True)
time.sleep(60)
"""


def arguments(folder, **changes):
    told = {"output_dir": str(folder), "process_index": 0, "world_size": 1, "resume_from_checkpoint": None} | changes
    return SimpleNamespace(**told)


def claim(folder: RunFolder) -> None:
    folder.claim(lambda: (folder.path / RUN_FILE).write_text("[]"))


@pytest.fixture
def holder(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "run")], stdout=subprocess.PIPE, cwd=ROOT, text=True
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_a_folder_that_a_live_run_holds_is_refused_until_that_run_is_dead(tmp_path, holder, monkeypatch):
    monkeypatch.setattr(run_folder, "GRACE", 0.3)
    again = arguments(tmp_path / "run", resume_from_checkpoint="newest")
    with pytest.raises(UserError, match=rf"is held by a run that is alive \(process {holder.pid} on "):
        RunFolder(again).__enter__()
    holder.kill()
    holder.wait()
    with RunFolder(again) as folder:
        claim(folder)


def test_the_command_refuses_a_folder_that_is_held(tmp_path, holder, monkeypatch, names_file):
    monkeypatch.setattr(run_folder, "GRACE", 0.3)
    before = sorted(os.listdir(tmp_path / "run"))
    with pytest.raises(UserError, match="is held by a run that is alive"):
        call_main(monkeypatch, *QUICK, "--dataset", names_file, "--output_dir", tmp_path / "run", "--resume_from")
    assert sorted(os.listdir(tmp_path / "run")) == before


def test_of_two_runs_that_start_at_once_one_gets_the_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(run_folder, "GRACE", 0.1)
    first, second = (RunFolder(arguments(tmp_path / "run")) for _ in range(2))
    with first, second:
        claim(first)
        with pytest.raises(UserError, match="is held by a run"):
            claim(second)
        (first.path / "checkpoint-5").mkdir()
        first.lock.release()
        with pytest.raises(UserError, match="holds an earlier run"):
            claim(second)


def test_a_run_tells_how_it_ended(tmp_path, names_file, monkeypatch):
    run = tmp_path / "run"
    assert call_main(monkeypatch, *QUICK, "--dataset", names_file, "--output_dir", run, "--use_cpu") == 0
    told = json.loads((run / LAST_EXIT).read_text())
    assert told["status"] == "finished" and told["exit_code"] == 0 and told["reason"] is None
    assert (run / told["checkpoint"]).is_dir()
    monkeypatch.setattr("domain_canine.trainer.DomainTrainer.compute_loss", lambda *args, **options: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        call_main(monkeypatch, *QUICK, "--epochs", 2, "--dataset", names_file, "--output_dir", run, "--use_cpu",
                  "--resume_from_checkpoint")  # fmt: skip
    told = json.loads((run / LAST_EXIT).read_text())
    assert (told["status"], told["exit_code"], told["reason"]) == ("failed", 1, "division by zero")


def test_while_a_run_lasts_nothing_is_told_of_the_one_before(tmp_path):
    with RunFolder(arguments(tmp_path / "run")) as folder:
        claim(folder)
    assert json.loads((tmp_path / "run" / LAST_EXIT).read_text())["status"] == "finished"
    with RunFolder(arguments(tmp_path / "run", resume_from_checkpoint="newest")) as folder:
        claim(folder)
        assert not (tmp_path / "run" / LAST_EXIT).exists()


def test_of_several_processes_the_first_failure_is_told(tmp_path):
    with RunFolder(arguments(tmp_path / "run")) as folder:
        claim(folder)
        second = RunFolder(arguments(tmp_path / "run", process_index=1))
        second.ours = True
        second.__exit__(UserError, UserError("the memory is out"), None)
        folder.__exit__(RuntimeError, RuntimeError("connection closed by peer"), None)
        told = json.loads((tmp_path / "run" / LAST_EXIT).read_text())
        assert (told["reason"], told["process"], told["exit_code"]) == ("the memory is out", 1, 2)


def test_a_folder_that_another_machine_does_not_see_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(run_folder.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(run_folder, "agreed", lambda args, decide: None)  # the main process did it, elsewhere
    with pytest.raises(UserError, match="several machines need a folder on a file system that they share"):
        claim(RunFolder(arguments(tmp_path / "run", process_index=8, world_size=16)))


def test_a_mistake_that_is_found_late_leaves_no_folder(tmp_path):
    with pytest.raises(UserError), RunFolder(arguments(tmp_path / "run")):
        raise UserError("found late")
    assert not (tmp_path / "run").exists()


def test_a_folder_that_cannot_be_written_is_one_message(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be made or written: Not a directory; give another folder"):
        RunFolder(arguments(tmp_path / "file" / "run")).__enter__()


def test_a_run_killed_at_its_very_start_can_be_started_again(tmp_path):
    """Whatever lies there before the first checkpoint, half-written files too, is nothing that could be lost."""
    left = (".lock", "..lock.json.4711", ".lock.json", "run_arguments.part", "run_arguments.json", "..last_exit.json.4711",
            "last_exit.json", "not_finite-3.txt", "runs", ".writing")  # fmt: skip
    for count in range(len(left) + 1):
        folder = tmp_path / str(count)
        folder.mkdir()
        for name in left[:count]:
            (folder / name).touch()
        refuse_foreign_folder(folder, resuming=False)
    for name in ("checkpoint-5", "model.safetensors"):
        (folder / name).touch()
        with pytest.raises(UserError, match="holds an earlier run"):
            refuse_foreign_folder(folder, resuming=False)
        (folder / name).unlink()
    refuse_foreign_folder(folder, resuming=False)
    (folder / "run_arguments.json").unlink()
    with pytest.raises(UserError, match="not a run of this program"):
        refuse_foreign_folder(folder, resuming=True)


def test_arguments_that_are_damaged_are_a_message_and_can_be_passed_over(tmp_path, names_file, monkeypatch):
    run = tmp_path / "run"
    assert call_main(monkeypatch, *QUICK, "--dataset", names_file, "--output_dir", run, "--use_cpu") == 0
    again = [
        *QUICK,
        "--epochs",
        2,
        "--dataset",
        names_file,
        "--output_dir",
        run,
        "--use_cpu",
        "--resume_from_checkpoint",
    ]
    for damaged in ("", '[{"settings"', "[]", "{}"):
        (run / RUN_FILE).write_text(damaged)
        with pytest.raises(UserError, match="is damaged: .*\n.*--allow_changed_run"):
            call_main(monkeypatch, *again)
    (run / RUN_FILE).unlink()
    run_folder.refuse_foreign_folder(run, resuming=True)  # a checkpoint of ours is there
    (run / RUN_FILE).write_text("")
    assert call_main(monkeypatch, *again, "--allow_changed_run") == 0
    assert len(json.loads((run / RUN_FILE).read_text())) == 1


def test_a_run_that_was_ended_before_its_first_checkpoint_goes_on_by_the_same_command(
    tmp_path, names_file, monkeypatch, capsys
):
    run = tmp_path / "run"
    run.mkdir()
    (run / RUN_FILE).write_text("[]")
    again = [*QUICK, "--dataset", names_file, "--output_dir", run, "--use_cpu", "--resume_from_checkpoint"]
    assert call_main(monkeypatch, *again) == 0
    assert "the run starts afresh" in capsys.readouterr().err
    assert call_main(monkeypatch, *again, "--epochs", 2) == 0
    assert "goes on  from" in capsys.readouterr().err


def test_a_run_that_has_diverged_says_so(tmp_path, names_file, monkeypatch, capsys):
    run = tmp_path / "run"
    flags = ["--learning_rate", "50", "--warmup_steps", "0", "--max_grad_norm", "0"]
    assert call_main(monkeypatch, *QUICK, "--dataset", names_file, "--output_dir", run, "--use_cpu", *flags) == 0
    assert "worse than guessing among the 128 classes: the run has diverged" in capsys.readouterr().err


def test_a_path_is_the_same_however_it_is_spelled_from_where_its_run_was_started(tmp_path, monkeypatch):
    for folder in "ab":
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "names.txt").write_text(f"{folder}.com\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path / "b")
    there = str(tmp_path / "a")
    for now in ("../a/names.txt", "~/a/names.txt", str(tmp_path / "a" / "names.txt")):
        assert _same("names.txt", now, there) and _same("~/a/names.txt", now, there)
    assert not _same("names.txt", str(tmp_path / "b" / "names.txt"), there)
    assert not _same("none.txt", "names.txt", there) and not _same(3, 4, there) and not _same(None, "names.txt", there)


@pytest.mark.parametrize("rank", [0, 1])
def test_an_error_of_one_process_alone_is_told_by_it(monkeypatch, capsys, rank):
    """The others lose it, and fail for that: by what they say nobody knows why."""

    def told(error):
        def main():
            raise error

        with pytest.raises(SystemExit) as left:
            run(main)
        assert left.value.code == 2
        return capsys.readouterr().err

    monkeypatch.setenv("LOCAL_RANK", str(rank))
    monkeypatch.setattr("sys.stderr", sys.stderr)  # which run replaces
    args = SimpleNamespace(per_device_train_batch_size=4, gradient_accumulation_steps=1, per_device_eval_batch_size=4,
                           output_dir="none", records_steps=False, device="cuda:1")  # fmt: skip
    assert "the memory of cuda:1 is out" in told(out_of_memory(torch.OutOfMemoryError("CUDA out of memory."), args))
    assert ("error: of all" in told(UserError("of all"))) == (rank == 0)
    assert "no space is left" in told(OSError(errno.ENOSPC, "No space left on device"))


def test_a_script_hands_over_ctrl_c_after_its_imports():
    """Meanwhile it has no traceback, and then the message of ``run``."""
    script = [sys.executable, ROOT / "run_mlm_domains.py", "--help"]
    with subprocess.Popen(script, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        time.sleep(0.5)  # imports take seconds
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert (out, err) == ("", "") and process.returncode == -signal.SIGINT
    before, seen = signal.signal(signal.SIGINT, signal.SIG_DFL), []
    try:
        with pytest.raises(SystemExit):
            run(lambda: seen.append(signal.getsignal(signal.SIGINT)))
    finally:
        signal.signal(signal.SIGINT, before)
    assert seen == [signal.default_int_handler]


@pytest.mark.parametrize("alike", [True, False])
def test_machines_with_other_names_do_not_train_together(tmp_path, monkeypatch, alike):
    """Each would take its own for its share of the same names; all of them are told."""
    told = [
        ("a", "content"),
        ("b", "content"),
        ("c", "content" if alike else "other"),
        ("c", "other" if not alike else "content"),
    ]
    monkeypatch.setattr("domain_canine.startup.gather_object", lambda own: told)
    monkeypatch.setattr("domain_canine.startup.settings", lambda *args: {})
    claimed = []
    folder = SimpleNamespace(claim=claimed.append)
    how = nullcontext() if alike else pytest.raises(UserError, match="^c has other names than a: .* share")
    with how:
        startup.record(folder, SimpleNamespace(world_size=4), None, None, "content", None, {})
    assert len(claimed) == alike
