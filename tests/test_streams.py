"""Streams: what their readers share, passes, and resumes to the bit."""

from itertools import count, islice
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import equal
from small_runs import assert_equal, entries, make_trainer, weights
from transformers import TrainerCallback

from domain_canine import DataCollatorForCodePointMasking, checkpoints
from domain_canine.arguments import DataArguments
from domain_canine.batches import NameBatches
from domain_canine.callbacks import StreamEpoch, evaluation_line
from domain_canine.cleaning import hash_array, on_validation_side
from domain_canine.data import build_batches, build_collator
from domain_canine.errors import OwnError, UserError
from domain_canine.loader import BatchLoader
from domain_canine.masking import IGNORED
from domain_canine.metrics import MaskedFigures
from domain_canine.remote import FileStream, open_stream
from domain_canine.sample import sample_names
from domain_canine.streams import StreamBatches
from domain_canine.trainer import DomainTrainer
from domain_canine.training_arguments import DomainTrainingArguments

NAMES = sample_names(400)


def make_stream(source, rank=0, ranks=1, workers=0, num_samples=None, max_length=128, batch_size=2) -> StreamBatches:
    """Windows of 128 lines a reader."""
    return StreamBatches(
        source, max_length, DataCollatorForCodePointMasking(), batch_size, rank, ranks, workers, 0.2, 3, num_samples, 1
    )


def load(stream, workers=None) -> BatchLoader:
    if workers is None:
        workers = stream.workers if stream.workers > 1 else 0
    args = SimpleNamespace(
        dataloader_num_workers=workers, dataloader_pin_memory=False, device=torch.device("cpu"), seed=1,
        dataloader_prefetch_factor=2, dataloader_persistent_workers=False,
    )  # fmt: skip
    return BatchLoader(stream, args)


def write(folder, names, files=1):
    for i in range(files):
        (folder / f"names-{i}.txt").write_text("".join(f"{name}\n" for name in names[i::files]))
    return open_stream(str(folder / "names-*.txt"))


def training_names(names=NAMES) -> list[str]:
    array = pa.array(names, pa.string())
    return [name for name, held in zip(names, on_validation_side(hash_array(array), 0.2, 3)) if not held]


def names_of(batch) -> list[str]:
    truth, target = batch["input_ids"].clone(), batch["labels"] != IGNORED
    truth[target.nonzero()[:, 0], batch["masked_positions"][target]] = batch["labels"][target]
    return ["".join(chr(x) for x in row.tolist() if 0 < x < 128) for row in truth]


def passes(loader, wanted=1) -> list[list[str]]:
    """The names of the first passes, all workers of a rank together."""
    stream, found = loader.dataset, [[] for _ in range(wanted)]
    for batch in loader:
        epoch = stream.positions[stream.next_worker - 1].epoch
        if epoch < wanted:
            found[epoch] += names_of(batch)
        if min(position.epoch for position in stream.positions) >= wanted:
            break
    return found


def take(loader, wanted) -> list[dict]:
    return list(islice(loader, wanted))


# ---- sharing, passes, sides


@pytest.mark.parametrize(("ranks", "workers", "files"), [
    (1, 0, 1), (1, 1, 7), (1, 2, 1), (2, 0, 1), (2, 0, 7), (2, 1, 1), (2, 2, 7), (3, 0, 7), (3, 2, 1), (3, 2, 7),
])  # fmt: skip
def test_readers_share_every_training_name_of_a_pass(tmp_path, ranks, workers, files):
    source = write(tmp_path, NAMES, files)
    shares = [passes(load(make_stream(source, rank, ranks, workers), workers))[0] for rank in range(ranks)]
    assert all(shares) and sorted(sum(shares, [])) == sorted(training_names())


