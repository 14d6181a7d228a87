import itertools
import math
from collections import Counter

import numpy as np
import pytest
import torch

from domain_canine import hashing
from domain_canine.masking import IGNORED, DataCollatorForCodePointMasking
from domain_canine.normalization_domain_canine import NAME_CHARACTERS
from domain_canine.tokenization_domain_canine import CLS, MASK, PAD, SEP


def features(*names: str) -> list[dict]:
    return [{"input_ids": [CLS, *map(ord, name), SEP]} for name in names]


def many(collator, length: int = 20, rows: int = 5_000, epoch: int = 0):
    """Rows of the letter q, masked."""
    ids = np.full((rows, length + 2), ord("q"))
    ids[:, 0], ids[:, -1] = CLS, SEP
    return collator.collate(ids, np.full(rows, length + 2), np.arange(rows), epoch)


def shown(batch) -> torch.Tensor:
    """What stands at the targets, (targets,)."""
    return batch["input_ids"].gather(1, batch["masked_positions"])[batch["labels"] != IGNORED]


def test_a_batch_by_hand():
    batch = DataCollatorForCodePointMasking(fraction=1.0, mask_replace_prob=1.0, random_replace_prob=0.0)(
        features("ab", "c")
    )
    assert batch["input_ids"].tolist() == [[CLS, MASK, MASK, SEP], [CLS, MASK, SEP, PAD]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 1, 0]]
    assert batch["masked_positions"].tolist() == [[1, 2], [1, 0]]
    assert batch["labels"].tolist() == [[97, 98], [99, IGNORED]]
    assert sorted(batch) == ["ascii_only", "attention_mask", "input_ids", "labels", "masked_positions"]


def test_a_batch_says_whether_it_is_ascii():
    collator = DataCollatorForCodePointMasking(fraction=0.01)
    assert collator(features("ab", "c"))["ascii_only"] is True
    assert collator(features("ab", "ü"))["ascii_only"] is False
    assert collator([{"input_ids": [CLS, 97, 0xE008]}])["ascii_only"] is False
    assert DataCollatorForCodePointMasking(mask_code_point=0xE123)(features("ab"))["ascii_only"] is False


def test_only_names_characters_are_masked_and_every_name_has_a_target():
    names = ["a.de", "x.y", "münchen.de", "a[b]c.com", "abcdefghijklmnopqrstuvwxyz.com"]
    collator = DataCollatorForCodePointMasking(fraction=0.5)
    for collator.epoch in range(50):
        batch = collator(features(*names))
        target = batch["labels"] != IGNORED
        assert target.any(1).all()
        for name, positions, wanted, labels in zip(names, batch["masked_positions"], target, batch["labels"]):
            for position, label in zip(positions[wanted].tolist(), labels[wanted].tolist()):
                assert 1 <= position <= len(name) and label == ord(name[position - 1]) < 128
    # Special code points inside a text are left alone, too.
    inside = [{"input_ids": [CLS, 97, SEP, CLS, MASK, PAD, 98, SEP]}]
    for collator.epoch in range(50):
        batch = collator(inside)
        assert set(batch["masked_positions"][batch["labels"] != IGNORED].tolist()) <= {1, 6}


def test_without_a_frame_position_0_can_be_a_target():
    collator = DataCollatorForCodePointMasking(mask_replace_prob=1.0, random_replace_prob=0.0, fraction=0.5)
    seen = set()
    for collator.epoch in range(40):
        batch = collator([{"input_ids": [97, 98]}, {"input_ids": list(range(97, 107))}])
        target = batch["labels"] != IGNORED
        assert (shown(batch) == MASK).all()
        assert (batch["input_ids"] == MASK).sum() == target.sum()
        seen |= set(batch["masked_positions"][0][target[0]].tolist())
    assert seen == {0, 1}


