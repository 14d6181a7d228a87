"""Whole runs compared: accumulation, resume, checkpoints, the best model, exact figures."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SMALL, equal
from safetensors.torch import load_file
from transformers import TrainerCallback

from domain_canine import (
    DataCollatorForCodePointMasking,
    DomainCanineConfig,
    DomainCanineForMaskedLM,
    DomainCanineModel,
    checkpoints,
)
from domain_canine.arguments import DomainTrainingArguments
from domain_canine.batches import NameBatches
from domain_canine.errors import UserError
from domain_canine.masking import IGNORED
from domain_canine.metrics import figures
from domain_canine.pretrained import build_tokenizer
from domain_canine.sample import sample_names
from domain_canine.table import table_of
from domain_canine.trainer import DomainTrainer

NAMES = 150


def make_trainer(folder: Path, dropout: float = 0.1, objective: str = "mlm", **changes) -> DomainTrainer:
    options = {
        "per_device_train_batch_size": 16, "gradient_accumulation_steps": 2, "num_train_epochs": 2, "save_steps": 1000,
        "learning_rate": 1e-3, "warmup_steps": 2, "logging_steps": 1, "disable_tqdm": True, "use_cpu": True,
        "dataloader_num_workers": 0,
    } | changes  # fmt: skip
    args = DomainTrainingArguments(output_dir=str(folder), **options)
    torch.manual_seed(5)
    config = DomainCanineConfig(**SMALL, hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout)
    config.initializer_range = 0.02
    model = DomainCanineForMaskedLM(config)
    collator = DataCollatorForCodePointMasking(objective=objective)
    names = sample_names(NAMES + 40)
    train, validation = table_of(names[:NAMES]), table_of(names[NAMES:])
    sizes = [len(name) for name in names]
    return DomainTrainer(
        model=model,
        args=args,
        train_dataset=NameBatches(
            train, np.array(sizes[:NAMES], np.uint8), collator, args.per_device_train_batch_size,
            micro_steps=args.gradient_accumulation_steps,
        ),
        eval_dataset=NameBatches(validation, np.array(sizes[NAMES:], np.uint8), collator, 16, evaluation=True),
        processing_class=build_tokenizer(model, 128),
    )  # fmt: skip


def weights(trainer) -> dict[str, torch.Tensor]:
    return {name: weight.clone() for name, weight in trainer.model.state_dict().items()}


def entries(trainer, key: str) -> list[float]:
    return [entry[key] for entry in trainer.state.log_history if key in entry]


def assert_equal(one: dict, other: dict) -> None:
    assert one.keys() == other.keys()
    different = [name for name in one if not torch.equal(one[name], other[name])]
    assert not different


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Two epochs of 5 steps with dropout, never stopped."""
    trainer = make_trainer(tmp_path_factory.mktemp("finished"), save_steps=3)
    trainer.train()
    return trainer


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


@pytest.mark.parametrize("stop_at", [3, 5, 7])
def test_a_resumed_run_equals_the_one_never_stopped(finished, tmp_path, stop_at):
    first = make_trainer(tmp_path, save_steps=stop_at)

    class Stop(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == stop_at:
                raise KeyboardInterrupt

    first.add_callback(Stop())
    with pytest.raises(KeyboardInterrupt):
        first.train()
    assert [path.name for path in checkpoints.whole_checkpoints(tmp_path)][-1] == f"checkpoint-{stop_at}"
    second = make_trainer(tmp_path, save_steps=3)
    second.train(resume_from_checkpoint=checkpoints.to_resume_from(tmp_path, "newest"))
    assert second.state.global_step == 10
    assert_equal(weights(second), weights(finished))
    assert entries(second, "eval_loss") == entries(finished, "eval_loss")


@pytest.mark.parametrize("workers", [0, 2])
def test_the_same_seed_gives_the_same_weights(finished, tmp_path, workers):
    again = make_trainer(tmp_path, save_steps=3, dataloader_num_workers=workers)
    again.train()
    assert_equal(weights(again), weights(finished))


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
    assert Path(state["best_model_checkpoint"]) == run / "checkpoint-10"


@pytest.fixture
def told_losses(monkeypatch):
    """Make evaluations report these losses, one after the other."""

    def tell(*losses):
        told = iter(losses)
        monkeypatch.setattr("domain_canine.trainer.figures", lambda sums: figures(sums) | {"loss": next(told)})

    return tell


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
    assert not any(checkpoints.STATE.fullmatch(name) for name in names)


def test_without_checkpoints_the_last_weights_are_the_final_ones_and_said_to_be(tmp_path, told_losses):
    told_losses(1.0, 2.0)
    trainer = make_trainer(tmp_path, save_strategy="no")
    trainer.train()
    assert not list(tmp_path.glob("checkpoint-*"))
    which, metrics = trainer.save_final()
    assert which == "last" and metrics["eval_loss"] == 2.0
    assert_equal(load_file(tmp_path / "model.safetensors"), weights(trainer))


@pytest.mark.parametrize("damage", ["tear", "weights", "optimizer.pt", "rng_state.pth", "trainer_state.json"])
def test_a_broken_checkpoint_is_passed_over_with_a_warning(finished, tmp_path, capsys, damage):
    for name in ("checkpoint-9", "checkpoint-10"):
        shutil.copytree(Path(finished.args.output_dir) / name, tmp_path / name)
    newest = tmp_path / "checkpoint-10"
    if damage == "tear":
        (newest / "model.safetensors").write_bytes((newest / "model.safetensors").read_bytes()[:-100])
    else:
        (newest / damage.replace("weights", "model.safetensors")).unlink()
    assert checkpoints.to_resume_from(tmp_path, "newest") == str(tmp_path / "checkpoint-9")
    assert "checkpoint-10 is not whole and is passed over" in capsys.readouterr().err
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


def test_early_stopping_counts_evaluations_and_survives_a_resume(tmp_path, told_losses):
    options = {"num_train_epochs": 8, "save_total_limit": None, "early_stopping_patience": 3}
    told_losses(2.0, 1.0, 1.5, 1.5, 1.5)
    trainer = make_trainer(tmp_path, **options)
    trainer.train()
    assert trainer.state.global_step == 25  # three evaluations without gain after the second epoch
    told_losses(1.5)
    resumed = make_trainer(tmp_path, **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-20"))
    assert resumed.state.global_step == 25
    # What stopped early stays stopped.
    again = make_trainer(tmp_path, **options)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-25"))
    assert again.state.global_step == 25 and again.save_final()[1]["eval_loss"] == 1.0


def test_a_finished_run_is_not_trained_on(finished, tmp_path):
    run = Path(finished.args.output_dir)
    again = make_trainer(run, save_steps=3)
    again.train(resume_from_checkpoint=str(run / "checkpoint-10"))
    assert again.state.global_step == 10 and not (run / "checkpoint-11").exists()
    assert_equal(weights(again), weights(finished))
    with pytest.raises(UserError, match="would mix two runs"):
        checkpoints.to_resume_from(run, str(run / "checkpoint-6"))


def test_the_best_of_another_run_is_none_of_ours(finished, tmp_path, told_losses):
    told_losses(50.0)  # worse than the other run's best
    elsewhere = make_trainer(tmp_path, num_train_epochs=3, learning_rate=1e-9)
    elsewhere.train(resume_from_checkpoint=str(Path(finished.args.output_dir) / "checkpoint-10"))
    assert elsewhere.state.best_global_step == 15
    which, metrics = elsewhere.save_final()
    assert which == "best" and metrics["step"] == 15


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
