"""A run that was stopped and goes on is the run that never stopped."""

import json
import signal
from pathlib import Path

import pytest
import torch
from small_runs import At, assert_equal, entries, make_trainer, terminate, weights
from transformers import TrainerCallback

from domain_canine import checkpoints
from domain_canine.errors import Stopped, UserError
from domain_canine.run_file import CONTENT, asked_anew, in_weights, write_run_file
from domain_canine.run_folder import RUN_FILE
from domain_canine.stopping import StopRequest


class WhenEvaluating(TrainerCallback):
    def __init__(self, call):
        self.call = call

    def on_prediction_step(self, args, state, control, **kwargs):
        self.call()


def stopped(folder: Path, callback: TrainerCallback, checkpoint: str | None = None, **options) -> str:
    """Train until the callback has sent a signal; what was told."""
    with StopRequest() as stop:
        trainer = make_trainer(folder, stop=stop, **options)
        trainer.add_callback(callback)
        with pytest.raises(Stopped) as told:
            trainer.train(resume_from_checkpoint=checkpoints.to_resume_from(folder, checkpoint))
    assert told.value.status == 128 + signal.SIGTERM
    return str(told.value)


def resumed(folder: Path, **options):
    trainer = make_trainer(folder, **options)
    trainer.train(resume_from_checkpoint=checkpoints.to_resume_from(folder, "newest"))
    return trainer


def history(trainer) -> list[dict]:
    """The log, without what the clock says and the summary of the last start alone."""
    timed = ("runtime", "per_second", "total_flos")
    log = [entry for entry in trainer.state.log_history if "train_runtime" not in entry]
    return [{name: value for name, value in entry.items() if not name.endswith(timed)} for entry in log]


def test_a_run_stopped_at_any_step_and_resumed_equals_the_one_never_stopped(tmp_path):
    # Losses are logged every third step, so that checkpoints fall between two entries; 5 and 10 end an epoch.
    options = {"logging_steps": 3, "save_steps": 1000, "metric_for_best_model": "accuracy"}
    never = make_trainer(tmp_path / "never", **options)
    never.train()
    for step in range(1, 10):
        told = stopped(tmp_path / str(step), At(step, terminate), **options)
        assert f"after step {step}: checkpoint-{step} is written" in told
        again = resumed(tmp_path / str(step), **options)
        assert_equal(weights(again), weights(never))
        assert history(again) == history(never)
        assert again.meter.loss() == never.meter.loss() and len(again.meter.latest) == 20
        assert again.state.best_metric == never.state.best_metric
        assert again.state.best_global_step == never.state.best_global_step
        for mine, theirs in zip(again.optimizer.state.values(), never.optimizer.state.values()):
            assert_equal(mine, theirs)


def test_a_crash_costs_the_steps_since_the_checkpoint_and_nothing_else(finished, tmp_path):
    def crash():
        raise KeyboardInterrupt

    for stop_at in (3, 5, 7):
        first = make_trainer(tmp_path / str(stop_at), save_steps=stop_at)
        first.add_callback(At(stop_at + 1, crash))
        with pytest.raises(KeyboardInterrupt):
            first.train()
        second = resumed(tmp_path / str(stop_at), save_steps=3)
        assert second.state.global_step == 10
        assert_equal(weights(second), weights(finished))
        assert entries(second, "eval_loss") == entries(finished, "eval_loss")


@pytest.mark.parametrize("strategy", ["epoch", "steps"])
def test_an_evaluation_that_a_signal_cut_short_is_made_up_for_first(tmp_path, strategy):
    options = {"eval_strategy": strategy, "eval_steps": 4, "save_steps": 1000}
    ends = [5, 10] if strategy == "epoch" else [4, 8, 10]
    never = make_trainer(tmp_path / "never", **options)
    never.train()
    for end in ends:
        signals = iter([None] * 3 * ends.index(end) + [terminate] + [None] * 100)
        told = stopped(tmp_path / str(end), WhenEvaluating(lambda signals=signals: (next(signals) or int)()), **options)
        assert f"after step {end}: checkpoint-{end} is written" in told
        state = json.loads((tmp_path / str(end) / f"checkpoint-{end}" / "trainer_state.json").read_text())
        assert not any("eval_loss" in entry and entry["step"] == end for entry in state["log_history"])
        again = resumed(tmp_path / str(end), **options)
        assert_equal(weights(again), weights(never))
        assert [entry for entry in history(again) if "eval_loss" in entry] == [
            entry for entry in history(never) if "eval_loss" in entry
        ]
        assert again.state.best_global_step == never.state.best_global_step
        assert again.save_final()[1]["eval_loss"] == never.save_final()[1]["eval_loss"]


