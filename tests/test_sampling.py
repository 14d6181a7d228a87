import itertools

import numpy as np
import pytest

from domain_canine.sampling import (
    BLOCK,
    WINDOW,
    BatchPlan,
    MicroStepSampler,
    Permutation,
    cuts_by_slots,
    names_within,
    slots,
)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 7, 8, 9, 31, 32, 33, 127, 1000, 1023, 1024, 1025, 104_729])
def test_permutation_is_a_bijection(size):
    permutation = Permutation(size, seed=5)
    values = permutation(np.arange(size))
    assert np.array_equal(np.sort(values), np.arange(size))
    # Any part of it is found without the rest.
    assert np.array_equal(permutation(np.arange(size)[::-3]), values[::-3])


def test_permutation_looks_random():
    size = 100_000
    values = Permutation(size, seed=1)(np.arange(size))
    assert abs(np.corrcoef(np.arange(size), values)[0, 1]) < 0.02
    assert abs((np.diff(values) > 0).mean() - 0.5) < 0.01
    assert (values == Permutation(size, seed=2)(np.arange(size))).mean() < 0.001


def lengths_of(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(4, 40, count).astype(np.uint8)


@pytest.mark.parametrize("count", [1, 15, 16, 17, 100, 16 * WINDOW, 16 * WINDOW + 5, 3 * BLOCK - 1, 3 * BLOCK, 5_000])
@pytest.mark.parametrize(("micro_steps", "ranks"), [(1, 1), (2, 1), (3, 2), (1, 3), (4, 8)])
def test_an_epoch_is_every_row_once(count, micro_steps, ranks):
    plan = BatchPlan(lengths_of(count), 16, micro_steps, seed=3)
    assert plan.steps == -(-count // 16)
    rows = np.concatenate([
        plan.rows(2, step, micro, rank, ranks)
        for step in range(plan.steps) for micro in range(micro_steps) for rank in range(ranks)
    ])  # fmt: skip
    assert np.array_equal(np.sort(rows), np.arange(count))


def test_steps_do_not_depend_on_processes_or_accumulation():
    lengths = lengths_of(3_000)
    one = BatchPlan(lengths, 64, 1, seed=3)
    other = BatchPlan(lengths, 64, 8, seed=3)
    for step in range(one.steps):
        dealt = [other.rows(0, step, micro, rank, 2) for micro in range(8) for rank in range(2)]
        assert np.array_equal(np.sort(np.concatenate(dealt)), np.sort(one.rows(0, step)))
        sizes = [len(share) for share in dealt]
        assert max(sizes) - min(sizes) <= (0 if step < one.steps - 1 else 2)


def test_a_jump_finds_what_walking_finds():
    walked, jumped = BatchPlan(lengths_of(9_000), 16, seed=1), BatchPlan(lengths_of(9_000), 16, seed=1)
    every = [walked.rows(1, step) for step in range(walked.steps)]
    for step in (walked.steps - 1, 300, 0, 77, 562):
        assert np.array_equal(jumped.rows(1, step), every[step])


def test_ranks_get_as_much_to_compute():
    """A batch of many lengths, 14 apart between its ends: the shares of its ranks have the same mean."""
    lengths = lengths_of(1_000)
    plan = BatchPlan(lengths, 400, 2, seed=1)
    for micro in (0, 1):
        means = [lengths[plan.rows(0, 1, micro, rank, 4)].mean() for rank in range(4)]
        assert max(means) - min(means) < 0.5


def test_micro_steps_are_cut_in_order_of_length():
    lengths = lengths_of(1_000)
    plan = BatchPlan(lengths, 400, 2, seed=1)
    shorter, longer = (lengths[plan.rows(0, 1, micro)] for micro in (0, 1))
    assert shorter.max() <= longer.min()


def test_a_window_is_read_by_runs_of_rows():
    plan = BatchPlan(lengths_of(20 * BLOCK + 77), 128, seed=1)
    for step in (0, WINDOW, 2 * WINDOW):
        rows = plan.window(3, step)[1].rows
        runs = 1 + np.count_nonzero(np.diff(rows) != 1)
        # A block more for what the window's ends cut, and one where the rows begin anew.
        assert len(rows) // BLOCK <= runs <= len(rows) // BLOCK + 2


def test_rows_of_a_block_part():
    """Names of one length: what was read together is spread over the window's batches."""
    plan = BatchPlan(np.full(8 * BLOCK, 10, np.uint8), 8 * BLOCK // WINDOW, seed=1)
    for step in range(WINDOW):
        assert len(np.unique(plan.rows(0, step) // BLOCK)) >= 6
    again = [set(plan.rows(epoch, step).tolist()) for epoch in (0, 1) for step in range(WINDOW)]
    assert max(len(a & b) for a in again[:WINDOW] for b in again[WINDOW:]) < 16  # of 128, 2 expected


def test_blocks_and_the_epochs_end_lie_elsewhere_in_every_epoch():
    plan = BatchPlan(lengths_of(4 * BLOCK + 100), 100, seed=1)
    last = [set(plan.rows(epoch, plan.steps - 1).tolist()) for epoch in range(6)]
    assert len(set.union(*last)) > 5 * len(last[0]) / 2
    begins = set()
    for epoch in range(6):
        rows = plan.window(epoch, 0)[1].rows
        begins |= {int(row) % BLOCK for row in rows[np.flatnonzero(np.diff(rows) != 1) + 1]}
    assert len(begins) >= 6


def test_the_order_is_that_of_a_short_list():
    """Pinned: a change of the order makes a resumed run train on names twice and on others never."""
    plan = BatchPlan(np.arange(3 * BLOCK, dtype=np.int64).astype(np.uint8), 512, seed=42)
    rows = np.concatenate([plan.rows(1, step) for step in range(plan.steps)])
    assert rows[:4].tolist() == [2133, 1109, 1365, 2901] and int((rows * np.arange(len(rows))).sum()) == 7314370304


def test_epochs_and_seeds_differ_and_repeat():
    plan = BatchPlan(lengths_of(1_000), 16, seed=1)
    assert np.array_equal(plan.rows(0, 5), BatchPlan(lengths_of(1_000), 16, seed=1).rows(0, 5))
    assert not np.array_equal(plan.rows(0, 5), plan.rows(1, 5))
    assert not np.array_equal(plan.rows(0, 5), BatchPlan(lengths_of(1_000), 16, seed=2).rows(0, 5))


def test_names_of_like_length_meet_in_no_order_of_length():
    lengths = lengths_of(20_000)
    plan = BatchPlan(lengths, 64, seed=1)
    batches = [lengths[plan.rows(0, step)] for step in range(plan.steps - 1)]
    spread = np.mean([int(batch.max()) - int(batch.min()) for batch in batches])
    assert spread < 2  # of 36 without sorting
    means = np.array([batch.mean() for batch in batches])
    assert abs(np.corrcoef(np.arange(len(means)), means)[0, 1]) < 0.2


def test_windows_differ_in_the_order_of_their_batches():
    lengths = np.arange(2 * WINDOW * 16).astype(np.uint8)  # as many of each in both windows
    plan = BatchPlan(lengths, 16, seed=1)
    means = [lengths[plan.rows(0, step)].mean() for step in range(2 * WINDOW)]
    assert sorted(means[:WINDOW]) == sorted(means[WINDOW:]) and means[:WINDOW] != means[WINDOW:]


def test_evaluation_is_in_order_and_complete():
    lengths = lengths_of(2_000)
    plan = BatchPlan(lengths, 16, shuffle=False)
    assert np.array_equal(plan.rows(0, 0), plan.rows(5, 0))
    window = np.concatenate([plan.rows(0, step) for step in range(WINDOW)])
    assert np.array_equal(window, np.argsort(lengths[: 16 * WINDOW], kind="stable"))
    assert np.array_equal(np.sort(np.concatenate([plan.rows(0, step) for step in range(plan.steps)])), np.arange(2_000))
    with pytest.raises(IndexError):
        plan.rows(0, plan.steps)


def test_sampler_yields_epoch_and_micro_step():
    sampler = MicroStepSampler(3)
    sampler.set_epoch(4)
    assert list(sampler) == [[(4, 0)], [(4, 1)], [(4, 2)]] and len(sampler) == 3


# ---- batches of as many slots


def slots_of(lengths, rows) -> int:
    return len(rows) * int(slots(lengths[rows]).max())


@pytest.mark.parametrize("count", [1, 15, 16 * WINDOW, 16 * WINDOW + 1, 5_000])
@pytest.mark.parametrize(("micro_steps", "ranks"), [(1, 1), (2, 3)])
def test_an_epoch_cut_by_slots_is_every_row_once(count, micro_steps, ranks):
    plan = BatchPlan(lengths_of(count), 16, micro_steps, seed=3, even=True)
    assert plan.steps == -(-count // 16)
    rows = np.concatenate([
        plan.rows(2, step, micro, rank, ranks)
        for step in range(plan.steps) for micro in range(micro_steps) for rank in range(ranks)
    ])  # fmt: skip
    assert np.array_equal(np.sort(rows), np.arange(count))
    assert all(len(batch) for step in range(plan.steps) for batch in plan.window(2, step)[1].batches)
    again = BatchPlan(lengths_of(count), 16, micro_steps, seed=3, even=True)
    for step in (plan.steps - 1, 0, plan.steps // 2):
        assert np.array_equal(plan.rows(2, step), again.rows(2, step))


def test_batches_by_slots_are_as_large_as_each_other_whatever_their_names():
    lengths = lengths_of(2 * WINDOW * 256 + 1)  # one name more than two windows
    by_names = BatchPlan(lengths, 256, seed=1)
    by_slots = BatchPlan(lengths, 256, seed=1, even=True)
    sizes = [[slots_of(lengths, plan.rows(0, step)) for step in range(plan.steps)] for plan in (by_names, by_slots)]
    assert max(sizes[0][:-1]) > 1.6 * np.mean(sizes[0][:-1])
    assert 0.85 * np.mean(sizes[1]) < min(sizes[1]) <= max(sizes[1]) < 1.05 * np.mean(sizes[1])
    rows = [len(by_slots.rows(0, step)) for step in range(by_slots.steps)]
    assert max(rows) > 3 * min(rows)


def test_a_limit_of_slots_is_kept_within_a_twentieth():
    lengths = lengths_of(200_000)
    for limit in (2_000, 8_000, 50_000):
        plan = BatchPlan(lengths, names_within(lengths, limit), seed=1, even=True)
        sizes = [slots_of(lengths, plan.rows(0, step)) for step in range(plan.steps)]
        assert 0.95 * limit < max(sizes) < 1.05 * limit
    assert names_within(lengths_of(10), 8_000) == 10 and names_within(lengths_of(10), 1) == 1


def test_cuts_are_the_best_there_are():
    """Against every way to cut a few names."""
    draw = np.random.default_rng(1)
    for _ in range(50):
        needed = np.sort(draw.integers(1, 9, 8)) * 4
        for parts in (1, 2, 3, 8):
            ways = itertools.combinations(range(1, len(needed)), parts - 1)
            largest = [max(len(part) * part[-1] for part in np.split(needed, way)) for way in ways]
            found = np.split(needed, cuts_by_slots(needed, parts))
            assert len(found) == parts and max(len(part) * part[-1] for part in found) == min(largest)