def test_fifteen_percent_of_the_characters():
    batch = many(DataCollatorForCodePointMasking())
    share = (batch["labels"] != IGNORED).sum().item() / (5_000 * 20)
    assert abs(share - 0.15) < 0.003
    counts = (batch["labels"] != IGNORED).sum(1)
    assert set(counts.tolist()) == {3}  # 0.15 x 20 exactly
    counts = (many(DataCollatorForCodePointMasking(), length=13)["labels"] != IGNORED).sum(1).float()
    assert set(counts.tolist()) == {1.0, 2.0} and abs(counts.mean() - 1.95) < 0.02


def test_positions_are_uniform():
    batch = many(DataCollatorForCodePointMasking(), rows=20_000)
    counts = torch.bincount(batch["masked_positions"].flatten(), minlength=22)[1:21]
    expected = 20_000 * 3 / 20
    assert ((counts - expected).abs() < 5 * math.sqrt(expected)).all()
    assert counts.sum() == 60_000


def test_eighty_ten_ten():
    batch = many(DataCollatorForCodePointMasking(), rows=20_000)
    found = shown(batch)
    masked, kept = (found == MASK).float().mean(), (found == ord("q")).float().mean()
    assert abs(masked - 0.8) < 0.01
    assert abs(kept - (0.1 + 0.1 / 37)) < 0.01
    others = set(found[found != MASK].tolist())
    assert others == {ord(character) for character in NAME_CHARACTERS}
    # Each as often as the others: the draw of the character shares no bits with the draw of the kind.
    counts = torch.bincount(found[(found != MASK) & (found != ord("q"))], minlength=128)[
        [ord(c) for c in NAME_CHARACTERS if c != "q"]
    ]
    assert ((counts - counts.float().mean()).abs() < 5 * counts.float().mean().sqrt()).all()


def test_masks_only_and_all_kept():
    only = many(DataCollatorForCodePointMasking(mask_replace_prob=1.0, random_replace_prob=0.0))
    assert (shown(only) == MASK).all()
    kept = many(DataCollatorForCodePointMasking(mask_replace_prob=0.0, random_replace_prob=0.0))
    assert (kept["input_ids"][:, 1:-1] == ord("q")).all()
    for custom in (
        DataCollatorForCodePointMasking(mask_code_point=CLS),
        DataCollatorForCodePointMasking(mask_code_point=CLS).for_evaluation(),
    ):
        batch = many(custom)
        assert (shown(batch) == CLS).float().mean() > 0.7 and not (batch["input_ids"] == MASK).any()
    other = many(DataCollatorForCodePointMasking(mask_replace_prob=1.0, random_replace_prob=0.0, mask_code_point=CLS))
    assert (shown(other) == CLS).all()


def test_masks_depend_on_name_epoch_and_seed_alone():
    collator = DataCollatorForCodePointMasking()
    whole = many(collator)
    ids = np.full((3, 30), PAD)
    ids[:, 0], ids[:, 1:21], ids[:, 21] = CLS, ord("q"), SEP
    part = collator.collate(ids, np.full(3, 22), np.array([17, 4_000, 3]), 0)
    for row, name in enumerate((17, 4_000, 3)):
        assert torch.equal(part["masked_positions"][row], whole["masked_positions"][name])
        assert torch.equal(part["input_ids"][row, :22], whole["input_ids"][name])
    assert not torch.equal(many(collator, epoch=1)["masked_positions"], whole["masked_positions"])
    assert not torch.equal(many(DataCollatorForCodePointMasking(seed=1))["masked_positions"], whole["masked_positions"])


def test_every_run_evaluates_the_same_question():
    """15%, masks only, from a fixed seed: figures of runs with other masking and seeds compare."""
    one = DataCollatorForCodePointMasking(fraction=0.3, seed=7, span_length=2).for_evaluation()
    other = DataCollatorForCodePointMasking(mask_replace_prob=0.5).for_evaluation()
    assert one == other
    batch = many(one, epoch=one.epoch)
    assert (shown(batch) == MASK).all()
    assert (batch["labels"] != IGNORED).sum() == 5_000 * 3


