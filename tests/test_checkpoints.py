"""Checkpoints on disk: whole or absent, checked, rotated by step; and what becomes the final model."""

import hashlib
import json
import os
import shutil
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file
from small_runs import At, assert_equal, make_trainer, terminate, weights
from transformers import TrainerCallback

from domain_canine import checkpoints
from domain_canine.errors import Stopped, UserError
from domain_canine.stopping import StopRequest


def test_checkpoints_are_written_with_steps_and_epochs_and_once_each(finished):
    run = Path(finished.args.output_dir)
    # Steps 3, 6, 9 and the epochs' ends 5, 10; the newest 3 are kept, and the best.
    kept = [path.name for path in checkpoints.whole_checkpoints(run)]
    assert kept == ["checkpoint-6", "checkpoint-9", "checkpoint-10"]
    assert finished.state.best_global_step == 10
    assert not (run / checkpoints.WRITING).exists()
    assert sorted(entry.name for entry in run.iterdir()) == sorted(kept)
    files = {entry.name for entry in (run / "checkpoint-10").iterdir()}
    assert "model.safetensors" in files and "training_args.bin" not in files
    state = json.loads((run / "checkpoint-10" / "trainer_state.json").read_text())
    assert state["best_global_step"] == 10 and state["best_model_checkpoint"] is None


@pytest.mark.parametrize("damage", ["tear", "weights", "optimizer.pt", "rng_state.pth", "trainer_state.json"])
def test_a_broken_checkpoint_is_passed_over_with_a_warning(finished, tmp_path, capsys, damage):
    for name in ("checkpoint-9", "checkpoint-10"):
        shutil.copytree(Path(finished.args.output_dir) / name, tmp_path / name)
    newest = tmp_path / "checkpoint-10"
    if damage == "tear":
        (newest / "model.safetensors").write_bytes((newest / "model.safetensors").read_bytes()[:-100])
    else:
        (newest / damage.replace("weights", "model.safetensors")).unlink()
    assert not checkpoints.is_whole(newest)
    assert checkpoints.to_resume_from(tmp_path, "newest") == str(tmp_path / "checkpoint-9")
    assert "checkpoint-10 is broken and is passed over" in capsys.readouterr().err
    aside = tmp_path / "checkpoint-10.broken"
    assert aside.is_dir() and not newest.exists()
    aside.rename(newest)
    with pytest.raises(UserError, match="is not a whole checkpoint"):
        checkpoints.to_resume_from(tmp_path, str(newest))


@pytest.mark.parametrize(("strategy", "steps"), [("epoch", 5), ("epoch", 3), ("steps", 5), ("steps", 4)])
def test_no_step_is_saved_twice_and_none_before_its_evaluation(tmp_path, monkeypatch, strategy, steps):
    happened = []
    moved = checkpoints.move_in
    monkeypatch.setattr(checkpoints, "move_in", lambda a, b: (happened.append(b.name), moved(a, b)))
    trainer = make_trainer(tmp_path, save_steps=steps, eval_strategy=strategy, eval_steps=steps)

    class Watch(TrainerCallback):
        def on_evaluate(self, args, state, control, **kwargs):
            happened.append(f"evaluation-{state.global_step}")

    trainer.add_callback(Watch())
    trainer.train()
    assert len(happened) == len(set(happened))
    for step in (5, 10):
        if f"evaluation-{step}" in happened:
            assert happened.index(f"evaluation-{step}") < happened.index(f"checkpoint-{step}")
    assert "checkpoint-10" in happened


def test_what_a_killed_write_left_is_not_taken_over(tmp_path):
    junk = tmp_path / checkpoints.WRITING / "checkpoint-5" / "junk"
    junk.parent.mkdir(parents=True)
    junk.write_text("half")
    make_trainer(tmp_path, num_train_epochs=1).train()
    assert not (tmp_path / "checkpoint-5" / "junk").exists() and not junk.exists()


