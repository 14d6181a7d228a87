"""What spoils a run is met: steps that are not finite, memory that is out, a disk that is full."""

import json
import resource
from pathlib import Path

import pytest
import torch
from small_runs import assert_equal, make_trainer, weights
from transformers import TrainerCallback

from domain_canine import checkpoints, guards
from domain_canine.errors import UserError
from domain_canine.guards import names_of, out_of_memory


def spoil(trainer, *calls: int, by: float = float("nan"), where: str = "loss") -> None:
    """Make the loss, or a gradient, of these calls of the model not finite."""
    forward, count = trainer.model.forward, iter(range(1, 10**6))

    def spoiled(*args, **kwargs):
        outputs = forward(*args, **kwargs)
        if trainer.model.training and next(count) in calls:
            if where == "loss":
                outputs.loss = outputs.loss + by
            else:
                outputs.loss.register_hook(lambda gradient: gradient * by)
        return outputs

    trainer.model.forward = spoiled


def keep_weights(trainer) -> dict[int, dict]:
    kept = {0: weights(trainer)}

    class Keep(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            kept[state.global_step] = weights(trainer)

    trainer.add_callback(Keep())
    return kept


@pytest.mark.parametrize(("by", "where"), [(float("nan"), "loss"), (float("inf"), "loss"), (float("inf"), "gradient")])
@pytest.mark.parametrize("optimizer", ["adamw_torch_fused", "adamw_torch", "sgd"])
def test_a_step_that_is_not_finite_is_skipped_and_stops_the_run_one_step_later(tmp_path, by, where, optimizer):
    trainer = make_trainer(tmp_path, save_steps=3, optim=optimizer)
    spoil(trainer, 7, by=by, where=where)  # the first micro-step of the fourth step
    kept, steps = keep_weights(trainer), trainer.train_dataset
    with pytest.raises(UserError) as stopped:
        trainer.train()
    told = str(stopped.value)
    assert trainer.state.global_step == 5 and max(kept) == 5
    assert_equal(kept[4], kept[3])
    assert all(torch.isfinite(weight).all() for weight in kept[5].values() if weight.is_floating_point())
    assert f"Last good checkpoint: {tmp_path / 'checkpoint-3'}" in told and "--max_skipped_steps" in told
    assert "step 4: the loss or its gradient is not finite (learning rate 0.000" in told
    listed = (tmp_path / "not_finite-4.txt").read_text().split()
    expected = [name for micro in (6, 7) for name in names_of(steps[(0, micro)])]
    assert sorted(listed) == sorted(expected) and len(set(listed)) == 32
    assert not (tmp_path / "checkpoint-5").exists()


def test_the_names_of_a_batch_are_those_it_was_made_of(finished):
    table = finished.train_dataset.table
    names = {name for index in range(10) for name in names_of(finished.train_dataset[(0, index)])}
    assert names == set(table.take(list(range(len(table)))).to_pylist())


def test_so_many_steps_as_allowed_are_skipped_and_told(tmp_path, capsys):
    trainer = make_trainer(tmp_path, max_skipped_steps=2, logging_steps=5)
    spoil(trainer, 7, 13)
    kept = keep_weights(trainer)
    trainer.train()
    assert trainer.state.global_step == 10
    assert_equal(kept[4], kept[3])
    assert_equal(kept[7], kept[6])
    said = capsys.readouterr().err
    assert "skipped, 1 of 2 allowed" in said and "skipped, 2 of 2 allowed" in said
    counts = {state["step"].item() for state in trainer.optimizer.state.values()}
    assert counts == {8}
    # The entry of the log is the mean of what was finite.
    assert all(entry["loss"] < 10 for entry in trainer.state.log_history if "loss" in entry)


def test_skipped_steps_are_counted_over_a_resume(tmp_path):
    first = make_trainer(tmp_path, max_skipped_steps=1, num_train_epochs=1)
    spoil(first, 3)
    first.train()
    second = make_trainer(tmp_path, max_skipped_steps=1, num_train_epochs=2)
    spoil(second, 3)
    with pytest.raises(UserError, match="step 7: the loss"):
        second.train(resume_from_checkpoint=str(tmp_path / "checkpoint-5"))


def test_no_checkpoint_holds_a_step_that_nobody_has_looked_at(tmp_path):
    trainer = make_trainer(tmp_path, save_steps=4)
    spoil(trainer, 7)
    with pytest.raises(UserError, match="step 4"):
        trainer.train()
    assert trainer.state.global_step == 4 and not list(tmp_path.glob("checkpoint-*"))


def test_the_last_step_is_looked_at(tmp_path):
    trainer = make_trainer(tmp_path, save_strategy="no", eval_strategy="no")
    spoil(trainer, 20)
    with pytest.raises(UserError, match="step 10"):
        trainer.train()


def test_nobody_waits_for_the_latest_step(tmp_path, monkeypatch):
    made, read = [], []

    class Watched(guards.Late):
        def __init__(self, value):
            super().__init__(value)
            made.append(self)

        def read(self):
            read.append(len(made) - 1 - made.index(self))
            return super().read()

    monkeypatch.setattr(guards, "Late", Watched)
    make_trainer(tmp_path, num_train_epochs=1).train()
    # Steps 1 to 4 a step late; the fifth ends the epoch.
    assert len(made) == 5 and read == [1, 1, 1, 1, 0]


def test_overflows_of_fp16_are_no_news(tmp_path):
    guard = guards.FiniteSteps(tmp_path, allowed=0, rank=0, in_a_row=guards.FP16_IN_A_ROW)
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)

    def step(number, norm):
        guard.begin(number, [])
        guard.observe(number, 1e-3, torch.tensor(norm), model, optimizer)
        guard.settle(all_of_them=True)

    for number in range(100):
        step(number, float("inf") if number % 20 else 1.0)
    step(100, 1.0)
    with pytest.raises(UserError, match="step 121"):
        for number in range(101, 200):
            step(number, float("inf"))


