"""Steps that are replayed: by a graph that runs again what it recorded, on the processor."""

import gc
import weakref
from types import SimpleNamespace

import pytest
import torch
from records_on_cpu import on_the_processor, record_on_the_processor
from small_runs import assert_equal, entries, make_trainer, weights
from torch import nn

from domain_canine import recorded
from domain_canine.errors import UserError
from domain_canine.recorded import RecordedSteps


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.used, self.frozen = nn.Linear(3, 1), nn.Linear(3, 1).requires_grad_(False)

    def micro_step(self, batch):
        loss = self.used(batch["input_ids"]).square().sum()
        loss.backward()
        return (loss.detach(),)


class Replayed(RecordedSteps):
    """Counts what runs as it is, and what is replayed."""

    def __init__(self, model, largest: int = 1000):
        super().__init__(model.parameters(), self._counted, torch.device("cpu"), largest)
        self.model, self.ran, self.replays = model, 0, 0

    def _counted(self, batch):
        self.ran += 1
        return self.model.micro_step(batch)

    def _record(self, batch):
        def run(batch):
            self.replays += 1
            return self.model.micro_step(batch)

        return on_the_processor(run, batch, 1, self.parameters)


def batch(rows: int) -> dict:
    return {"input_ids": torch.randn(rows, 3), "ascii_only": True}


def run(steps, model, micro_step):
    """Losses, and weights in the end."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    losses = []
    for micro_batches in steps:
        losses += [micro_step(each)[0].item() for each in micro_batches]
        optimizer.step()
        model.zero_grad()
    return losses, [each.detach().clone() for each in model.parameters()]


def test_replayed_steps_add_up_and_begin_anew_like_others():
    torch.manual_seed(0)
    model, other = Model(), Model()
    other.load_state_dict(model.state_dict())
    steps = [[batch(rows) for rows in sizes] for sizes in ((4, 4), (2, 4), (4, 2), (2, 2), (4, 4))]
    replayed = Replayed(model)
    (losses, weights), (expected, others) = run(steps, model, replayed), run(steps, other, other.micro_step)
    assert losses == expected and all(map(torch.equal, weights, others))
    # Of either shape the first is run.
    assert (replayed.ran, replayed.replays) == (2, 8)


def test_what_is_not_trained_gets_no_gradient():
    """AdamW would let it decay."""
    model = Model()
    replayed = Replayed(model)
    for _ in range(3):
        replayed(batch(2))
    assert model.frozen.weight.grad is None and model.used.weight.grad.any()


def test_of_many_shapes_the_common_ones_are_recorded(monkeypatch):
    monkeypatch.setattr(recorded, "MOST", 2)
    replayed, waited = Replayed(Model()), []
    monkeypatch.setattr(replayed, "_wait", lambda: waited.append(len(replayed.records)))

    def recorded_after(*sizes):
        for size in sizes:
            replayed(batch(size))
        return {key[0][1][0] for key in replayed.records}  # rows

    assert recorded_after(*[3] * 9, 2, 2) == {3, 2}
    assert recorded_after(1, 1, 1) == {3, 2}
    assert recorded_after(1) == {3, 1}  # twice as often as 2, the rarer one
    # It comes back at that price, or two would take turns at every step.
    assert recorded_after(2, 2, 2, 2, 2) == {3, 1}
    assert recorded_after(2) == {3, 2}
    assert (replayed.ran, replayed.replays) == (1 + 1 + 3 + 5, 8 + 1 + 1 + 1)
    assert waited == [0, 2, 2]  # for records that may still run


def test_a_large_batch_takes_several_passes_that_add_up():
    torch.manual_seed(0)
    model, other = Model(), Model()
    other.load_state_dict(model.state_dict())
    steps = [[batch(16), batch(7)] for _ in range(3)]
    replayed = Replayed(model, largest=12)  # four rows
    (losses, weights), (expected, others) = run(steps, model, replayed), run(steps, other, other.micro_step)
    assert losses == pytest.approx(expected)
    for one, reference in zip(weights, others):
        torch.testing.assert_close(one, reference)
    # 4 + 4 + 4 + 4, 4 + 3: the first of either size is run.
    assert (replayed.ran, replayed.replays) == (2, 16)


def test_parts_have_all_rows_and_what_belongs_to_none():
    given = {"input_ids": torch.arange(30).view(10, 3), "labels": torch.arange(10), "items": torch.tensor(5.0)}
    parts = list(recorded.cut(given, 9))
    assert [len(part["labels"]) for part in parts] == [3, 3, 3, 1]
    assert torch.equal(torch.cat([part["input_ids"] for part in parts]), given["input_ids"])
    assert all(part["items"] == 5 for part in parts)
    assert [len(part["labels"]) for part in recorded.cut(given, 1)] == [1] * 10


@pytest.mark.parametrize("changed", [{"ascii_only": False}, {"input_ids": torch.ones(2, 3, 1)}])
def test_another_shape_or_promise_is_another_record(changed):
    replayed = Replayed(Model())
    replayed.model.micro_step = lambda batch: (torch.zeros(()),)
    for each in (batch(2), batch(2), batch(2) | changed, batch(2) | changed):
        replayed(each)
    assert (replayed.ran, replayed.replays) == (2, 2)


def test_a_run_that_replays_is_the_run_that_does_not(tmp_path, monkeypatch):
    """Weights and log, to the bit: with dropout, accumulation and a short last step."""
    runs = []
    for records in (False, True):
        trainer = make_trainer(tmp_path / str(records), eval_strategy="epoch")
        if records:
            record_on_the_processor(monkeypatch.setattr, 10_000)
        trainer.train()
        runs.append((weights(trainer), entries(trainer, "loss"), entries(trainer, "eval_loss")))
    assert any(trainer.recorded.records.values())
    (one, *logs), (other, *replayed) = runs
    assert logs == replayed
    assert_equal(one, other)


def test_a_trainer_whose_steps_are_recorded_ends_with_its_run(tmp_path, monkeypatch):
    """Kept by a circle of references it would keep the device's memory."""
    record_on_the_processor(monkeypatch.setattr, 10_000)
    trainer = make_trainer(tmp_path, max_steps=2, eval_strategy="no", save_strategy="no")
    trainer.train()
    optimizer = trainer.optimizer.optimizer
    moment = next(iter(optimizer.state.values()))["exp_avg"]
    left = [*map(weakref.ref, (trainer, trainer.accelerator, optimizer, moment))]
    gc.disable()
    try:
        del trainer, optimizer, moment
        assert [each() for each in left] == [None] * 4
    finally:
        gc.enable()


