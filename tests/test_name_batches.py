from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import equal
from torch.utils.data import DataLoader

from domain_canine import hashing
from domain_canine.batches import FIXED_ROOMS, NameBatches
from domain_canine.masking import IGNORED, DataCollatorForCodePointMasking
from domain_canine.sample import sample_names
from domain_canine.sampling import WINDOW
from domain_canine.table import NameTable, spans, table_of, write_names
from domain_canine.tokenization_domain_canine import CLS, SEP

NAMES = sample_names(3_000) + ["x" * 63 + "." + "y" * 63 + "." + "z" * 63 + "." + "w" * 57 + ".com", "a.b"]
LENGTHS = np.array([len(name) for name in NAMES], np.uint8)
TABLE = table_of(NAMES)


def batches_of(batch_size=16, table=TABLE, lengths=LENGTHS, collator=None, **options) -> NameBatches:
    return NameBatches(table, lengths, collator or DataCollatorForCodePointMasking(seed=5), batch_size, **options)


def steps_of(batches: NameBatches, epoch: int) -> list[dict]:
    sampler = batches.sampler()
    sampler.set_epoch(epoch)
    return [batches[at] for [at] in sampler]


def unmasked(batch) -> list[tuple[str, tuple, tuple]]:
    """(name, code points shown, positions of its targets) of each row, padding apart."""
    truth, target = batch["input_ids"].clone(), batch["labels"] != IGNORED
    truth[target.nonzero()[:, 0], batch["masked_positions"][target]] = batch["labels"][target]
    rows = []
    for whole, shown, real, positions, wanted in zip(
        truth.tolist(), batch["input_ids"].tolist(), batch["attention_mask"].sum(1).tolist(),
        batch["masked_positions"].tolist(), target.tolist(),
    ):  # fmt: skip
        assert whole[0] == CLS and whole[real - 1] == SEP and not any(whole[real:])
        name = "".join(map(chr, whole[1 : real - 1]))
        rows.append((name, tuple(shown[:real]), tuple(p for p, w in zip(positions, wanted) if w)))
    return rows


EPOCH = [unmasked(batch) for batch in steps_of(batches_of(48), epoch=2)]  # what all ways to divide it must give


@pytest.mark.parametrize(("ranks", "micro_steps"), [(1, 1), (1, 3), (2, 1), (3, 1), (2, 3), (8, 2)])
def test_every_name_once_an_epoch_and_steps_masks_and_all_equal_over_world_sizes(ranks, micro_steps):
    size = 48 // ranks // micro_steps
    parts = [steps_of(batches_of(size, rank=r, ranks=ranks, micro_steps=micro_steps), 2) for r in range(ranks)]
    for step, expected in enumerate(EPOCH):
        shares = [unmasked(part[step * micro_steps + micro]) for part in parts for micro in range(micro_steps)]
        found = [row for share in shares for row in share if row[0]]
        assert sorted(found) == sorted(expected)
        real = [sum(bool(row[0]) for row in share) for share in shares]
        assert max(real) - min(real) <= (0 if step < len(EPOCH) - 1 else 2)
    names = [row[0] for step in EPOCH for row in step]
    assert sorted(names) == sorted(NAMES)


def test_ranks_get_names_of_like_length():
    parts = [steps_of(batches_of(16, rank=rank, ranks=3), 0) for rank in range(3)]
    longest = np.array([[batch["attention_mask"].sum(1).max().item() for batch in part[:-1]] for part in parts])
    # Within a window of so few names lengths are sparse at the long end: the middle one is what counts.
    assert np.median(np.ptp(longest, axis=0)) <= 1


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_workers_change_nothing(tmp_path, workers):
    write_names(TABLE.take(np.arange(len(NAMES))), tmp_path / "names.arrow")
    batches = batches_of(64, table=NameTable([tmp_path / "names.arrow"]), micro_steps=2)
    sampler = batches.sampler()
    sampler.set_epoch(1)
    loader = DataLoader(batches, batch_sampler=sampler, collate_fn=lambda items: items[0], num_workers=workers)
    expected = steps_of(batches_of(64, micro_steps=2), 1)
    found = list(loader)
    assert len(found) == len(expected) and all(map(equal, found, expected))


def test_a_worker_makes_no_batch_that_another_is_asked_for(monkeypatch):
    monkeypatch.setattr("domain_canine.batches.get_worker_info", lambda: SimpleNamespace(num_workers=2))
    batches = batches_of(16)
    for index in range(1, WINDOW, 2):
        batches[0, index]
    assert not batches._ready


def test_a_jump_gives_what_walking_gives():
    walked, jumping = steps_of(batches_of(16), 3), batches_of(16)
    for index in (len(walked) - 1, 130, 5, 64, 63, 130, 5):
        assert equal(jumping[3, index], walked[index])
    assert not torch.equal(jumping[4, 5]["masked_positions"], walked[5]["masked_positions"])


