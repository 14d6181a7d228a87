"""``--auto_find_batch_size``: smaller micro-steps of the same run."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from records_on_cpu import record_on_the_processor
from small_runs import assert_equal, entries, make_trainer, weights
from test_streams import make_stream, write

from domain_canine import DataCollatorForCodePointMasking, memory
from domain_canine.batches import NameBatches
from domain_canine.errors import UserError
from domain_canine.memory import fit_batch
from domain_canine.sample import sample_names


def with_memory_for(trainer, rows: int) -> None:
    """A model that runs out of memory with more rows."""
    forward = trainer.model.forward
    trainer.tried = []

    def limited(*args, **kwargs):
        if trainer.model.training:
            trainer.tried.append(tuple(kwargs["input_ids"].shape))
        if trainer.model.training and len(kwargs["input_ids"]) > rows:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return forward(*args, **kwargs)

    trainer.model.forward = limited


def test_the_run_is_that_of_the_smaller_batch_from_the_start(tmp_path):
    found = make_trainer(tmp_path / "a", auto_find_batch_size=True, num_train_epochs=1)
    with_memory_for(found, 5)
    found.train()
    given = make_trainer(
        tmp_path / "b", per_device_train_batch_size=4, gradient_accumulation_steps=8, num_train_epochs=1
    )
    given.train()
    assert_equal(weights(found), weights(given))
    longest = 4 * -(-int(found.train_dataset.plan.lengths.max()) // 4) + 2
    assert found.tried[:3] == [(16, longest), (8, longest), (4, longest)]
    assert found.state.global_step == given.state.global_step
    assert all(rows <= 4 and length <= longest for rows, length in found.tried[3:])


def test_the_trial_takes_what_a_step_will(tmp_path, monkeypatch):
    """Two micro-steps, the second beside the gradients of the first, and the optimiser's moments; then nothing is left."""
    trainer = make_trainer(tmp_path, auto_find_batch_size=True)
    assert trainer.finds_batch and not trainer.args.auto_find_batch_size
    seen, reserved, entered = [], [], []
    forward, empty, autocast = trainer.model.forward, torch.empty, trainer.accelerator.autocast

    def watched(**batch):
        held = [parameter.grad is not None for parameter in trainer.model.parameters()]
        seen.append((batch["masked_positions"].shape, batch["labels"].min().item(), any(held), torch.is_grad_enabled()))
        return forward(**batch)

    trainer.model.forward = watched
    monkeypatch.setattr(torch, "empty", lambda size, **options: reserved.append(size) or empty(size, **options))
    monkeypatch.setattr(trainer.accelerator, "autocast", lambda: entered.append(1) or autocast())
    fit_batch(trainer)
    monkeypatch.undo()
    longest = int(trainer.train_dataset.plan.lengths.max())
    most = trainer.train_dataset.collator.most(longest)
    assert seen == [((16, most), 97, False, True), ((16, most), 97, True, True)] and len(entered) == 2
    assert reserved == [2 * sum(parameter.numel() for parameter in trainer.model.parameters())]
    assert all(parameter.grad is None for parameter in trainer.model.parameters())
    with_memory_for(trainer, 4)
    fit_batch(trainer)
    assert trainer._train_batch_size == 4


@pytest.mark.parametrize(
    "batch, accumulation, gigabytes, expected",
    [(256, 2, 80, 2), (256, 2, 140, 2), (256, 16, 80, 4), (256, 3, 80, 3), (256, 5, 80, 1), (1000, 1, 80, 1),
     (4096, 2, 80, 1), (256, 2, 16, 1), (64, 8, 16, 2)],
)  # fmt: skip
def test_micro_steps_are_joined_as_far_as_memory_is_hardly_taken(batch, accumulation, gigabytes, expected):
    assert memory.joined(batch, accumulation, min(80, gigabytes) * 1000) == expected


def test_joined_micro_steps_make_the_same_steps(tmp_path, monkeypatch, capsys):
    logs = []
    for room in (0, 4 * memory.SLOTS * 16):
        record_on_the_processor(monkeypatch.setattr, 10_000, room)
        trainer = make_trainer(
            tmp_path / str(room),
            dropout=0,
            per_device_train_batch_size=4,
            gradient_accumulation_steps=8,
            num_train_epochs=2,
        )
        trainer.train()
        args = trainer.args
        assert (args.per_device_train_batch_size, args.gradient_accumulation_steps) == ((16, 2) if room else (4, 8))
        logs.append([entries(trainer, key) for key in ("loss", "grad_norm", "eval_loss")])
        told = capsys.readouterr().err
        assert ("the GPU computes 16 names at once: a step is accumulated in 2 instead of 8" in told) == bool(room)
    for apart, at_once in zip(*logs):
        assert len(apart) > 1 and at_once == pytest.approx(apart, rel=1e-4)


def test_gpus_that_differ_join_as_the_smallest(tmp_path, monkeypatch):
    """Each deals the same steps."""
    record_on_the_processor(monkeypatch.setattr, 10_000, 10_000)
    trainer = make_trainer(tmp_path, per_device_train_batch_size=4, gradient_accumulation_steps=8)
    monkeypatch.setattr(trainer.accelerator, "gather", lambda own: torch.cat([own, own * 0 + 4 * memory.SLOTS * 8]))
    memory.join_micro_steps(trainer)
    assert (trainer.args.per_device_train_batch_size, trainer.args.gradient_accumulation_steps) == (8, 4)