def test_spans_are_runs():
    batch = many(DataCollatorForCodePointMasking(fraction=0.3, span_length=3), rows=2_000)
    positions = batch["masked_positions"].numpy()
    assert positions.shape[1] == 7 and (batch["labels"][:, :6] != IGNORED).all()
    runs = [len(np.split(row, np.flatnonzero(np.diff(row) > 1) + 1)) for row in positions[:, :6]]
    single = many(DataCollatorForCodePointMasking(fraction=0.3), rows=2_000)["masked_positions"].numpy()
    single_runs = [len(np.split(row, np.flatnonzero(np.diff(row) > 1) + 1)) for row in single[:, :6]]
    assert np.mean(runs) < 2.6 < 4 < np.mean(single_runs)
    # The ends of a name are masked as often as its middle.
    many_names = many(DataCollatorForCodePointMasking(fraction=0.3, span_length=3), rows=40_000)["masked_positions"]
    counts = np.bincount(many_names[:, :6].numpy().ravel(), minlength=22)[1:21]
    assert counts.sum() == 240_000 and abs(counts - 12_000).max() < 5 * math.sqrt(12_000)


def test_spans_end_with_the_count():
    """5 characters in spans of 3: one of 3 and one of 2, unless they touch or meet the end of the name."""
    batch = many(DataCollatorForCodePointMasking(fraction=0.25, span_length=3), rows=2_000)
    positions, target = batch["masked_positions"].numpy(), (batch["labels"] != IGNORED).numpy()
    assert (target.sum(1) == 5).all() and (np.diff(positions[:, :5]) > 0).all()
    kinds = {tuple(sorted(map(len, np.split(row, np.flatnonzero(np.diff(row) > 1) + 1)))) for row in positions[:, :5]}
    assert kinds == {(2, 3), (5,), (1, 2, 2), (1, 1, 3), (1, 4), (2, 3)}


@pytest.mark.parametrize("fraction", [1 / 6, 1 / 3, 1 / 2, 2 / 3])
def test_every_subset_is_as_likely(fraction):
    size = round(6 * fraction)
    batch = many(DataCollatorForCodePointMasking(fraction=fraction + 1e-9), length=6, rows=60_000)
    found = Counter(map(tuple, (batch["masked_positions"][:, :size] - 1).tolist()))
    subsets = list(itertools.combinations(range(6), size))
    assert sorted(found) == subsets
    expected = 60_000 / len(subsets)
    assert all(abs(count - expected) < 5 * math.sqrt(expected) for count in found.values())


def test_any_order_masks_any_number_and_weights_it():
    collator = DataCollatorForCodePointMasking(objective="any_order")
    batch = many(collator, length=10, rows=20_000)
    masked = (batch["labels"] != IGNORED).sum(1)
    counts = torch.bincount(masked, minlength=11)
    assert counts[0] == 0 and ((counts[1:] - 2_000).abs() < 5 * math.sqrt(2_000)).all()
    assert torch.allclose(batch["loss_weights"], 10 / masked)
    assert (shown(batch) == MASK).all()


def test_any_order_loss_is_the_mean_over_all_orders():
    """The expected weighted loss of a name of 4 characters against the exact sum over its 24 orders.

    The model is any function of (masked string, position); revealing in order s costs the sum over t of
    nats(position s_t | characters s_t .. s_4 masked). Both sides are sums over the same 32 (mask, position) pairs.
    """
    n = 4
    generator = torch.Generator().manual_seed(3)
    nats = {
        (mask, position): torch.rand((), generator=generator).item()
        for size in range(1, n + 1)
        for mask in itertools.combinations(range(n), size)
        for position in mask
    }
    exact = np.mean([
        sum(nats[tuple(sorted(order[t:])), order[t]] for t in range(n)) for order in itertools.permutations(range(n))
    ])  # fmt: skip
    # Expected over the collator's own draws: k uniform, the subset uniform, weight n / k.
    batch = many(DataCollatorForCodePointMasking(objective="any_order"), length=n, rows=400_000)
    masked = [tuple(p - 1 for p, label in zip(row, labels) if label != IGNORED)
              for row, labels in zip(batch["masked_positions"].tolist(), batch["labels"].tolist())]  # fmt: skip
    losses = {mask: n / len(mask) * sum(nats[mask, position] for position in mask) for mask in set(masked)}
    drawn = np.array([losses[mask] for mask in masked])
    assert len(losses) == 15
    weights = np.array([n / len(mask) for mask in masked])
    assert np.allclose(batch["loss_weights"].numpy(), weights)
    assert abs(drawn.mean() - exact) < 5 * drawn.std() / math.sqrt(len(drawn)) < 0.02
    # And in closed form, without sampling noise: the same expectation over all subsets.
    subsets = [mask for size in range(1, n + 1) for mask in itertools.combinations(range(n), size)]
    closed = sum(losses[mask] / n / math.comb(n, len(mask)) for mask in subsets)
    assert closed == pytest.approx(exact, abs=1e-12)