def test_masks_are_those_of_the_row_and_in_evaluation_those_of_the_name():
    """Equal to the collator on its own, whatever else is masked along."""
    collator = DataCollatorForCodePointMasking(seed=5)
    row_of = {name: row for row, name in enumerate(NAMES)}
    for evaluation, epoch in ((False, 3), (True, 0)):
        batches = batches_of(32, evaluation=evaluation, collator=collator)
        for index in (0, 20, 64, len(NAMES) // 32):
            batch = batches[epoch, index]
            names = [name for name, _, _ in unmasked(batch)]
            ids = np.zeros(batch["input_ids"].shape, np.int64)
            lengths = np.array([len(name) + 2 for name in names])
            for row, name in enumerate(names):
                ids[row, : len(name) + 2] = [CLS, *map(ord, name), SEP]
            if evaluation:
                told = batches.collator
                keys = hashing.hash_names(ids.ravel(), np.arange(len(ids)) * ids.shape[1] + 1, lengths - 2)
            else:
                told, keys = collator, np.array([row_of[name] for name in names])
            expected = told.collate(ids, lengths, keys, told.epoch if evaluation else epoch)
            most = expected["labels"].shape[1]
            assert (batch["labels"][:, most:] == IGNORED).all()  # room for names as long as L has room for
            batch |= {name: batch[name][:, :most] for name in ("labels", "masked_positions")}
            assert equal(batch, expected)


@pytest.mark.parametrize("objective", ["mlm", "any_order"])
def test_batches_of_one_length_have_one_shape(objective):
    batches = batches_of(16, collator=DataCollatorForCodePointMasking(objective=objective))
    shapes = {
        tuple(batch["masked_positions"].shape) + tuple(batch["input_ids"].shape) for batch in steps_of(batches, 0)
    }
    lengths = [shape[-1] for shape in shapes if shape[0] == 16]
    assert len(lengths) == len(set(lengths)) > 3


def test_a_window_is_read_once_by_each_process():
    reads = []

    class Counting(NameTable):
        def take(self, rows):
            reads.append(len(rows))
            return super().take(rows)

    batches = batches_of(16, table=Counting(TABLE.sources))
    steps_of(batches, 0)
    assert reads == [1024, 1024, len(NAMES) // 16 * 16 - 2048, len(NAMES) % 16]


def test_a_batch_is_no_view_of_a_larger_one():
    """What a worker sends is the memory behind a tensor, all of it."""
    batch = batches_of(16)[0, 0]
    assert all(
        values.untyped_storage().nbytes() == values.nbytes for values in batch.values() if torch.is_tensor(values)
    )


@pytest.mark.parametrize("objective", ["mlm", "any_order"])
def test_a_rank_without_names_computes_a_row_of_no_weight(objective):
    collator = DataCollatorForCodePointMasking(objective=objective)
    table, lengths = table_of(NAMES[:9]), LENGTHS[:9]
    parts = [NameBatches(table, lengths, collator, 2, rank, 4) for rank in range(4)]
    assert [part.plan.steps for part in parts] == [2] * 4
    last = [part[0, 1] for part in parts]
    assert [len(batch["labels"]) for batch in last] == [1] * 4
    empty = [batch for batch in last if not unmasked(batch)[0][0]]
    assert len(empty) == 3
    for batch in empty:
        assert batch["input_ids"].tolist() == [[CLS, SEP] + [0] * (batch["input_ids"].shape[1] - 2)]
        assert (batch["labels"] == IGNORED).all() and batch.get("loss_weights", torch.zeros(1)).sum() == 0


@pytest.mark.parametrize("options", [{}, {"objective": "any_order"}, {"fraction": 0.4, "span_length": 3}])
@pytest.mark.parametrize("evaluation", [False, True])
def test_fixed_shapes_are_few_and_ask_the_same(options, evaluation):
    collator = DataCollatorForCodePointMasking(**options)
    free = steps_of(batches_of(32, collator=collator, evaluation=evaluation), 1)
    fixed = steps_of(batches_of(32, collator=collator, evaluation=evaluation, fixed_shapes=True), 1)
    shapes = {(*batch["input_ids"].shape, *batch["labels"].shape) for batch in fixed}
    lengths = {length for _, length, _, _ in shapes}
    assert 3 < len(shapes) == len(lengths) <= len(FIXED_ROOMS)  # one K for each L
    assert {(rows, again) for rows, _, again, _ in shapes} == {(32, 32)}
    assert all(length % 4 == 2 for length in lengths) and max(lengths) == 258
    for one, other in zip(free, fixed):
        rows, fill = unmasked(other)[: len(one["labels"])], unmasked(other)[len(one["labels"]) :]
        assert rows == unmasked(one)
        assert all(row == ("", (CLS, SEP), ()) for row in fill)
        if "loss_weights" in other:
            assert other["loss_weights"].sum() == one["loss_weights"].sum()


def test_padding_is_little_and_in_whole_molecules():
    names = sample_names(20_000)
    table = table_of(names)
    lengths = spans(table.take(np.arange(len(names))))[2].astype(np.uint8)
    for fixed_shapes, least in ((False, 0.72), (True, 0.70)):
        slots = 0
        batches = batches_of(256, table=table, lengths=lengths, fixed_shapes=fixed_shapes)
        for batch in steps_of(batches, 0)[:-1]:
            rows, length = batch["input_ids"].shape
            assert length % 4 == 2
            assert fixed_shapes or length - 3 <= batch["attention_mask"].sum(1).max() <= length
            slots += rows * (length + 2)
        assert (lengths[: 20_000 // 256 * 256] + 2.0).sum() / slots > least


def test_batches_say_whether_they_are_ascii():
    assert batches_of()[0, 0]["ascii_only"] is True
    custom = batches_of(collator=DataCollatorForCodePointMasking(mask_code_point=0xE123))
    assert custom[0, 0]["ascii_only"] is False