@pytest.mark.parametrize("processes, records, held", [(1, False, 2), (2, False, 3), (2, True, 2)])
def test_the_trial_holds_ddps_buckets_where_there_is_ddp(tmp_path, monkeypatch, processes, records, held):
    trainer, reserved, empty = make_trainer(tmp_path), [], torch.empty
    monkeypatch.setattr(type(trainer.args), "world_size", processes)
    if records:
        record_on_the_processor(monkeypatch.setattr, 10_000, 10_000)
        allocated = iter((300, 600))  # before the pass, and with its gradients
        monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: None)
        monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: next(allocated))
        monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 1000)
    monkeypatch.setattr(torch, "empty", lambda size, **options: reserved.append(size) or empty(size, **options))
    memory._try(trainer)
    assert reserved[0] == held * sum(parameter.numel() for parameter in trainer.model.parameters())
    assert reserved[1:2] == [700] * records  # what a record of the pass holds


def test_the_trial_has_the_shape_of_a_batch():
    batches = SimpleNamespace(largest=lambda: (4, 13), collator=DataCollatorForCodePointMasking(objective="any_order"))
    batch = memory._largest(batches)
    assert batch["input_ids"].shape == (4, 18) and batch["masked_positions"].shape == (4, 16)


def test_a_stream_keeps_its_batches(tmp_path, monkeypatch):
    """Its steps are made of them, and so is the position in it that a resume needs."""
    record_on_the_processor(monkeypatch.setattr, 10_000, 10_000)
    trainer = make_trainer(tmp_path, max_steps=1, eval_strategy="no", save_strategy="no")
    trainer.streamed = True
    monkeypatch.setattr("transformers.Trainer._inner_training_loop", lambda self, **kwargs: None)
    trainer._inner_training_loop(resume_from_checkpoint=None)
    assert trainer.args.gradient_accumulation_steps == 2
    trainer.streamed = False
    trainer._inner_training_loop(resume_from_checkpoint=None)
    assert trainer.args.gradient_accumulation_steps == 1


def test_the_largest_batch_is_the_largest(tmp_path):
    lengths = np.array([10] * 6_000 + [60] * 10, np.uint8)
    options = {"table": None, "collator": DataCollatorForCodePointMasking(), "batch_size": 50}
    assert NameBatches(lengths=lengths, **options).largest() == (50, 60)
    assert NameBatches(lengths=lengths, fixed_shapes=True, **options).largest() == (50, 72)
    even = NameBatches(lengths=lengths, global_batch=50, **options)
    rows, characters = even.largest()
    # As many slots as 50 names of 10 characters and their frame, 16 each, in rows of 64.
    assert characters == 60 and rows * 64 + 63 >= 50 * 16 and rows < 20


def test_what_fits_is_left_as_it_is(tmp_path, capsys):
    trained = []
    for i in range(2):
        trainer = make_trainer(tmp_path / str(i), auto_find_batch_size=i == 0, num_train_epochs=1)
        trainer.train()
        trained.append(weights(trainer))
    assert_equal(*trained)
    assert "the memory holds 16 names a micro-step; 2 are accumulated" in capsys.readouterr().err


def test_odd_batches_lose_no_name(tmp_path):
    trainer = make_trainer(tmp_path, per_device_train_batch_size=15, gradient_accumulation_steps=1)
    with_memory_for(trainer, 4)
    fit_batch(trainer)
    batches = trainer.train_dataset
    assert (batches.batch_size, batches.plan.micro_steps, batches.plan.global_batch) == (4, 4, 15)
    rows = [len(batches[at]["labels"]) for [at] in batches.sampler()]
    assert max(rows) <= 4 and sum(rows) == len(batches)


def test_a_stream_reads_smaller_batches(tmp_path):
    trainer = make_trainer(tmp_path / "run", per_device_train_batch_size=16)
    trainer.train_dataset = make_stream(write(tmp_path, sample_names(50)), batch_size=16, max_length=40)
    with_memory_for(trainer, 10)
    fit_batch(trainer)
    assert trainer.train_dataset.batch_size == 8 and trainer.tried == [(16, 42), (8, 42), (8, 42)]
    trainer.args.per_device_train_batch_size = 25  # in halves of 13 a step would be of 26
    with pytest.raises(UserError, match="25 names of a stream are too many .* power of two"):
        with_memory_for(trainer, 7)
        trainer.streamed = True
        fit_batch(trainer)


def test_a_model_that_fits_nowhere_is_told_and_other_errors_are_not_swallowed(tmp_path):
    trainer = make_trainer(tmp_path / "a")
    with_memory_for(trainer, 0)
    with pytest.raises(UserError, match="does not hold a step of one name"):
        fit_batch(trainer)
    trainer = make_trainer(tmp_path / "b")
    trainer.model.forward = lambda **batch: 1 / 0
    with pytest.raises(ZeroDivisionError):
        fit_batch(trainer)
