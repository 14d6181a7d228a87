"""Whole runs compared: accumulation, resume, checkpoints, the best model, exact figures."""

import math
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import equal
from small_runs import NAMES, assert_equal, entries, make_trainer, weights

from domain_canine import (
    DataCollatorForCodePointMasking,
    DomainCanineModel,
)
from domain_canine.batches import NameBatches
from domain_canine.callbacks import Speed
from domain_canine.errors import UserError
from domain_canine.masking import IGNORED
from domain_canine.sample import sample_names
from domain_canine.table import table_of
from domain_canine.trainer import DomainTrainer, losses, target_weight


def test_accumulation_does_not_change_the_losses(tmp_path):
    runs = []
    for batch, accumulation in ((32, 1), (16, 2), (4, 8)):
        trainer = make_trainer(
            tmp_path / str(batch), dropout=0.0, per_device_train_batch_size=batch, save_strategy="no",
            gradient_accumulation_steps=accumulation,
        )  # fmt: skip
        trainer.train()
        runs.append(trainer)
    losses = np.array([entries(trainer, "loss") for trainer in runs])
    assert losses.shape == (3, 10)
    assert np.abs(losses - losses[0]).max() < 1e-5 and abs((losses[2] - losses[0]).mean()) < 1e-6
    norms = np.array([entries(trainer, "grad_norm") for trainer in runs])
    assert np.allclose(norms, norms[0], rtol=1e-4)


def test_logged_loss_is_nats_over_characters_not_a_mean_of_means(tmp_path):
    trainer = make_trainer(tmp_path, dropout=0.0, learning_rate=1e-12, num_train_epochs=1, logging_steps=5)
    trainer.train()
    sums = torch.zeros(2)
    trainer.model.eval()
    for index in range(10):
        batch = trainer.train_dataset[(0, index)]
        with torch.no_grad():
            targets = (batch["labels"] != IGNORED).sum()
            sums += torch.tensor([trainer.model(**batch).loss * targets, targets])
    assert entries(trainer, "loss") == pytest.approx([(sums[0] / sums[1]).item()], abs=1e-4)
    assert entries(trainer, "perplexity")[0] == pytest.approx(math.exp(entries(trainer, "loss")[0]))


@pytest.mark.parametrize("workers", [0, 3])
def test_the_same_seed_gives_the_same_weights(finished, tmp_path, workers):
    again = make_trainer(tmp_path, save_steps=3, dataloader_num_workers=workers)
    again.train()
    assert_equal(weights(again), weights(finished))


def test_training_masks_differ_between_epochs(finished):
    dataset = finished.train_dataset
    shown = []
    for epoch in (0, 1):
        rows = [dataset.plan.rows(epoch, step, micro) for step in range(5) for micro in range(2)]
        masked = {}
        for index, names in enumerate(rows):
            batch = dataset[(epoch, index)]
            masked |= {int(row): positions for row, positions in zip(names, batch["masked_positions"].tolist())}
        shown.append(masked)
    assert shown[0].keys() == shown[1].keys() and len(shown[0]) == NAMES
    assert sum(shown[0][row][:1] != shown[1][row][:1] for row in shown[0]) > NAMES / 2


def test_a_logged_loss_is_that_of_its_own_steps(finished, tmp_path):
    every, second = entries(finished, "loss"), make_trainer(tmp_path, save_steps=3, logging_steps=5)
    second.train()
    first, last = entries(second, "loss")
    assert first == pytest.approx(np.mean(every[:5]), rel=0.01)
    assert abs(last - np.mean(every[5:])) < abs(last - np.mean(every)) / 4


def test_inputs_fill_whole_molecules_and_no_more(finished, monkeypatch):
    slots = []
    original = DomainCanineModel.forward
    layer = finished.model.canine.initial_char_encoder
    monkeypatch.setattr(layer, "forward", lambda states, *rest: (slots.append(states.shape[1]), states)[1])
    for index in range(10):
        batch = finished.train_dataset[(0, index)]
        assert batch["input_ids"].shape[1] % 4 == 2
        longest = int(batch["attention_mask"].sum(1).max())
        original(finished.model.canine, batch["input_ids"], batch["attention_mask"])
        assert slots[-1] == 4 * math.ceil((longest + 2) / 4)