@pytest.mark.parametrize(
    "error, first",
    [
        (torch.OutOfMemoryError, "CUDA out of memory. Tried to allocate 2.00 GiB."),
        (RuntimeError, "CUDA error: out of memory"),  # of a graph that is instantiated
        (RuntimeError, "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        (RuntimeError, "Triton Error [CUDA]: out of memory"),
    ],
)
def test_memory_that_is_out_tells_the_flags_to_lower(tmp_path, error, first):
    trainer = make_trainer(tmp_path, save_steps=2)
    forward = trainer.model.forward

    def limited(*args, **kwargs):
        if trainer.state.global_step == 3:
            raise error(f"{first}\nMore.")
        return forward(*args, **kwargs)

    trainer.model.forward = limited
    with pytest.raises(UserError) as told:
        trainer.train()
    for part in (f"the memory of cpu is out: {first}\n", "--batch_size (now 16",
                 "--per_device_eval_batch_size (now 256)", "--max_length", "--auto_find_batch_size", "checkpoint-2"):  # fmt: skip
        assert part in str(told.value)


@pytest.mark.parametrize("records", [False, True])
def test_where_steps_are_recorded_a_smaller_micro_step_is_no_remedy(tmp_path, monkeypatch, records):
    """It would be joined to what it was."""
    args = make_trainer(tmp_path).args
    monkeypatch.setattr(type(args), "records_steps", records)
    told = str(out_of_memory(RuntimeError("CUDA out of memory."), args))
    assert ("--no_cuda_graphs" in told) == records and ("Lower --batch_size" in told) != records
    assert "--auto_find_batch_size" in told and "--max_length" in told


def test_other_errors_are_not_taken_for_it(tmp_path):
    trainer = make_trainer(tmp_path)
    trainer.model.forward = lambda **batch: torch.ones(2) @ torch.ones(3)
    with pytest.raises(RuntimeError, match="size mismatch|inconsistent tensor size"):
        trainer.train()


@pytest.fixture
def small_disk():
    """Files of this process end at so many bytes: a full disk as far as anyone who writes can tell."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size or before[0], before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_costs_a_checkpoint_and_not_the_run(finished, tmp_path, small_disk, capsys):
    trainer = make_trainer(tmp_path, save_steps=3)

    class Full(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            # Of checkpoints 3, 5, 6, 9, 10 the one of step 5 finds no room for weights, 6 none for the optimiser's.
            small_disk({5: 100_000, 6: 1_000_000}.get(state.global_step))

    trainer.add_callback(Full())
    trainer.train()
    said = capsys.readouterr().err
    for step in (5, 6):
        assert f"warning: checkpoint-{step} could not be written: " in said
    assert said.count("could not be written") == 2 and "older checkpoints are kept" in said
    whole = [path.name for path in checkpoints.whole_checkpoints(tmp_path)]
    assert whole == ["checkpoint-3", "checkpoint-9", "checkpoint-10"]
    assert not (tmp_path / checkpoints.WRITING).exists()
    assert_equal(weights(trainer), weights(finished))
    again = make_trainer(tmp_path / "again", save_steps=3)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert_equal(weights(again), weights(finished))


def test_progress_holds_what_was_skipped(tmp_path):
    trainer = make_trainer(tmp_path, max_skipped_steps=1, num_train_epochs=1)
    spoil(trainer, 3)
    trainer.train()
    told = json.loads((Path(tmp_path) / "checkpoint-5" / "progress.json").read_text())
    assert told["skipped"] == 1 and told["row"] == 0