def test_a_larger_record_comes_first(monkeypatch):
    """Its memory then suits all of them: those before are made again."""
    replayed, made = Replayed(Model()), []
    record = replayed._record
    monkeypatch.setattr(replayed, "_record", lambda batch: made.append(len(batch["input_ids"])) or record(batch))
    for rows in (2, 2, 1, 1, 3, 3, 2, 1, 2, 1, 3):
        replayed(batch(rows))
    assert made == [2, 1, 3, 2, 1]
    assert replayed.ran == 3


def test_a_parameter_that_only_another_shape_reaches_keeps_its_gradient():
    model = Model()
    model.unused = nn.Linear(3, 1)
    replayed = Replayed(model)

    def micro_step(batch):
        layer = model.unused if len(batch["input_ids"]) == 2 else model.used
        loss = layer(batch["input_ids"]).sum()
        loss.backward()
        return (loss.detach(),)

    model.micro_step = micro_step
    for _ in range(3):
        for rows in (1, 2):
            model.zero_grad()
            given = batch(rows)
            replayed(given)
            reached, other = (model.used, model.unused)[:: 3 - 2 * rows]
            torch.testing.assert_close(reached.weight.grad, given["input_ids"].sum(0, keepdim=True))
            assert not other.weight.grad.any()


def test_records_share_memory_that_begins_with_the_largest(monkeypatch):
    """Whose loss they all outlive; and other threads may ask CUDA for something while one is made."""
    made, waited = [], []

    class Graph:
        number = 0

        def __init__(self):
            Graph.number += 1
            self.own = f"pool {Graph.number}"

        def pool(self):
            return made[-1][1] or self.own

        def replay(self):
            pass

    class Capture:
        def __init__(self, graph, pool, capture_error_mode):
            made.append((graph, pool, capture_error_mode))

        def __enter__(self):
            pass

        def __exit__(self, *error):
            pass

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", Capture)
    steps = RecordedSteps([], lambda batch: (torch.zeros(()),), torch.device("cpu"), 100)
    monkeypatch.setattr(steps, "_wait", lambda: waited.append(len(made)))
    for rows in (2, 2, 1, 1, 3, 3, 2, 1):
        steps(batch(rows))
    assert [pool for _, pool, _ in made] == [None, "pool 1", None, "pool 3", "pool 3"]
    assert {mode for *_, mode in made} == {"thread_local"}
    assert waited == [0, 2]


