"""Figures from sums, by hand."""

import math

import numpy as np
import pytest
import torch

from domain_canine import meter as meter_module
from domain_canine.masking import IGNORED
from domain_canine.metrics import figures, masked_sums, suffix_positions


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


def test_hits_count_alike_and_losses_by_weight():
    """Of any_order a name's characters weigh n / k in the loss; a hit is a hit."""
    logits = torch.full((2, 1, 128), -40.0)
    logits[0, 0, [97, 98, 99, 100, 101, 102]] = torch.tensor([5.0, 4.0, 3.0, 2.0, 1.0, 0.0])
    logits[1, 0, 97] = 0.0
    suffix, weights = torch.zeros(2, 1, dtype=torch.bool), torch.tensor([3.0, 1.0])
    for label, accuracy, among_five in ((97, 1, 1), (99, 0.5, 1), (101, 0.5, 1), (102, 0.5, 0.5)):
        told = figures(masked_sums(logits, torch.tensor([[label], [97]]), suffix, weights))
        assert (told["accuracy"], told["accuracy_top5"]) == (accuracy, among_five)
        nats = -logits[0, 0].log_softmax(-1)[label].item()
        assert told["loss"] == pytest.approx(nats * 3 / 4, rel=1e-5)


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


def test_the_mean_of_the_latest_batches(monkeypatch):
    monkeypatch.setattr(meter_module, "BATCHES", 2)
    meter = meter_module.Meter()
    assert math.isnan(meter.loss())
    for nats, weight in ((100.0, 1.0), (3.0, 1.0), (1.0, 3.0)):
        meter.add(torch.tensor(nats), torch.tensor(weight))
    assert meter.loss() == pytest.approx(1.0)
    assert meter.since_log.tolist() == [104.0, 5.0]


def test_sums_of_an_evaluation_lose_nothing():
    """In fp32 a sum of 25 million names' hits would stand still at 2**24."""
    label = torch.full((1, 1), 97)
    sums = masked_sums(torch.zeros(1, 1, 128), label, torch.zeros(1, 1, dtype=torch.bool))
    assert sums.dtype == torch.float64
