"""Our step against the stock one: the same loss, gradients and curve; and the benchmark that times them."""

import json

import numpy as np
import pytest
import torch
from conftest import SMALL

from benchmarks import end_to_end, operations, train_step
from benchmarks.train_step import StockMaskedLM, as_stock, make_batches, our_side, stock_side
from domain_canine.configuration_domain_canine import DomainCanineConfig
from domain_canine.errors import UserError
from domain_canine.sample import sample_names

NAMES = sample_names(4_000)


def both_sides(**changes):
    """Ours and stock, of equal weights, without dropout."""
    config = DomainCanineConfig(**SMALL | changes, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    ours, stock = our_side(config, "cpu"), stock_side(config, "cpu")
    stock.model.load_state_dict(ours.model.state_dict(), strict=False)
    assert all(torch.equal(weight, stock.model.state_dict()[name]) for name, weight in ours.model.state_dict().items())
    return ours, stock


def test_every_gradient_of_the_loss_is_that_of_the_stock_model():
    ours, stock = both_sides()
    batch = make_batches(NAMES, 32, 4, False)[0][2]
    mine, theirs = ours.loss(batch), stock.loss(as_stock(batch))
    assert mine.item() == pytest.approx(theirs.item(), rel=1e-5)
    mine.backward(), theirs.backward()
    others = dict(stock.model.named_parameters())
    for name, parameter in ours.model.named_parameters():
        scale = max(1.0, others[name].grad.abs().max().item())
        assert (parameter.grad - others[name].grad).abs().max() <= 1e-4 * scale, name


def test_200_steps_give_the_curve_of_the_stock_path():
    ours, stock = both_sides(initializer_range=0.02)
    for side in (ours, stock):
        side.optimizer.param_groups[0]["lr"] = 1e-3
    batches = make_batches(NAMES, 16, 40, False)[0] * 5
    curves = np.array([[ours.step(batch).item(), stock.step(as_stock(batch)).item()] for batch in batches])
    difference = (curves[:, 0] - curves[:, 1]) / curves[:, 1]
    assert len(curves) == 200 and curves[-40:].mean() < 0.8 * curves[:40].mean()
    assert abs(difference).max() <= 1e-3
    # Noise and no drift: the mean is far below the largest.
    assert abs(difference.mean()) <= 1e-4


def test_bf16_errs_no_more_than_three_times_as_much_as_the_stock_model():
    """Each against its own fp32, at the masked positions."""
    ours, stock = both_sides(initializer_range=0.02, hidden_size=128, intermediate_size=512)
    ours.model.eval(), stock.model.eval()
    errors = []
    for side, convert in ((ours, lambda batch: batch), (stock, as_stock)):
        losses = []
        for enabled in (False, True):
            with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=enabled):
                losses.append([side.loss(convert(batch)).item() for batch in make_batches(NAMES, 64, 8, False)[0]])
        errors.append(np.sqrt(np.mean((np.array(losses[0]) - losses[1]) ** 2)))
    assert 0 < errors[0] < 3 * errors[1]


@pytest.mark.parametrize("autocast", [False, True])
def test_nothing_breaks_the_graph(autocast):
    """Of forward and backward, with dropout, in mixed precision too."""
    torch._dynamo.reset()
    side = our_side(DomainCanineConfig(**SMALL), "cpu")
    traced = torch.compile(side.model, backend="aot_eager", fullgraph=True, dynamic=False)
    for batch in make_batches(NAMES, 16, 2, True)[0]:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = traced(**batch).loss
        loss.backward()
    assert torch.isfinite(loss) and all(torch.isfinite(each.grad).all() for each in side.model.parameters())


