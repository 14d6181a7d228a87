"""Flags and sources to batches; streams."""

import numpy as np
import pytest
import torch
from test_trainer import entries, make_trainer

from domain_canine import DataCollatorForCodePointMasking, checkpoints
from domain_canine.arguments import DataArguments, DomainTrainingArguments
from domain_canine.batches import NameBatches, StreamBatches
from domain_canine.corpus import load_corpus
from domain_canine.data import build_batches, build_collator
from domain_canine.errors import UserError
from domain_canine.masking import IGNORED
from domain_canine.sample import sample_names
from domain_canine.sources import open_source
from domain_canine.trainer import DomainTrainer


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


def make_stream(names, rank=0, ranks=1, split_seed=3, num_samples=None, max_length=128):
    class Source:
        description = "a list"

        def lines(self):
            return iter(names)

    collator = DataCollatorForCodePointMasking()
    return StreamBatches(Source(), max_length, collator, 16, rank, ranks, 0.2, split_seed, num_samples, 1)


def names_of(batches) -> list[str]:
    found = []
    for batch in batches:
        truth, target = batch["input_ids"].clone(), batch["labels"] != IGNORED
        truth[target.nonzero()[:, 0], batch["masked_positions"][target]] = batch["labels"][target]
        found += ["".join(chr(x) for x in row.tolist() if 0 < x < 128) for row in truth]
    return found


def one_pass(stream, names: int) -> tuple[list[str], list]:
    batches, seen = [], 0
    for batch in stream:
        batches.append(batch)
        seen += len(batch["labels"])
        if seen >= names:
            break
    return names_of(batches), batches


def test_ranks_of_a_stream_share_it_and_epochs_of_it_differ(tmp_path):
    names = sample_names(400)
    (tmp_path / "names.txt").write_text("\n".join(names))
    split = load_corpus(open_source(str(tmp_path / "names.txt")), 0.2, 3, 128, None, quiet=True)
    train = split.train.names(np.arange(len(split.train)))
    table, _, _ = make_stream(names).validation()
    held = split.validation.names(np.arange(len(split.validation)))
    assert sorted(table.names(np.arange(len(table)))) == sorted(held)
    shares = [one_pass(make_stream(names, rank, 2), len(train) // 2)[0] for rank in (0, 1)]
    assert sorted(shares[0] + shares[1]) == sorted(train)
    twice, batches = one_pass(make_stream(names), 2 * len(train))
    first, second = twice[: len(train)], twice[len(train) :]
    assert sorted(first) == sorted(second) == sorted(train) and first != second != train
    assert not torch.equal(batches[0]["input_ids"], batches[len(batches) // 2]["input_ids"])
    few, _ = one_pass(make_stream(names, num_samples=100), 70)
    assert set(few) <= set(names[:100])
    short, _ = one_pass(make_stream(names, max_length=14), 50)
    assert max(map(len, short)) <= 12


def test_a_stream_with_one_side_alone_is_refused():
    held, trained = make_stream(sample_names(400)).validation()[0], None
    only = held.names(np.arange(len(held)))
    with pytest.raises(UserError, match="no valid name for the training side"):
        make_stream(only).validation()
    trained = [name for name in sample_names(400) if name not in set(only)]
    with pytest.raises(UserError, match="no valid name for the validation side"):
        make_stream(trained).validation()


@pytest.mark.parametrize(("flags", "steps", "every"), [
    ({}, 3 * (8_000 // 64), 8_000 // 64),
    ({"max_steps": 50}, 50, 50),
    ({"eval_strategy": "steps", "eval_steps": 7}, 3 * (8_000 // 64), 7),
])  # fmt: skip
def test_a_stream_takes_its_length_from_the_metadata(tmp_path, monkeypatch, config, flags, steps, every):
    class Source:
        description = "a list"

        def lines(self):
            return iter(sample_names(300))

        def count(self):
            return 10_000

    monkeypatch.setattr("domain_canine.data.open_source", lambda *args, **kwargs: Source())
    args = DomainTrainingArguments(
        output_dir=str(tmp_path), num_train_epochs=3, per_device_train_batch_size=32, use_cpu=True, **flags
    )
    data = DataArguments(dataset="some/names", streaming=True, validation_split=0.2)
    build_batches(data, args, build_collator(data, args, config))
    assert (args.max_steps, args.eval_steps, args.eval_strategy.value) == (steps, every, "steps")


def test_flags_reach_the_collator_and_the_batches(tmp_path, names_file, config):
    config.mask_code_point = 0xE123
    data = DataArguments(
        dataset=str(names_file), mlm_probability=0.3, mask_replace_prob=0.5, random_replace_prob=0.2, span_length=2
    )
    args = DomainTrainingArguments(
        output_dir=str(tmp_path / "x"), seed=9, per_device_train_batch_size=4, per_device_eval_batch_size=7,
        gradient_accumulation_steps=3, use_cpu=True,
    )  # fmt: skip
    collator = build_collator(data, args, config)
    expected = DataCollatorForCodePointMasking(0.3, 0.5, 0.2, 2, "mlm", 0xE123, 128, 9)
    assert collator == expected
    assert build_collator(DataArguments(objective="any_order"), args, config).objective == "any_order"
    train, validation, _ = build_batches(data, args, collator)
    assert (train.plan.global_batch, train.plan.micro_steps, train.plan.seed) == (12, 3, 9)
    assert validation.plan.global_batch == 7 and validation.collator.mask_code_point == 0xE123