def test_an_evaluation_that_was_made_is_not_made_again(tmp_path, told_losses):
    told_losses(1.0, 2.0, 3.0)
    make_trainer(tmp_path, num_train_epochs=2).train()
    again = resumed(tmp_path, num_train_epochs=3)
    assert entries(again, "eval_loss") == [1.0, 2.0, 3.0]


def test_the_evaluation_made_up_for_may_end_the_run(tmp_path, told_losses):
    options = {"num_train_epochs": 8, "early_stopping_patience": 2}
    told_losses(1.0, 1.5)
    stopped(tmp_path, At(15, terminate), **options)
    told_losses(1.5)
    again = resumed(tmp_path, **options)
    assert again.state.global_step == 15 and entries(again, "eval_loss") == [1.0, 1.5, 1.5]
    assert again.save_final()[1]["eval_loss"] == 1.0


def test_early_stopping_counts_evaluations_and_survives_a_resume(tmp_path, told_losses, capsys):
    options = {"num_train_epochs": 8, "save_total_limit": None, "early_stopping_patience": 3}
    told_losses(2.0, 1.0, 1.5, 1.5, 1.5)
    trainer = make_trainer(tmp_path, **options)
    trainer.train()
    assert trainer.state.global_step == 25  # three evaluations without gain after the second epoch
    told_losses(1.5)
    again = make_trainer(tmp_path, **options)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-20"))
    assert again.state.global_step == 25
    # What stopped early stays stopped, and says so.
    capsys.readouterr()
    ended = make_trainer(tmp_path, **options)
    ended.train(resume_from_checkpoint=str(tmp_path / "checkpoint-25"))
    assert ended.state.global_step == 25 and ended.save_final()[1]["eval_loss"] == 1.0
    assert "this run had ended at step 25 (it stopped early): nothing to train" in capsys.readouterr().err


def test_a_finished_run_is_not_trained_on(finished, tmp_path):
    run = Path(finished.args.output_dir)
    again = make_trainer(run, save_steps=3)
    again.train(resume_from_checkpoint=str(run / "checkpoint-10"))
    assert again.state.global_step == 10 and not (run / "checkpoint-11").exists()
    assert_equal(weights(again), weights(finished))
    with pytest.raises(UserError, match="would mix two runs"):
        checkpoints.to_resume_from(run, str(run / "checkpoint-6"))


def test_intervals_are_those_asked_for_now(tmp_path):
    stopped(tmp_path, At(2, terminate), save_steps=1000, logging_steps=1)
    again = resumed(tmp_path, save_steps=4, logging_steps=2, save_total_limit=None)
    assert {path.name for path in tmp_path.glob("checkpoint-*")} == {f"checkpoint-{step}" for step in (2, 4, 5, 8, 10)}
    assert [entry["step"] for entry in again.state.log_history if "loss" in entry] == [1, 2, 4, 6, 8, 10]


def test_no_checkpoint_is_written_where_none_is_wanted(tmp_path):
    told = stopped(tmp_path, At(3, terminate), save_strategy="no")
    assert "checkpoint-3 is NOT written" in told and not list(tmp_path.glob("checkpoint-*"))


def test_a_resume_draws_on_where_the_generators_were(tmp_path):
    stopped(tmp_path, At(3, terminate))
    torch.manual_seed(99)  # of another process
    again = resumed(tmp_path)
    never = make_trainer(tmp_path / "never")
    never.train()
    assert_equal(weights(again), weights(never))


def test_rates_are_those_asked_for_now(tmp_path):
    """A run that diverges can go on at a lower rate; with the same flags nothing moves."""
    options = {"lr_scheduler_type": "constant_with_warmup", "num_train_epochs": 3}
    stopped(tmp_path, At(7, terminate), **options)
    again = resumed(tmp_path, learning_rate=1e-5, weight_decay=0.5, **options)
    told = {entry["step"]: entry["learning_rate"] for entry in again.state.log_history if "loss" in entry}
    assert told[7] == 1e-3 and all(told[step] == 1e-5 for step in range(8, 16))
    assert {group["weight_decay"] for group in again.optimizer.param_groups} == {0.5, 0.0}