def test_evaluation_is_exact_and_repeats(finished):
    told = finished.evaluate()
    assert finished.evaluate()["eval_loss"] == told["eval_loss"]
    model, dataset = finished.model.eval(), finished.eval_dataset
    nats, hits, count, by_part = 0.0, 0, 0, {True: [], False: []}
    for index in range(dataset.plan.steps):
        batch = dataset[(0, index)]
        with torch.no_grad():
            logits = model(batch["input_ids"], batch["attention_mask"]).logits.log_softmax(-1)
        for row in range(len(logits)):
            rebuilt = batch["input_ids"][row].clone()
            targets = [
                (p, x)
                for p, x in zip(batch["masked_positions"][row].tolist(), batch["labels"][row].tolist())
                if x != IGNORED
            ]
            for position, label in targets:
                rebuilt[position] = label
            dot = "".join(map(chr, rebuilt.tolist())).rindex(".")
            for position, label in targets:
                nats -= logits[row, position, label].item()
                hits += int(logits[row, position].argmax() == label)
                count += 1
                by_part[position >= dot].append(-logits[row, position, label].item())
    assert told["eval_masked_characters"] == count
    assert told["eval_loss"] == pytest.approx(nats / count, rel=1e-5)
    assert told["eval_bits_per_character"] == pytest.approx(nats / count / math.log(2), rel=1e-5)
    assert told["eval_accuracy"] == pytest.approx(hits / count)
    assert told["eval_perplexity_suffix"] == pytest.approx(math.exp(np.mean(by_part[True])), rel=1e-4)
    assert told["eval_perplexity_name"] == pytest.approx(math.exp(np.mean(by_part[False])), rel=1e-4)


def test_a_batch_that_is_too_large_for_a_pass_is_evaluated_in_several(finished, monkeypatch):
    """To the same figures; but for sharded weights, which all processes need at the same time."""
    taken, whole = [], finished.evaluate()
    add = finished.kind.add
    monkeypatch.setattr(
        finished.kind, "add", lambda model, batch: (taken.append(batch["input_ids"]), add(model, batch))
    )
    monkeypatch.setattr("domain_canine.trainer.largest_pass", lambda device: 60)
    told = finished.evaluate()
    assert max(part.numel() for part in taken) <= 60 and sum(map(len, taken)) == len(finished.eval_dataset)
    for name in ("loss", "perplexity_name", "perplexity_suffix", "accuracy", "masked_characters"):
        assert told[f"eval_{name}"] == pytest.approx(whole[f"eval_{name}"], rel=1e-6)
    monkeypatch.setattr(type(finished.args), "sharded", True)
    taken.clear()
    finished.evaluate()
    assert len(taken) == finished.eval_dataset.plan.steps


def test_evaluation_masks_do_not_change_with_the_epoch(finished):
    dataset = finished.eval_dataset
    for index in range(dataset.plan.steps):
        assert equal(dataset[(0, index)], dataset[(3, index)])


def test_evaluation_masks_do_not_change_with_the_place_in_the_file():
    names = sample_names(40)
    collator = DataCollatorForCodePointMasking()

    def masked(order):
        table = table_of(order)
        dataset = NameBatches(table, np.array([len(name) for name in order], np.uint8), collator, 40, evaluation=True)
        batch = dataset[(0, 0)]
        return {tuple(row) for row in batch["input_ids"].tolist()}

    assert masked(names) == masked(names[::-1])


def test_any_order_runs_and_its_loss_is_a_bound_per_character(tmp_path):
    trainer = make_trainer(tmp_path, objective="any_order", num_train_epochs=1, dropout=0.0)
    trainer.train()
    sums, characters = 0.0, 0
    for index in range(trainer.eval_dataset.plan.steps):
        batch = trainer.eval_dataset[(0, index)]
        with torch.no_grad():
            logits = trainer.model(
                batch["input_ids"], batch["attention_mask"], masked_positions=batch["masked_positions"]
            ).logits
        nats = torch.nn.functional.cross_entropy(logits.transpose(1, 2), batch["labels"], reduction="none")
        sums += (nats.sum(1) * batch["loss_weights"]).sum().item()
        characters += (batch["attention_mask"].sum() - 2 * len(nats)).item()
    assert entries(trainer, "eval_loss")[-1] == pytest.approx(sums / characters, rel=1e-5)


def test_a_training_loss_of_any_order_is_weighted(tmp_path):
    trainer = make_trainer(tmp_path, objective="any_order", num_train_epochs=1, dropout=0.0, learning_rate=1e-12)
    trainer.train()
    for step, told in enumerate(entries(trainer, "loss")):
        sums = torch.zeros(2)
        for micro_step in (2 * step, 2 * step + 1):
            batch = trainer.train_dataset[0, micro_step]
            weights = batch.pop("loss_weights")[:, None] * (batch["labels"] != IGNORED)
            with torch.no_grad():
                logits = trainer.model(**{name: each for name, each in batch.items() if name != "labels"}).logits
            nats = torch.nn.functional.cross_entropy(logits.transpose(1, 2), batch["labels"], reduction="none")
            sums += torch.stack([(nats * weights).sum(), weights.sum()])
        assert told == pytest.approx((sums[0] / sums[1]).item(), rel=1e-4)