@pytest.mark.slow
def test_compiled_for_few_shapes_it_is_compiled_no_more():
    """50 steps of mixed lengths after one of each shape; losses are those of the eager model."""
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    config = DomainCanineConfig(**SMALL, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    ours = our_side(config, "cpu", compiled=True)
    names = [name for name in NAMES if len(name) < 21]
    batches = make_batches(names, 32, 50, True)[0]
    by_shape = {batch["input_ids"].shape + batch["labels"].shape: batch for batch in batches}
    assert len(by_shape) >= 3
    for batch in by_shape.values():
        ours.step(batch)
    compiled = counters["stats"]["unique_graphs"]
    assert compiled == len(by_shape) and not counters["graph_break"]
    for i in np.random.default_rng(0).permutation(len(batches)):
        eager = ours.model(**batches[i]).loss.item()
        assert ours.step(batches[i]).item() == pytest.approx(eager, rel=1e-4)
    assert counters["stats"]["unique_graphs"] == compiled


def test_operations_are_those_that_torch_counts():
    from torch.utils.flop_counter import FlopCounterMode

    ours, _ = both_sides()
    ours.model.set_attn_implementation("eager")
    for batch in make_batches(NAMES, 16, 3, False)[0]:
        with FlopCounterMode(display=False) as counted:
            ours.loss(batch).backward()
        assert operations.of_batch(ours.model.config, batch)[0] == pytest.approx(counted.get_total_flops(), rel=1e-9)


def test_useful_operations_are_those_of_code_points_and_targets():
    """A batch of one name without padding: all but the added slots, and K."""
    config = DomainCanineConfig(**SMALL)
    batch = {
        "input_ids": torch.full((2, 12), 97),
        "attention_mask": torch.ones(2, 12),
        "masked_positions": torch.zeros(2, 3),
        "labels": torch.tensor([[97, 98, -100], [97, -100, -100]]),
    }
    computed, useful = operations.of_batch(config, batch)
    assert computed == 6 * operations.multiply_adds(config, 2, 16, 3, 128)
    assert useful == 6 * operations.multiply_adds(config, 2, 12, 1.5, 128)


def test_launches_are_what_computes():
    linear, states = torch.nn.Linear(3, 3), torch.ones(2, 3)
    with operations.Launches() as launched:
        made = linear(states).unflatten(-1, (3, 1)).transpose(0, 1)
        torch.empty_like(made).detach(), made.new_empty(2)
    assert launched.count == 1  # neither the transposed weights nor the shapes, nor what is empty
    with launched:
        made.sum().backward()
    # The sum, its first gradient, the products' (a row repeated is laid out anew) and the bias's.
    assert 4 <= launched.count - 1 <= 8


def test_a_layer_has_few_launches():
    """One product of queries, keys and values, and no mask made anew: 60 operators a layer; with three products 69, with three masks 63."""
    counts = []
    for layers in (2, 4):
        side = our_side(DomainCanineConfig(**SMALL | {"num_hidden_layers": layers}), "cpu")
        with operations.Launches() as launched:
            side.loss(make_batches(NAMES, 8, 1, False)[0][0]).backward()
        counts.append(launched.count)
    assert (counts[1] - counts[0]) / 2 <= 60


def test_the_benchmark_tells_both_sides(capsys, monkeypatch):
    monkeypatch.setitem(train_step.SIZES, "tiny", SMALL)
    arguments = ["--size", "tiny", "--device", "cpu", "--batch", "32", "--batches", "2", "--rounds", "1"]
    assert train_step.main([*arguments, "--json"]) == 0
    said = capsys.readouterr()
    found = json.loads(said.out)
    assert said.out.count("\n") == 1 and "ratio" in said.err
    keys = "names_per_s stock_names_per_s ratio padding_efficiency peak_memory_mb mfu mfu_useful collator_names_per_s launches"
    assert all(found[key] > 0 for key in keys.split())
    assert found["ratio"] == pytest.approx(found["names_per_s"] / found["stock_names_per_s"], rel=0.05)
    monkeypatch.setattr(train_step, "SWEEP", (16, 32))
    assert train_step.main([*arguments, "--sweep", "--json"]) == 0
    assert [row["batch"] for row in json.loads(capsys.readouterr().out)["sweep"]] == [16, 32]


def test_the_benchmark_writes_a_trace(capsys, monkeypatch, tmp_path):
    monkeypatch.setitem(train_step.SIZES, "tiny", SMALL)
    arguments = ["--size", "tiny", "--device", "cpu", "--batch", "16", "--batches", "1"]
    assert train_step.main([*arguments, "--profile", str(tmp_path / "trace.json")]) == 0
    assert "aten::addmm" in capsys.readouterr().err
    assert json.loads((tmp_path / "trace.json").read_text())["traceEvents"]


def test_end_to_end_runs_the_launch_command(capsys):
    arguments = ["--size", "tiny", "--device", "cpu", "--batch", "16", "--accumulation", "2", "--steps", "5"]
    assert end_to_end.main([*arguments, "--json", "--learning_rate", "1e-3"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["names_per_s"] > 0 and found["step_names_per_s"] > 0
    trained, evaluated = 229.5e6 / found["names_per_s"] / 3600, 25.5e6 / found["evaluation_names_per_s"] / 3600
    assert found["epoch_hours"] == pytest.approx(trained + evaluated, rel=0.01)
    assert found["of_evaluation"] == pytest.approx(evaluated / (trained + evaluated), rel=0.01)
    assert found["share_lost"] == pytest.approx(1 - found["names_per_s"] / found["step_names_per_s"], abs=0.01)
    assert found["step_ms"] == pytest.approx(1e3 * 32 / found["names_per_s"], rel=0.01)
    assert found["bare_step_ms"] == pytest.approx(1e3 * 32 / found["step_names_per_s"], rel=0.01)
    with pytest.raises(UserError, match="the run failed with status 1:(?s:.*)unknown flag --lerning_rate"):
        end_to_end.main([*arguments, "--lerning_rate", "1"])
    with pytest.raises(UserError, match="--slots_per_batch is not for this benchmark"):
        end_to_end.main([*arguments, "--slots_per_batch=500"])


def test_narrow_is_for_both_sides(capsys, monkeypatch):
    widths = []
    side = end_to_end.our_side
    monkeypatch.setattr(end_to_end, "our_side", lambda *args: widths.append(args[0].hidden_size) or side(*args))
    monkeypatch.setattr(end_to_end, "launch", lambda *args: [1.0, 1.0])
    arguments = ["--size", "tiny", "--device", "cpu", "--batch", "4", "--steps", "4", "--narrow"]
    assert end_to_end.main(arguments) == 0 and set(widths) == {end_to_end.NARROW["hidden_size"]}
    monkeypatch.undo()
    monkeypatch.setattr(end_to_end, "NARROW", {"hidden_size": 50})
    with pytest.raises(UserError, match="(?s:.*)--config_overrides hidden_size=50"):
        end_to_end.main(arguments)


def test_few_names_are_repeated_for_a_whole_window():
    batches = make_batches(NAMES[:100], 32, 64, False)[0]
    assert sum(len(batch["labels"]) for batch in batches) == 64 * 32
    padded = [int(batch["attention_mask"].sum(1).min()) / batch["input_ids"].shape[1] for batch in batches]
    assert np.mean(padded) > 0.8


def test_the_stock_side_is_stock():
    from transformers import CanineModel

    side = stock_side(DomainCanineConfig(**SMALL), "cpu")
    assert type(side.model) is StockMaskedLM and type(side.model.canine) is CanineModel
    assert side.model.canine.config._attn_implementation == "eager"