def test_a_longer_run_has_the_rates_of_its_new_length_at_once(tmp_path):
    make_trainer(tmp_path, num_train_epochs=1).train()
    never = make_trainer(tmp_path / "never", num_train_epochs=4)
    never.train()
    again = resumed(tmp_path, num_train_epochs=4)
    found, expected = (
        {entry["step"]: entry["learning_rate"] for entry in run.state.log_history if "loss" in entry}
        for run in (again, never)
    )
    assert all(found[step] == expected[step] for step in range(6, 21)) and found[5] != expected[5]


def test_another_optimiser_is_refused(tmp_path):
    stopped(tmp_path, At(2, terminate))
    with pytest.raises(UserError, match="--optim: the checkpoint is of another optimiser"):
        resumed(tmp_path, optim="sgd")


def test_patience_is_that_asked_for_now(tmp_path, told_losses):
    told_losses(1.0, 1.5)
    stopped(tmp_path, At(11, terminate), num_train_epochs=8, early_stopping_patience=2)
    told_losses(1.5, 1.5, 1.5)
    again = resumed(tmp_path, num_train_epochs=8, early_stopping_patience=4)
    assert again.state.global_step == 25
    # Switched off and on again, it counts from there.
    told_losses(1.5, 1.5, 1.5, 1.5)
    stopped(tmp_path / "off", At(2, terminate), num_train_epochs=8, early_stopping_patience=2)
    stopped(tmp_path / "off", At(6, terminate), checkpoint="newest", num_train_epochs=8, early_stopping_patience=0)
    path = checkpoints.to_resume_from(tmp_path / "off", "newest")
    state = json.loads((Path(path) / "trainer_state.json").read_text())
    assert "EarlyStopping" not in state["stateful_callbacks"]


def test_the_best_is_that_of_the_figure_asked_for_now(tmp_path, told_losses):
    told_losses(1.0, 2.0)
    first = make_trainer(tmp_path, num_train_epochs=2)
    first.train()
    assert first.state.best_global_step == 5
    state = tmp_path / "checkpoint-10" / "trainer_state.json"
    told = json.loads(state.read_text())
    for entry in told["log_history"]:
        if "eval_accuracy" in entry:
            entry["eval_accuracy"] = entry["step"] / 100
    state.write_text(json.dumps(told))
    (tmp_path / "checkpoint-10" / checkpoints.MANIFEST).unlink()
    checkpoints.seal(tmp_path / "checkpoint-10")
    told_losses(3.0)
    again = make_trainer(tmp_path, num_train_epochs=3, metric_for_best_model="accuracy")
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-10"))
    best = {entry["step"]: entry["eval_accuracy"] for entry in again.state.log_history if "eval_loss" in entry}
    assert best[10] == 0.1 and again.state.best_metric == max(best.values())
    assert again.state.best_global_step == max(best, key=best.get)


def test_after_another_question_the_best_is_looked_for_anew(tmp_path, told_losses, capsys):
    """Figures of other names, or of another objective, compare with nothing before."""
    told_losses(1.0, 5.0, 9.0, 8.0)
    make_trainer(tmp_path, early_stopping_patience=2).train()
    (tmp_path / RUN_FILE).write_text(json.dumps([{"resumed_from": None}, {"resumed_from": 10, "asks_anew": True}]))
    trainer = make_trainer(tmp_path, num_train_epochs=4, early_stopping_patience=2)
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-10"))
    assert (trainer.state.global_step, trainer.state.best_global_step) == (20, 20)
    assert "the best weights and the patience are counted anew" in capsys.readouterr().err
    told_losses(7.0)
    again = make_trainer(tmp_path, num_train_epochs=5, early_stopping_patience=2)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-20"))
    assert (again.state.global_step, again.state.best_global_step) == (25, 25)
    assert "counted anew" not in capsys.readouterr().err