def test_the_loss_of_the_whole_run_is_of_all_its_characters(finished, tmp_path, monkeypatch):
    """Not a mean of means, nor NaN for a step that was skipped; a resume goes on with the sums."""
    [expected] = entries(finished, "train_loss")
    sums = torch.zeros(2, dtype=torch.float64)
    for step, loss in enumerate(entries(finished, "loss")):
        batches = [finished.train_dataset[step // 5, step % 5 * 2 + micro] for micro in (0, 1)]
        targets = sum(int((batch["labels"] != IGNORED).sum()) for batch in batches)
        sums += torch.tensor([loss * targets, targets], dtype=torch.float64)
    assert expected == pytest.approx((sums[0] / sums[1]).item(), rel=1e-6)
    shutil.copytree(Path(finished.args.output_dir) / "checkpoint-6", tmp_path / "checkpoint-6")
    resumed = make_trainer(tmp_path, save_steps=3, logging_steps=4)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))
    assert entries(resumed, "train_loss")[-1] == pytest.approx(expected, rel=1e-6)
    skipping = make_trainer(tmp_path / "skips", max_skipped_steps=1)
    lost = iter([0.0, float("nan")])
    monkeypatch.setattr(
        skipping,
        "compute_loss",
        lambda *args, **kwargs: type(skipping).compute_loss(skipping, *args, **kwargs) * (1 + next(lost, 0.0)),
    )
    skipping.train()
    assert skipping.finite.skipped == 1 and math.isfinite(entries(skipping, "train_loss")[0])


def test_small_weights_make_no_smaller_step(tmp_path):
    """Class weights may be far below 1: a loss is divided by their sum, whatever it is."""
    trainer = make_trainer(tmp_path, dropout=0.0)
    batch = dict(trainer.train_dataset[0, 0])
    found = []
    for weight in (1.0, 1e-4):
        batch["loss_weights"] = torch.full((len(batch["labels"]),), weight)
        items = target_weight(batch)
        found.append(losses(trainer.model.eval(), dict(batch), items)[0].item())
    assert found[1] == pytest.approx(found[0], rel=1e-5)


def test_names_a_second_are_those_of_the_step(tmp_path):
    """Which may have fewer than its micro-steps have room for; evaluations and checkpoints are not its time."""
    trainer = make_trainer(tmp_path, per_device_train_batch_size=5, gradient_accumulation_steps=1)
    trainer.args.per_device_train_batch_size, trainer.args.gradient_accumulation_steps = 3, 2
    trainer.speed.seconds_a_step = lambda: 0.5
    logs = {"loss": 1.0}
    trainer.log(logs)
    assert logs["names_per_second"] == 10


def test_evaluations_and_checkpoints_are_not_the_time_of_a_step(monkeypatch):
    clock = iter([0.0, 1.0, 2.0, 52.0, 53.0, 93.0, 94.0, 94.0])
    monkeypatch.setattr("domain_canine.callbacks.time.monotonic", lambda: next(clock))
    speed = Speed()
    speed.on_train_begin(None, None, None)
    for event in ("on_step_end", "on_step_end", "on_evaluate", "on_step_end", "on_save", "on_step_end"):
        getattr(speed, event)(None, None, None)
    assert speed.seconds_a_step() == 1.0


def test_workers_of_an_evaluation_end_with_it(tmp_path):
    trainer = make_trainer(tmp_path, dataloader_num_workers=1)
    assert trainer.get_train_dataloader().persistent_workers
    assert not trainer.get_eval_dataloader().persistent_workers


def test_copies_are_waited_for_but_on_cuda(monkeypatch):
    """MPS copies later, out of memory that may be another's then."""
    data, asked = torch.zeros(1), []
    monkeypatch.setattr(
        torch.Tensor, "to", lambda self, device, non_blocking: asked.append((device.type, non_blocking))
    )
    for kind in ("cuda", "mps", "cpu"):
        DomainTrainer._prepare_input(SimpleNamespace(args=SimpleNamespace(device=torch.device(kind))), data)
    assert asked == [("cuda", True), ("mps", False), ("cpu", False)]


@pytest.mark.parametrize(
    "flags, told",
    [
        ({"adam_beta1": 2.0}, "--optim, or its numbers: Invalid beta"),
        ({"optim": "galore_adamw"}, "--optim, or its numbers: .*galore"),
        ({"lr_scheduler_type": "polynomial", "learning_rate": 1e-8}, "--lr_scheduler_type, or its numbers: .*1e-07"),
    ],
)
def test_an_optimiser_that_cannot_be_made_is_one_message(tmp_path, flags, told):
    with pytest.raises(UserError, match=told):
        make_trainer(tmp_path, **flags).train()


def test_an_evaluation_is_of_the_weights_that_an_optimiser_keeps_for_it(tmp_path):
    """Those of schedule-free ones; a training step takes the others again."""
    trainer, told = make_trainer(tmp_path), []
    trainer.optimizer = SimpleNamespace(eval=lambda: told.append("eval"), train=lambda: told.append("train"))
    trainer.evaluate()
    assert told == ["eval"]
    batch = next(iter(trainer.get_train_dataloader()))
    trainer.training_step(trainer.model, batch, torch.tensor(10.0))
    assert told == ["eval", "train"]