def test_another_type_is_another_record():
    replayed = Replayed(Model())
    replayed.model.micro_step = lambda batch: (torch.zeros(()),)
    for kind in (torch.float32, torch.float32, torch.float64, torch.float64):
        replayed({"input_ids": torch.ones(2, 3, dtype=kind)})
    assert (replayed.ran, replayed.replays) == (2, 2)


@pytest.mark.parametrize("gigabytes, expected", [(8, 8_000), (80, 80_000), (140, 80_000)])
def test_a_pass_is_as_large_as_the_device_has_memory_for(monkeypatch, gigabytes, expected):
    told = SimpleNamespace(total_memory=gigabytes * 10**9)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: told)
    assert recorded.largest_pass(torch.device("cuda")) == expected


def test_gradients_that_a_callback_has_changed_are_gone_on_from():
    model = Model()
    replayed = Replayed(model)
    for _ in range(3):
        model.zero_grad()
        replayed(batch(2))
        weight, bias = model.used.weight, model.used.bias
        weight.grad, bias.grad = weight.grad / 2, None
        halved, given = weight.grad.clone(), batch(2)
        replayed(given)
        own = torch.autograd.grad(model.used(given["input_ids"]).square().sum(), (weight, bias))
        torch.testing.assert_close((weight.grad, bias.grad), (halved + own[0], own[1]))


def test_another_call_of_train_records_the_model_of_then(tmp_path, monkeypatch):
    record_on_the_processor(monkeypatch.setattr, 10_000)
    trainer = make_trainer(tmp_path, max_steps=3, eval_strategy="no", save_strategy="no")
    trainer.train()
    records = trainer.recorded
    trainer.model.lm_head.requires_grad_(False)
    before = weights(trainer)
    trainer.train()
    assert trainer.recorded is not records
    changed = {name.split(".")[0] for name, weight in weights(trainer).items() if not torch.equal(weight, before[name])}
    assert changed == {"canine"}


@pytest.mark.parametrize(
    "message, raised, told",
    [
        (
            "operation not permitted when stream is capturing\n more",
            UserError,
            "capturing\\); --no_cuda_graphs goes on",
        ),
        ("CUDA out of memory. Tried to allocate", torch.OutOfMemoryError, "Tried to allocate"),
    ],
)
def test_a_step_that_cannot_be_recorded_says_what_to_do(monkeypatch, message, raised, told):
    """And not what the end of the capture says, which fails then, too."""

    class Graph:
        def __init__(self, *args, **options):
            pass

        def __enter__(self):
            pass

        def __exit__(self, *error):
            raise RuntimeError("operation failed due to a previous error during capture")

    def run(batch):
        if ran:
            raise (RuntimeError if raised is UserError else raised)(message)
        ran.append(True)
        return (torch.zeros(()),)

    ran = []
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", Graph)
    steps = RecordedSteps([], run, torch.device("cpu"), 100)
    steps(batch(2))
    with pytest.raises(raised, match=told):
        steps(batch(2))
