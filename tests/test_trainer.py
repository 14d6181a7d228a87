"""Whole runs compared: accumulation, resume, checkpoints, the best model, exact figures."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SMALL
from safetensors.torch import load_file
from transformers import TrainerCallback

from domain_canine import DataCollatorForCodePointMasking, DomainCanineConfig, DomainCanineForMaskedLM, checkpoints
from domain_canine.arguments import DomainTrainingArguments
from domain_canine.batches import NameBatches, StreamBatches
from domain_canine.masking import IGNORED
from domain_canine.metrics import figures, masked_sums, suffix_positions
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
    trainer.save_final()
    final, chosen = load_file(tmp_path / "model.safetensors"), load_file(tmp_path / best / "model.safetensors")
    assert_equal(final, chosen)
    names = {entry.name for entry in tmp_path.iterdir() if entry.is_file()}
    assert {"config.json", "tokenizer_config.json", "modeling_domain_canine.py"} <= names
    assert not any(checkpoints.STATE.fullmatch(name) for name in names)
    losses = entries(trainer, "eval_loss")
    assert trainer.best_metrics()["eval_loss"] == min(losses)


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
    assert again.state.global_step == 25 and again.best_metrics()["eval_loss"] == 1.0


def test_a_finished_run_is_not_trained_on(finished, tmp_path):
    run = Path(finished.args.output_dir)
    again = make_trainer(run, save_steps=3)
    again.train(resume_from_checkpoint=str(run / "checkpoint-10"))
    assert again.state.global_step == 10 and not (run / "checkpoint-11").exists()
    assert again.best_metrics()["eval_loss"] == finished.best_metrics()["eval_loss"]


def test_the_best_of_another_run_is_none_of_ours(finished, tmp_path):
    elsewhere = make_trainer(tmp_path, num_train_epochs=3, learning_rate=1e-9)
    elsewhere.train(resume_from_checkpoint=str(Path(finished.args.output_dir) / "checkpoint-10"))
    assert elsewhere.state.best_global_step == 15
    assert elsewhere.best_metrics()["step"] == 15


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
        one, other = dataset[(0, index)], dataset[(3, index)]
        assert all(torch.equal(one[key], other[key]) for key in one)


def test_evaluation_masks_do_not_change_with_the_place_in_the_file():
    names = sample_names(40)
    collator = DataCollatorForCodePointMasking()

    def masked(order):
        table = table_of(order)
        dataset = NameBatches(table, table.lengths(np.arange(40)).astype(np.uint8), collator, 40, evaluation=True)
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


def test_a_stream_trains_and_never_on_a_validation_name(tmp_path):
    class Source:
        description = "a list"

        def lines(self):
            return iter(sample_names(300))

    stream = StreamBatches(Source(), 128, DataCollatorForCodePointMasking(), 16, 0, 1, 0.2, 0, None, 1)
    table, lengths, _ = stream.validation()
    held = set(table.names(np.arange(len(table))))
    batches = iter(stream)
    seen = set()
    for _ in range(40):
        batch = next(batches)
        truth = batch["input_ids"].clone()
        target = batch["labels"] != IGNORED
        truth[target.nonzero()[:, 0], batch["masked_positions"][target]] = batch["labels"][target]
        seen |= {"".join(chr(x) for x in row.tolist() if 0 < x < 128) for row in truth}
    assert held and len(held) + len(seen) == 300 and not held & seen
    trainer = make_trainer(tmp_path, max_steps=6, eval_strategy="steps", eval_steps=3)
    streamed = DomainTrainer(
        model=trainer.model, args=trainer.args, train_dataset=stream,
        eval_dataset=NameBatches(table, lengths, trainer.eval_dataset.collator, 16, evaluation=True),
        processing_class=trainer.processing_class,
    )  # fmt: skip
    streamed.train()
    assert streamed.state.global_step == 6 and len(entries(streamed, "eval_loss")) == 2
    assert [path.name for path in checkpoints.whole_checkpoints(tmp_path)] == ["checkpoint-3", "checkpoint-6"]


def test_figures_by_hand():
    logits = torch.full((1, 3, 128), -40.0)
    logits[0, 0, [97, 98]] = math.log(0.5)
    logits[0, 1, 46] = 0.0
    labels = torch.tensor([[97, 46, IGNORED]])
    told = figures(masked_sums(logits, labels, suffix=torch.tensor([[False, True, False]])))
    assert told["loss"] == pytest.approx(math.log(2) / 2, abs=1e-5)
    assert told["perplexity"] == pytest.approx(math.sqrt(2), abs=1e-5)
    assert (told["perplexity_name"], told["perplexity_suffix"]) == pytest.approx((2.0, 1.0), abs=1e-5)
    assert told["bits_per_character"] == pytest.approx(0.5, abs=1e-5)
    assert told["accuracy_top5"] == 1.0 and told["masked_characters"] == 2
    assert math.isnan(figures(torch.zeros(9))["loss"])


def test_the_suffix_begins_at_the_last_dot_even_when_it_is_masked():
    ids = torch.tensor([[57344, 97, 46, 98, 57347, 57347, 57345]])
    batch = {"input_ids": ids, "masked_positions": torch.tensor([[4, 5, 0]]), "labels": torch.tensor([[46, 99, -100]])}
    assert suffix_positions(batch).tolist()[0][:2] == [True, True]
    batch["labels"] = torch.tensor([[100, 99, -100]])
    assert suffix_positions(batch).tolist()[0][:2] == [True, True]  # behind the dot at 2
    batch["masked_positions"] = torch.tensor([[1, 5, 0]])
    assert suffix_positions(batch).tolist()[0][:2] == [False, True]


def test_evaluate_load_finds_the_metric(tmp_path):
    evaluate = pytest.importorskip("evaluate")
    from conftest import ROOT

    metric = evaluate.load(str(ROOT / "domain_canine" / "masked_characters.py"), cache_dir=str(tmp_path))
    logits = np.full((2, 128), -40.0)
    logits[:, [97, 98]] = math.log(0.5)
    told = metric.compute(predictions=logits.tolist(), references=[97, 99])
    assert told["accuracy_top5"] >= 0.5 and told["masked_characters"] == 2 and told["loss"] > 15


def test_the_mean_of_the_latest_batches():
    from domain_canine.trainer import Meter

    meter = Meter(batches=2)
    assert math.isnan(meter.loss())
    for nats, weight in ((100.0, 1.0), (3.0, 1.0), (1.0, 3.0)):
        meter.add(torch.tensor(nats), torch.tensor(weight))
    assert meter.loss() == pytest.approx(1.0)
    assert meter.since_log.tolist() == [104.0, 5.0]
