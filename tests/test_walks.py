"""What a step takes of Python, which a GPU waits for."""

import pickle
from multiprocessing.reduction import ForkingPickler

import pytest
import torch
from small_runs import make_trainer
from torch import nn

from domain_canine.errors import UserError
from domain_canine.loader import BatchLoader, Parcel, the_one, with_position
from domain_canine.masking import DataCollatorForCodePointMasking
from domain_canine.remote import open_stream
from domain_canine.streams import StreamBatches
from domain_canine.walks import walked_once


@pytest.fixture(params=["plain", "compiled"])
def model(request):
    made = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Dropout(), nn.Linear(2, 2)))
    return made if request.param == "plain" else torch.compile(made, backend="eager")


@pytest.mark.parametrize(("accumulation", "norm"), [(1, 1.0), (2, 1.0), (1, 0.0)])
def test_no_step_walks_over_the_model(tmp_path, monkeypatch, accumulation, norm):
    walks = []
    for name in ("named_modules", "named_children"):
        walk = getattr(nn.Module, name)
        monkeypatch.setattr(
            nn.Module, name, lambda self, *args, walk=walk, **options: walks.append(1) or walk(self, *args, **options)
        )
    taken = []
    for steps in (2, 4):
        trainer = make_trainer(
            tmp_path / str(steps), max_steps=steps, save_strategy="no", eval_strategy="no",
            gradient_accumulation_steps=accumulation, per_device_train_batch_size=8, max_grad_norm=norm,
        )  # fmt: skip
        walks.clear()
        trainer.train()
        taken.append(len(walks))
    assert taken[0] == taken[1] > 0


def test_a_model_is_switched_as_a_whole_and_its_parts_with_it(model):
    with pytest.raises(KeyError), walked_once(model):
        raise KeyError
    assert "train" not in vars(model)
    with walked_once(model):
        assert model.eval() is model and not any(each.training for each in model.modules())
        model.train()
        [part] = [each for each in model.modules() if type(each) is nn.Dropout]
        part.eval()
        assert model.train() is model and all(each.training for each in model.modules())
    assert "train" not in vars(model) and "zero_grad" not in vars(model)


def test_gradients_go_or_become_zero(model):
    with walked_once(model) as walked:
        assert [*map(id, walked.parameters())] == [*map(id, nn.Module.parameters(model))]
        model(torch.ones(3, 2)).sum().backward()
        model.zero_grad(set_to_none=False)
        assert all((each.grad == 0).all() for each in model.parameters())
        model.zero_grad()
        assert all(each.grad is None for each in model.parameters())


def test_a_trained_model_has_its_own_methods_again(finished):
    assert "train" not in vars(finished.model)


def test_the_operations_are_counted_as_the_trainer_counts_them(finished):
    stock = super(type(finished), finished).floating_point_ops
    for length in (10, 22):
        batch = {"input_ids": torch.ones(4, length)}
        assert finished.floating_point_ops(batch) == stock(batch) > 0


def test_a_batch_travels_by_its_bytes_alone(finished):
    batch = finished.train_dataset[0, 1]
    sent = bytes(ForkingPickler.dumps(Parcel(batch)))
    assert b"torch" not in sent.replace(b"domain_canine", b"")  # no tensor: it would be an open file
    arrived = pickle.loads(sent)
    assert arrived.keys() == batch.keys() and arrived["ascii_only"] is batch["ascii_only"] is True
    for name in batch.keys() - {"ascii_only"}:
        assert arrived[name].dtype == batch[name].dtype and torch.equal(arrived[name], batch[name])
        arrived[name] += 1  # it may be written to


def test_workers_pack_batches_and_nobody_else(finished, monkeypatch):
    batch = finished.train_dataset[0, 1]
    assert the_one([batch]) is batch and with_position((batch, 0, "there")) == (batch, 0, "there")
    monkeypatch.setattr("domain_canine.loader.get_worker_info", lambda: True)
    error = UserError("no more")
    packed, *position = with_position((batch, 0, "there"))
    assert type(the_one([batch])) is type(packed) is Parcel and position == [0, "there"]
    assert with_position((error, 0, "there"))[0] is error


def test_both_kinds_of_loaders_pack(finished, names_file):
    assert BatchLoader(finished.train_dataset, finished.args).collate_fn is the_one
    stream = StreamBatches(
        open_stream(str(names_file)), 128, DataCollatorForCodePointMasking(), 4, 0, 1, 0, 0.2, 3, 40, 1
    )
    assert BatchLoader(stream, finished.args).collate_fn is with_position


def test_what_workers_send_is_what_this_process_would_make(finished, monkeypatch):
    monkeypatch.setattr(finished.args, "dataloader_num_workers", 1)
    monkeypatch.setattr(finished.args, "dataloader_prefetch_factor", 2)
    loader = BatchLoader(finished.train_dataset, finished.args)
    loader.set_epoch(0)
    for step, batch in enumerate(loader):
        made = finished.train_dataset[0, step]
        assert batch.keys() == made.keys()
        assert all(torch.equal(batch[name], made[name]) for name in made.keys() - {"ascii_only"})
    assert step > 2