def test_files_are_dealt_only_where_there_are_enough(tmp_path, monkeypatch):
    source, opened = write(tmp_path, NAMES, 4), []
    arrays = FileStream.arrays
    monkeypatch.setattr(FileStream, "arrays", lambda self, i, rows: (opened.append(i), arrays(self, i, rows))[1])
    passes(load(make_stream(source, 1, 4)))
    assert set(opened) == {1}
    opened.clear()
    passes(load(make_stream(source, 1, 5)))
    assert set(opened) == {0, 1, 2, 3}


def test_passes_differ_in_order_and_masks_and_no_validation_name_is_in_any(tmp_path):
    stream = make_stream(write(tmp_path, NAMES), batch_size=16)
    first, second = passes(load(stream), 2)
    assert sorted(first) == sorted(second) == sorted(training_names()) and first != second != training_names()
    held, lengths, cleaner = stream.validation()
    held = held.names(np.arange(len(held)))
    assert sorted(held + first) == sorted(NAMES) and lengths.tolist() == list(map(len, held))
    assert cleaner.counts["valid"] == len(NAMES)
    mates = {frozenset(names_of(batch)) for batch in take(load(make_stream(stream.source, batch_size=16)), 38)}
    assert len(mates) > 30
    batches = take(load(make_stream(stream.source, batch_size=400)), 2)
    masked = [dict(zip(names_of(batch), batch["masked_positions"].tolist())) for batch in batches]
    assert masked[0].keys() == masked[1].keys()
    assert sum(masked[0][name] != masked[1][name] for name in first) > len(first) / 2


def test_windows_differ_in_the_order_of_their_batches(tmp_path):
    pairs = [training_names([f"{i:0{n}}.com" for i in range(10)])[:2] for n in range(1, 33)]
    source = write(tmp_path, sum(pairs, []), 2)  # a window each, of the same lengths
    lengths = [len(names_of(batch)[0]) for batch in take(load(make_stream(source, batch_size=1)), 64)]
    assert sorted(lengths[:32]) == sorted(lengths[32:]) and lengths[:32] != lengths[32:]


def test_a_window_brings_names_of_like_length_together(tmp_path):
    lengths = [
        batch["attention_mask"].sum(1) for batch in take(load(make_stream(write(tmp_path, NAMES), batch_size=16)), 20)
    ]
    assert np.mean([float(of.max() - of.min()) for of in lengths]) < 2


def test_a_pass_can_be_the_first_names_alone_and_long_names_are_left_out(tmp_path):
    source = write(tmp_path, ["# not a name", "nor_this", *NAMES])
    shares = [passes(load(make_stream(source, rank, 2, num_samples=100)), 2) for rank in (0, 1)]
    for one, other in zip(*shares):
        assert sorted(one + other) == sorted(training_names(NAMES[:100]))
    table, _, _ = make_stream(source, num_samples=100).validation()
    assert set(table.names(np.arange(len(table)))) == set(NAMES[:100]) - set(training_names(NAMES[:100]))
    assert max(map(len, passes(load(make_stream(source, max_length=14)))[0])) == 12


def test_validation_names_are_different_ones(tmp_path, monkeypatch):
    monkeypatch.setattr("domain_canine.streams.VALIDATION", 20)
    table, lengths, _ = make_stream(write(tmp_path, [name for name in NAMES for _ in range(3)])).validation()
    held = [name for name in NAMES if name not in set(training_names())]
    assert table.names(np.arange(len(table))) == held[:20] and len(lengths) == 20


def test_a_stream_with_one_side_alone_is_refused(tmp_path):
    held = [name for name in NAMES if name not in set(training_names())]
    for names, side in ((held, "training"), (training_names(), "validation")):
        with pytest.raises(UserError, match=f"has no name for the {side} side; give more names; .* lines read"):
            make_stream(write(tmp_path, names)).validation()