def test_the_best_checkpoint_outlives_rotation_and_becomes_the_final_model(tmp_path, told_losses):
    told_losses(3.0, 1.0, 2.0, 2.5, 2.0, 2.0)
    trainer = make_trainer(tmp_path, num_train_epochs=6, save_total_limit=2, early_stopping_patience=5)
    trainer.train()
    best = f"checkpoint-{trainer.state.best_global_step}"
    kept = [path.name for path in checkpoints.whole_checkpoints(tmp_path)]
    assert kept == ["checkpoint-10", "checkpoint-25", "checkpoint-30"] and best == kept[0]
    which, metrics = trainer.save_final()
    assert which == "best" and metrics["eval_loss"] == 1.0 and metrics["step"] == 10
    assert json.loads((tmp_path / "eval_results.json").read_text()) == metrics
    final, chosen = load_file(tmp_path / "model.safetensors"), load_file(tmp_path / best / "model.safetensors")
    assert_equal(final, chosen)
    names = {entry.name for entry in tmp_path.iterdir() if entry.is_file()}
    assert {"config.json", "tokenizer_config.json", "modeling_domain_canine.py"} <= names
    # Nothing that only a resume wants, but the log, of which cards and reports are made.
    assert [name for name in names if checkpoints.STATE.fullmatch(name)] == ["trainer_state.json"]
    assert json.loads((tmp_path / "trainer_state.json").read_text())["log_history"] == trainer.state.log_history


def test_without_checkpoints_the_last_weights_are_the_final_ones_and_said_to_be(tmp_path, told_losses):
    told_losses(1.0, 2.0)
    trainer = make_trainer(tmp_path, save_strategy="no")
    trainer.train()
    assert not list(tmp_path.glob("checkpoint-*"))
    which, metrics = trainer.save_final()
    assert which == "last" and metrics["eval_loss"] == 2.0
    assert_equal(load_file(tmp_path / "model.safetensors"), weights(trainer))


def test_the_best_of_another_run_is_none_of_ours(finished, tmp_path, told_losses):
    told_losses(50.0)  # worse than the other run's best
    elsewhere = make_trainer(tmp_path, num_train_epochs=3, learning_rate=1e-9)
    elsewhere.train(resume_from_checkpoint=str(Path(finished.args.output_dir) / "checkpoint-10"))
    assert elsewhere.state.best_global_step == 15
    which, metrics = elsewhere.save_final()
    assert which == "best" and metrics["step"] == 15