def test_a_run_that_had_ended_keeps_its_best_whatever_would_be_asked_now(tmp_path, told_losses):
    """And one that stopped early goes on, since its patience was with another question."""
    told_losses(1.0, 5.0)
    make_trainer(tmp_path).train()
    (tmp_path / RUN_FILE).write_text(json.dumps([{"resumed_from": None}, {"resumed_from": 10, "asks_anew": True}]))
    ended = make_trainer(tmp_path)
    ended.train(resume_from_checkpoint=str(tmp_path / "checkpoint-10"))
    assert ended.state.best_global_step == 5 and ended.save_final()[0] == "best"
    told_losses(1.0, 5.0, 6.0)
    stopped = make_trainer(tmp_path / "early", num_train_epochs=4, early_stopping_patience=1)
    stopped.train()
    assert stopped.state.global_step == 10
    (tmp_path / "early" / RUN_FILE).write_text((tmp_path / RUN_FILE).read_text())
    told_losses(9.0, 8.0)
    on = make_trainer(tmp_path / "early", num_train_epochs=4, early_stopping_patience=1)
    on.train(resume_from_checkpoint=str(tmp_path / "early" / "checkpoint-10"))
    assert (on.state.global_step, on.state.best_global_step) == (20, 20)


@pytest.mark.parametrize(
    "begins, since",
    [
        ("0", 0), ("0 15! 5!", 5), ("0 800! 600!", 600), ("0 800! 600", 0), ("0 600! 800", 600), ("0 600! 0", 0), ("0 6! 6", 0), ("0 6! 6!", 6),
    ],
)  # fmt: skip
def test_since_when_a_run_asks_the_same(tmp_path, begins, since):
    starts = [{"resumed_from": int(each.strip("!")) or None, "asks_anew": "!" in each} for each in begins.split()]
    (tmp_path / RUN_FILE).write_text(json.dumps(starts))
    assert asked_anew(tmp_path) == since


@pytest.mark.parametrize(
    "begins, step, parts",
    [
        ((0, 300, 600), 200, [0]), ((0, 300, 600), 600, [0, 300]), ((0, 300, 500, 200), 900, [0, 200]),
        ((0, 24, 24), 24, [0]), ((0, 0), 9, [0]), ((0, 5), float("inf"), [0, 5]),
    ],
)  # fmt: skip
def test_which_starts_have_a_part_in_weights(begins, step, parts):
    starts = [{"resumed_from": begin or None, "number": number} for number, begin in enumerate(begins)]
    kept = in_weights(starts, step)
    assert [start["resumed_from"] or 0 for start in kept] == parts
    assert kept[-1]["number"] == max(n for n, begin in enumerate(begins) if begin == parts[-1])


@pytest.mark.parametrize(
    "changed, anew",
    [
        ({}, False), ({"optim": "adafactor", "mlm_probability": 0.4, "names a step": 9}, False),
        ({"objective": "any_order"}, True), ({"validation_split": 0.2}, True), ({"max_length": 40}, True),
        ({"dataset": "elsewhere.txt"}, False), ({"dataset": "elsewhere.txt", CONTENT: "others"}, True),
        ({"dataset": "elsewhere.txt", CONTENT: None}, True),
    ],
)  # fmt: skip
def test_what_makes_another_question(tmp_path, changed, anew):
    before = {
        "model_name_or_path": None, "model_size": "tiny", "objective": "mlm", "dataset": "names.txt", "optim": "adamw",
        "validation_split": 0.1, "max_length": 128, "mlm_probability": 0.15, "names a step": 8, CONTENT: "names",
    }  # fmt: skip
    args = make_trainer(tmp_path).args
    write_run_file(args, before, {}, None)
    if changed.get(CONTENT, "names") is None:  # of streams nobody knows it
        before = before | {CONTENT: None}
        (tmp_path / RUN_FILE).unlink()
        write_run_file(args, before, {}, None)
    write_run_file(args, before | changed, {}, str(tmp_path / "checkpoint-6"))
    assert asked_anew(tmp_path) == (6 if anew else 0)
    # A start that made no step is nothing to compare with.
    write_run_file(args, before, {}, str(tmp_path / "checkpoint-6"))
    assert asked_anew(tmp_path) == 0
    (tmp_path / RUN_FILE).write_text("damaged")
    write_run_file(args, before, {}, str(tmp_path / "checkpoint-6"))
    assert asked_anew(tmp_path) == 6