@pytest.mark.parametrize("workers", [0, 2])
def test_a_reader_without_names_says_so_without_a_traceback(tmp_path, monkeypatch, workers):
    arrays, opened = FileStream.arrays, count()
    monkeypatch.setattr(FileStream, "arrays", lambda *args: arrays(*args) if next(opened) < 50 else 1 / 0)
    write(tmp_path, NAMES)
    (tmp_path / "names-1.txt").write_text("nothing\n")
    loader = load(make_stream(open_stream(str(tmp_path)), 0 if workers else 1, 1 if workers else 2, workers))
    # Of this process alone: another one that is the first of its machine may know nothing of it.
    with pytest.raises(OwnError, match="reader 2 of 2; use fewer") as told:
        take(loader, 400)
    assert "Traceback" not in str(told.value)


@pytest.mark.parametrize(("flags", "wanted", "steps", "every"), [
    ({}, None, 3 * (8_000 // 64), 8_000 // 64),
    ({}, 99_000, 3 * (8_000 // 64), 8_000 // 64),
    ({}, 1_000, 3 * (800 // 64), 800 // 64),
    ({"num_train_epochs": 0.001}, None, 1, 1),
    ({"max_steps": 50}, None, 50, 50),
    ({"save_steps": 7}, None, 3 * (8_000 // 64), 8_000 // 64),
    ({"eval_strategy": "steps", "eval_steps": 7}, None, 3 * (8_000 // 64), 7),
])  # fmt: skip
def test_a_stream_takes_its_length_from_the_metadata(tmp_path, monkeypatch, config, flags, wanted, steps, every):
    monkeypatch.setattr("domain_canine.streams.VALIDATION", 10)  # the rest is not read before training
    source = write(tmp_path, NAMES)
    source.count = lambda: 10_000
    monkeypatch.setattr("domain_canine.data.open_stream", lambda *args: source)
    args = DomainTrainingArguments(
        output_dir=str(tmp_path), per_device_train_batch_size=32, use_cpu=True, **{"num_train_epochs": 3} | flags
    )
    data = DataArguments(dataset="some/names", streaming=True, validation_split=0.2, num_samples=wanted)
    build_batches(data, args, build_collator(data, args, config))
    assert (args.max_steps, args.eval_steps, args.eval_strategy.value) == (steps, every, "steps")


@pytest.mark.parametrize(("flags", "every"), [({}, 10_000), ({"eval_steps": 700}, 700), ({"eval_steps": 0.1}, 2000)])
def test_a_stream_of_unknown_length_is_evaluated_whatever_checkpoints_do(tmp_path, monkeypatch, config, flags, every):
    """Evaluations can end a run early."""
    monkeypatch.setattr("domain_canine.streams.VALIDATION", 10)
    monkeypatch.setattr("domain_canine.data.open_stream", lambda *args: write(tmp_path, NAMES))
    args = DomainTrainingArguments(output_dir=str(tmp_path), max_steps=20_000, save_steps=50, use_cpu=True, **flags)
    data = DataArguments(dataset="some/names", streaming=True, validation_split=0.2)
    build_batches(data, args, build_collator(data, args, config))
    assert (args.eval_steps, args.eval_strategy.value) == (every, "steps")


@pytest.mark.parametrize("wanted, names", [(None, 400), (5_000, 400), (100, 100)])
def test_a_stream_that_was_read_to_its_end_is_as_long_as_it_is(tmp_path, monkeypatch, config, wanted, names):
    """Validation names are looked for first; where that reads all there is nothing to estimate."""
    source = write(tmp_path, ["no name", *NAMES])
    monkeypatch.setattr("domain_canine.data.open_stream", lambda *args: source)
    options = {"num_train_epochs": 1, "per_device_train_batch_size": 4, "use_cpu": True}
    args = DomainTrainingArguments(output_dir=str(tmp_path), **options)
    data = DataArguments(dataset="some/names", streaming=True, validation_split=0.2, num_samples=wanted)
    train, _, rows = build_batches(data, args, build_collator(data, args, config))
    assert args.max_steps == train.steps_per_epoch == int(names * 0.8) // 8
    assert dict(rows)["names"].startswith(f"{names:,}; ")
    monkeypatch.setattr("domain_canine.streams.VALIDATION", 10)
    if wanted is None:
        with pytest.raises(UserError, match="does not tell how many names it has; set --max_steps"):
            build_batches(
                data, DomainTrainingArguments(output_dir=str(tmp_path), **options), build_collator(data, args, config)
            )


def test_a_checkpoint_is_written_after_each_pass_of_a_stream(tmp_path):
    trainer = streamed_trainer(tmp_path, write(tmp_path, NAMES), 0, eval_strategy="no", save_steps=1000, max_steps=7)
    trainer.train_dataset.steps_per_epoch = 3
    trainer.callback_handler.callbacks = [
        StreamEpoch(3) if isinstance(each, StreamEpoch) else each for each in trainer.callback_handler.callbacks
    ]
    trainer.train()
    saved = {path.name for path in Path(trainer.args.output_dir).glob("checkpoint-*")}
    assert saved == {"checkpoint-3", "checkpoint-6", "checkpoint-7"}


# ---- resume


@pytest.mark.parametrize("stop", [1, 75, 201])
@pytest.mark.parametrize(("ranks", "workers", "num_samples"), [(1, 0, None), (2, 2, None), (1, 2, 300)])
def test_a_resumed_stream_goes_on_behind_the_last_batch(tmp_path, ranks, workers, num_samples, stop):
    source = write(tmp_path, NAMES, 2)
    options = {"rank": ranks - 1, "ranks": ranks, "workers": workers, "num_samples": num_samples}
    whole = take(load(make_stream(source, **options)), stop + 20)
    for rank in range(ranks):
        stopped = make_stream(source, **options | {"rank": rank})
        take(load(stopped), stop)
        stopped.save(tmp_path)
    resumed = make_stream(source, **options)
    resumed.resume(tmp_path)
    rest = take(load(resumed), 20)
    assert all(equal(one, other) for one, other in zip(whole[stop:], rest)) and len(rest) == 20
    assert sum(path.stat().st_size for path in tmp_path.glob("stream-*.json")) < 200 * ranks


def test_a_resume_at_the_end_of_a_pass_of_one_block_goes_on_with_the_next(tmp_path):
    source = write(tmp_path, NAMES[:100])
    whole = take(load(make_stream(source)), 120)
    stopped = make_stream(source)
    for stop, _ in enumerate(load(stopped), 1):
        stopped.save(tmp_path)
        resumed = make_stream(source)
        resumed.resume(tmp_path)
        assert equal(next(iter(load(resumed))), whole[stop])
        if stopped.positions[0].epoch == 1:
            break


def test_parquet_tells_its_length_and_text_does_not(tmp_path):
    for name in ("a", "b"):
        pq.write_table(pa.table({"domain": NAMES}), tmp_path / f"{name}.parquet")
    assert open_stream(str(tmp_path)).count() == 800
    assert write(tmp_path, NAMES).count() is None


def test_the_epoch_of_a_stream_is_that_of_its_names_or_none(tmp_path):
    for steps, told in ((4, [0.5, 1.0, 1.5]), (None, [None] * 3)):
        trainer = make_trainer(
            tmp_path / str(steps), max_steps=6, logging_steps=2, save_strategy="no", eval_strategy="no"
        )
        trainer.train_dataset = make_stream(write(tmp_path, NAMES))
        callback = StreamEpoch(steps)
        seen = []
        for step in (2, 4, 6):
            trainer.state.global_step = step
            callback.on_step_end(trainer.args, trainer.state, trainer.control)
            seen.append(trainer.state.epoch)
        assert seen == told
        metrics = {f"eval_{name}": 1.0 for name in ("loss", "perplexity", "perplexity_name", "perplexity_suffix",
                                                    "bits_per_character", "accuracy", "accuracy_top5")}  # fmt: skip
        assert evaluation_line(metrics, trainer.state, MaskedFigures()).startswith(
            "epoch 1.50, step 6:" if steps else "step 6:"
        )


def test_a_resume_opens_no_file_before_its_own(tmp_path, monkeypatch):
    source, opened = write(tmp_path, NAMES, 4), []
    stopped = make_stream(source)
    for _ in load(stopped):
        if stopped.positions[0].file == 2:
            break
    stopped.save(tmp_path)
    resumed = make_stream(source)
    resumed.resume(tmp_path)
    arrays = FileStream.arrays
    monkeypatch.setattr(FileStream, "arrays", lambda self, i, rows: (opened.append(i), arrays(self, i, rows))[1])
    take(load(resumed), 1)
    assert opened == [2]


def test_with_other_readers_the_pass_starts_over_and_that_is_said(tmp_path, capsys):
    source = write(tmp_path, NAMES)
    stopped = make_stream(source, workers=2)
    take(load(stopped), 30)
    stopped.save(tmp_path)
    shares = []
    for rank in range(3):
        resumed = make_stream(source, rank, 3)
        resumed.resume(tmp_path)
        assert resumed.positions[0] == (1, 0, 0, 0)
        shares += passes(load(resumed), 2)[1]
    assert sorted(shares) == sorted(training_names())
    said = capsys.readouterr().err
    told = (
        "by 1 ranks, 2 workers, 2 names a batch, 1 files; now by 3 ranks, 1 workers, 2 names a batch, 1 files: its pass"
    )
    assert said.count("\n") == 1 and told in said
    ahead = make_stream(source, 1, 2)
    ahead.positions = [(4, 0, 0, 0)]
    ahead.save(tmp_path)  # by a rank with shorter files; of all passes those after it alone are new
    late = make_stream(source)
    late.resume(tmp_path)
    assert late.positions == [(5, 0, 0, 0)]
    (tmp_path / "stream-1.json").unlink()
    for other in (make_stream(source, workers=2, batch_size=3), make_stream(write(tmp_path, NAMES, 2), workers=2)):
        other.resume(tmp_path)
        assert other.positions == [(1, 0, 0, 0)] * 2


def streamed_trainer(folder, source, workers, **changes) -> DomainTrainer:
    options = {
        "max_steps": 8, "save_steps": 3, "eval_strategy": "steps", "eval_steps": 4, "dataloader_num_workers": workers,
        "per_device_train_batch_size": 4,
    } | changes  # fmt: skip
    trainer = make_trainer(folder, **options)
    stream = make_stream(source, workers=workers, batch_size=4)
    table, lengths, _ = stream.validation()
    return DomainTrainer(
        model=trainer.model, args=trainer.args, train_dataset=stream,
        eval_dataset=NameBatches(table, lengths, trainer.eval_dataset.collator, 16, evaluation=True),
        processing_class=trainer.processing_class,
    )  # fmt: skip


@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_streamed_run_equals_the_one_never_stopped(tmp_path, workers):
    source = write(tmp_path, NAMES, 2)
    whole = streamed_trainer(tmp_path / "whole", source, workers)
    whole.train()
    assert [path.name for path in checkpoints.whole_checkpoints(tmp_path / "whole")] == [
        "checkpoint-4", "checkpoint-6", "checkpoint-8",
    ]  # fmt: skip

    class Stop(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == 5:
                raise KeyboardInterrupt

    first = streamed_trainer(tmp_path / "run", source, workers, save_steps=5)
    first.add_callback(Stop())
    with pytest.raises(KeyboardInterrupt):
        first.train()
    second = streamed_trainer(tmp_path / "run", source, workers)
    second.train(resume_from_checkpoint=checkpoints.to_resume_from(tmp_path / "run", "newest"))
    assert second.state.global_step == 8
    assert_equal(weights(second), weights(whole))
    for key in ("eval_loss", "loss", "epoch"):
        assert entries(second, key) == entries(whole, key)
    second.save_final()
    assert not list((tmp_path / "run").glob("stream-*.json"))