def test_the_manifest_holds_sizes_and_digests_of_all_files(finished):
    checkpoint = Path(finished.args.output_dir) / "checkpoint-10"
    told = json.loads((checkpoint / checkpoints.MANIFEST).read_text())
    files = {path.name for path in checkpoint.iterdir()} - {checkpoints.MANIFEST}
    assert set(told) == files and {"model.safetensors", "optimizer.pt", "rng_state.pth", "progress.json"} <= files
    for name in files:
        content = (checkpoint / name).read_bytes()
        assert told[name] == {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def test_files_in_folders_are_sealed_too(tmp_path):
    """As those of low-rank updates are."""
    (tmp_path / "lora").mkdir()
    (tmp_path / "lora" / "adapter.safetensors").write_bytes(b"weights")
    checkpoints.seal(tmp_path)
    assert checkpoints.is_whole(tmp_path)
    (tmp_path / "lora" / "adapter.safetensors").write_bytes(b"changed")
    assert checkpoints.damage(tmp_path, digests=True) == "the content of lora/adapter.safetensors has changed"


@pytest.mark.parametrize("greater", [False, True])
def test_of_equal_evaluations_the_first_is_the_best(tmp_path, greater):
    for step in (3, 6, 9):
        (tmp_path / f"checkpoint-{step}").mkdir()
        checkpoints.seal(tmp_path / f"checkpoint-{step}")
    history = [{"eval_x": 2.0, "step": step} for step in (3, 6)] + [{"eval_x": 1.0 if greater else 3.0, "step": 9}]
    assert checkpoints.best_evaluation(tmp_path, history, "eval_x", greater) == (2.0, 3)


def test_a_checkpoint_whose_step_is_there_already_takes_its_place(tmp_path):
    """Older ones could not be cleared away behind it, so that it is written once more."""
    for content in ("before", "after"):
        written = tmp_path / checkpoints.WRITING / "checkpoint-3"
        written.mkdir(parents=True)
        (written / "file").write_text(content)
        checkpoints.seal(written)
        checkpoints.move_in(written, tmp_path / "checkpoint-3")
    assert (tmp_path / "checkpoint-3" / "file").read_text() == "after" and checkpoints.is_whole(
        tmp_path / "checkpoint-3"
    )


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt", "trainer_state.json"])
def test_a_flipped_bit_is_found_before_a_resume(finished, tmp_path, capsys, name):
    for folder in ("checkpoint-9", "checkpoint-10"):
        shutil.copytree(Path(finished.args.output_dir) / folder, tmp_path / folder)
    path = tmp_path / "checkpoint-10" / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert checkpoints.is_whole(tmp_path / "checkpoint-10")  # by its sizes
    assert checkpoints.to_resume_from(tmp_path, "newest") == str(tmp_path / "checkpoint-9")
    assert f"checkpoint-10 is broken and is passed over: the content of {name} has changed" in capsys.readouterr().err


def test_everything_is_on_the_disk_before_a_checkpoint_has_its_name(tmp_path, monkeypatch):
    happened = []
    synced, renamed = os.fsync, os.replace

    def fsync(descriptor):
        happened.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        synced(descriptor)

    def replace(source, target):
        happened.append((str(source), str(target)))
        renamed(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    make_trainer(tmp_path, num_train_epochs=1).train()
    written, named = str(tmp_path / checkpoints.WRITING / "checkpoint-5"), str(tmp_path / "checkpoint-5")
    moved = happened.index((written, named))
    files = {f"{written}/{path.name}" for path in (tmp_path / "checkpoint-5").iterdir()}
    assert files | {written} <= set(happened[:moved]) and str(tmp_path) in happened[moved:]


def test_a_checkpoint_that_is_being_deleted_has_no_name_any_more(finished, tmp_path, monkeypatch):
    for folder in ("checkpoint-9", "checkpoint-10"):
        shutil.copytree(Path(finished.args.output_dir) / folder, tmp_path / folder)
    left = []
    monkeypatch.setattr(shutil, "rmtree", lambda path, **options: left.append(sorted(os.listdir(tmp_path))))
    checkpoints.prune(tmp_path, 1, None)
    assert left and all(entry == [checkpoints.WRITING, "checkpoint-10"] for entry in left[1:])


def test_rotation_goes_by_step_and_clears_older_broken_ones(finished, tmp_path):
    for step in (2, 3, 9, 10, 11, 100):
        shutil.copytree(Path(finished.args.output_dir) / "checkpoint-9", tmp_path / f"checkpoint-{step}")
    for step in (3, 11):
        (tmp_path / f"checkpoint-{step}" / "model.safetensors").unlink()
    (tmp_path / "checkpoint-mine").mkdir()
    os.utime(tmp_path / "checkpoint-9", (time.time() + 1000,) * 2)
    checkpoints.prune(tmp_path, 2, best_step=2)
    left = {path.name for path in tmp_path.glob("checkpoint-*")}
    # The newest two whole ones, the best, a broken one that is newer (a warning may name it), and what is not ours.
    assert left == {"checkpoint-10", "checkpoint-100", "checkpoint-2", "checkpoint-11", "checkpoint-mine"}


def test_a_broken_newest_checkpoint_costs_no_later_one(tmp_path):
    """Whole by its sizes it would count among those to keep, and what is written since be cleared away."""
    make_trainer(tmp_path, save_steps=2, eval_strategy="no", num_train_epochs=2, save_total_limit=None).train()
    for step in (8, 10):
        weights_file = tmp_path / f"checkpoint-{step}" / "model.safetensors"
        weights_file.write_bytes(bytes(100) + weights_file.read_bytes()[100:])
    with StopRequest() as stop, pytest.raises(Stopped):
        again = make_trainer(tmp_path, stop=stop, save_steps=1, eval_strategy="no", save_total_limit=1)
        again.add_callback(At(7, terminate))
        again.train(resume_from_checkpoint=checkpoints.to_resume_from(tmp_path, "newest"))
    left = {path.name for path in tmp_path.glob("checkpoint-*")}
    assert left == {"checkpoint-7", "checkpoint-8.broken", "checkpoint-10.broken"}
    assert checkpoints.to_resume_from(tmp_path, "newest") == str(tmp_path / "checkpoint-7")


def test_a_broken_checkpoint_bars_no_path_before_it(finished, tmp_path):
    for name in ("checkpoint-6", "checkpoint-9"):
        shutil.copytree(Path(finished.args.output_dir) / name, tmp_path / name)
    weights_file = tmp_path / "checkpoint-9" / "model.safetensors"
    weights_file.write_bytes(bytes(100) + weights_file.read_bytes()[100:])
    wanted = str(tmp_path / "checkpoint-6")
    assert checkpoints.to_resume_from(tmp_path, wanted) == wanted
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint-6", "checkpoint-9.broken"}


@pytest.mark.parametrize("manifest", ['{"config.json": {}}', "[1]", '{"config.json": 3}', "", "null"])
def test_a_manifest_that_is_none_is_a_broken_checkpoint(finished, tmp_path, manifest):
    shutil.copytree(Path(finished.args.output_dir) / "checkpoint-9", tmp_path / "checkpoint-9")
    (tmp_path / "checkpoint-9" / checkpoints.MANIFEST).write_text(manifest)
    assert checkpoints.damage(tmp_path / "checkpoint-9") and checkpoints.whole_checkpoints(tmp_path) == []


def test_a_run_that_was_ended_before_its_first_checkpoint_starts_afresh(tmp_path, capsys):
    assert checkpoints.to_resume_from(tmp_path, "newest", begun=True) is None
    assert "has no checkpoint yet: the run starts afresh" in capsys.readouterr().err
    with pytest.raises(UserError, match="there is no checkpoint in .*; leave the flag out"):
        checkpoints.to_resume_from(tmp_path, "newest")


def test_what_one_process_could_not_write_makes_no_checkpoint(tmp_path, monkeypatch):
    """The first process is told of it before it gives the checkpoint its name."""
    trainer = make_trainer(tmp_path, save_steps=3, eval_strategy="no")
    told, sealed = [], []
    monkeypatch.setattr(type(trainer), "_any", lambda self, flag: told.append(flag) or flag or len(told) == 1)
    monkeypatch.setattr(checkpoints, "seal", lambda path: sealed.append(path.name))
    monkeypatch.setattr(checkpoints, "move_in", lambda *paths: None)
    monkeypatch.setattr(checkpoints, "prune", lambda *arguments: None)
    trainer.train()
    assert told[0] is False and sealed == ["checkpoint-5", "checkpoint-6", "checkpoint-9", "checkpoint-10"]


def test_the_best_checkpoint_stays_where_a_better_one_could_not_be_written(tmp_path, told_losses, monkeypatch):
    told_losses(2.0, 1.0, 3.0, 3.1)
    trainer = make_trainer(tmp_path, num_train_epochs=4, save_total_limit=1, early_stopping_patience=0)
    seal = checkpoints.seal

    def full(path):
        if path.name == "checkpoint-10":
            raise OSError(28, "No space left on device")
        seal(path)

    monkeypatch.setattr(checkpoints, "seal", full)
    trainer.train()
    assert {path.name for path in tmp_path.glob("checkpoint-*")} == {"checkpoint-5", "checkpoint-20"}
    which, metrics = trainer.save_final()
    assert which == "best" and metrics["eval_loss"] == 2.0


@pytest.mark.parametrize("flag", ["save_strategy", "eval_strategy"])
def test_weights_that_were_not_compared_with_the_best_are_the_final_ones(finished, tmp_path, flag):
    shutil.copytree(finished.args.output_dir, tmp_path / "run")
    again = make_trainer(tmp_path / "run", num_train_epochs=4, **{flag: "no"})
    again.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-10"))
    which, _ = again.save_final()
    assert which == "last" and again.state.global_step == 20
    assert_equal(load_file(tmp_path / "run" / "model.safetensors"), weights(again))


@pytest.mark.parametrize("strategy", ["no", "steps"])
def test_a_full_disk_at_the_end_is_a_message_and_leaves_nothing_half_written(tmp_path, monkeypatch, strategy):
    trainer = make_trainer(tmp_path, save_strategy=strategy, num_train_epochs=1)
    trainer.train()

    def full(source, target):
        Path(target).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", full)
    told = "they are safe in checkpoint-5" if strategy == "steps" else "there is no checkpoint of them"
    with pytest.raises(UserError, match=f"No space left on device.*; {told}"):
        trainer.save_final()
    assert {entry.name for entry in tmp_path.iterdir()} <= {"checkpoint-5"}


def test_a_run_that_was_moved_goes_on_and_knows_its_best(tmp_path, told_losses, caplog):
    told_losses(1.0, 2.0, 3.0, 4.0)
    make_trainer(tmp_path / "here", num_train_epochs=2, early_stopping_patience=0).train()
    (tmp_path / "here").rename(tmp_path / "there")
    moved = make_trainer(tmp_path / "there", num_train_epochs=3, early_stopping_patience=0)
    moved.train(resume_from_checkpoint=checkpoints.to_resume_from(tmp_path / "there", "newest"))
    assert moved.state.global_step == 15 and moved.state.best_global_step == 5
    assert moved.save_final()[1]["step"] == 5
    assert "does not exist" not in caplog.text