@pytest.mark.parametrize(
    "wrong",
    [{"fraction": 0.0}, {"fraction": 1.5}, {"mask_replace_prob": 0.9, "random_replace_prob": 0.2}, {"span_length": 0}],
)
def test_wrong_settings_are_refused(wrong):
    with pytest.raises(ValueError, match=str(next(iter(wrong.values())))):
        DataCollatorForCodePointMasking(**wrong)


def test_hashes_are_pinned():
    """Splits, orders and masks of existing runs rest on these values."""
    assert [int(x) for x in hashing.mix(np.arange(3))] == [
        16294208416658607535, 10451216379200822465, 10905525725756348110,
    ]  # fmt: skip
    characters, start, length = np.frombuffer(b"example.com", dtype=np.uint8), np.array([0]), np.array([11])
    name_hash = hashing.hash_names(characters, start, length)
    assert hashing.hash_names(np.pad(characters, (3, 9), constant_values=7), start + 3, length) == name_hash
    assert int(name_hash[0]) == 7534716495402163425


@pytest.mark.parametrize(
    ("options", "pinned"),
    [
        ({}, [8939215220472, 272368216, 98313010]),
        ({"objective": "any_order", "seed": 3}, [28436391110794, 6428911808, -49035084360]),
        ({"fraction": 0.3, "span_length": 3, "seed": 9}, [14259810365761, 1078198696, 244390974]),
    ],
)
def test_masks_are_pinned(options, pinned):
    """A resumed run must mask as it did, whatever is done to be faster."""
    rows, columns = np.arange(1_000), np.arange(60)
    lengths = 3 + rows % 50
    ids = np.where(columns < lengths[:, None], 97 + (rows[:, None] + columns) % 26, PAD)
    ids[:, 0], ids[rows, lengths - 1] = CLS, SEP
    batch = DataCollatorForCodePointMasking(**options).collate(ids, lengths, rows, 7)
    assert [int((values * torch.arange(1, values.numel() + 1).view(values.shape)).sum())
            for values in (batch["input_ids"], batch["masked_positions"], batch["labels"])] == pinned  # fmt: skip


def test_masks_do_not_depend_on_the_room_for_them():
    """As the batches of names do: characters behind [CLS], and a K for longer names."""
    collator = DataCollatorForCodePointMasking()
    ids = np.full((300, 18), ord("q"))
    ids[:, 0], ids[:, 13], ids[:, 14:] = CLS, SEP, PAD
    whole = collator.collate(ids, np.full(300, 14), np.arange(300), 2)
    part = collator.mask(ids.astype(np.int32), np.full(300, 12), collator.draws(np.arange(300), 2), 4)
    assert part["labels"].shape == (300, 4) and whole["labels"].shape == (300, 2)
    for name in ("labels", "masked_positions"):
        assert np.array_equal(part[name][:, :2], whole[name])
    assert (part["labels"][:, 2:] == IGNORED).all() and not part["masked_positions"][:, 2:].any()
    assert np.array_equal(part["input_ids"], whole["input_ids"])
