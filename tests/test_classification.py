"""Figures of classifiers and regressions, against their definitions."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from conftest import SMALL

from domain_canine import DomainCanineConfig, DomainCanineForSequenceClassification
from domain_canine.classification import (
    LabelFigures,
    _margins,
    class_figures,
    class_report,
    class_shares,
    recall_at,
    regression_figures,
    told_report,
)
from domain_canine.errors import UserError


def test_figures_of_two_classes_by_hand():
    scores = np.array([0.9, 0.8, 0.7, 0.6, 0.3, 0.2, 0.1, 0.05])
    labels = np.array([1, 1, 0, 1, 0, 1, 0, 0])
    logits = np.log(np.stack([1 - scores, scores], axis=1))
    found = class_figures(logits, labels)
    assert found["accuracy"] == 6 / 8
    assert found["macro_f1"] == pytest.approx((6 / 8 + 6 / 8) / 2)
    # Pairs of a positive and a negative in the right order: 4 + 4 + 3 + 2 of 16.
    assert found["auc"] == pytest.approx(13 / 16)
    assert recall_at(0.0, scores, labels == 1) == (0.5, pytest.approx(0.8))
    assert recall_at(0.25, scores, labels == 1) == (0.75, pytest.approx(0.6))
    assert found["recall_at_fpr_0.01"] == 0.5
    # Either class as the one to be found: three of four above the best of the others, one of two below them all.
    labels = np.array([1, 1, 1, 0, 1, 0])
    for positive, recall in ((1, 3 / 4), (0, 1 / 2)):
        assert class_figures(logits[:6], labels, positive)["recall_at_fpr_0.01"] == recall


def test_near_certain_scores_keep_their_order():
    """Probabilities would all be 1 in single precision, and the recall at few false positives be nothing."""
    logits = np.array([[0, 40], [0, 41], [0, 42], [0, 39]], np.float32)
    labels = np.array([0, 1, 1, 0])
    assert class_figures(logits, labels)["recall_at_fpr_0.001"] == 1
    # What both logits have in common says nothing.
    assert class_figures(logits + np.float32([[9], [0], [1], [20]]), labels)["recall_at_fpr_0.001"] == 1


def test_figures_of_several_classes():
    generator = np.random.default_rng(0)
    logits, labels = generator.normal(size=(500, 4)), generator.integers(0, 3, 500)  # the last one does not occur
    found = class_figures(logits, labels)
    assert 0.4 < found["auc"] < 0.6 and "recall_at_fpr_0.01" not in found
    guessed = logits.argmax(1)
    of_each = [
        2 * ((guessed == each) & (labels == each)).sum() / ((guessed == each).sum() + (labels == each).sum())
        for each in range(4)
    ]
    assert found["macro_f1"] == pytest.approx(np.mean(of_each))
    logits[np.arange(500), labels] += 50
    found = class_figures(logits, labels)
    assert found["auc"] == found["accuracy"] == found["macro_f1"] == 1


@pytest.mark.parametrize("saturated", [False, True])
def test_a_threshold_keeps_its_rate_on_the_probabilities_that_are_told(saturated):
    generator = np.random.default_rng(0)
    labels = np.repeat([0, 1], [2000, 1000])
    margins = generator.normal(np.where(labels, 25, 12), np.where(labels, 3, 4))
    if saturated:
        margins[[0, 1, 2, 3]] = 50  # of probability 1, as float64 has it
    logits = np.stack([np.zeros(3000), margins], axis=1).astype(np.float32)
    report = class_report(["no", "yes"], 1, logits, labels)
    assert report["positive"] == "yes"
    assert class_report(["yes", "no"], 0, logits[:, ::-1].copy(), 1 - labels)["thresholds"] == report["thresholds"]
    taken = class_shares(logits)[:, 1]
    for rate, least in report["thresholds"].items():
        if least is None:
            assert saturated and float(rate) == 0.001
        else:
            assert (taken[labels == 0] >= least).mean() <= float(rate) and (taken[labels == 1] >= least).mean() > 0.5
    assert (report["thresholds"]["0.001"] is None) == saturated
    assert any(
        "yes from which on 0.1% of the others are taken too: " in line for line in told_report(["no", "yes"], report)
    )


def test_figures_are_of_the_names_of_all_processes(monkeypatch):
    model = DomainCanineForSequenceClassification(DomainCanineConfig(**SMALL)).eval()
    ids = torch.randint(97, 123, (4, 6))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.tensor([0, 1, 1, 0])}
    figures = LabelFigures(["a", "b"])
    figures.begin(torch.device("cpu"))
    with torch.no_grad():
        figures.add(model, batch | {"loss_weights": torch.ones(4)})
    flipped = [(logits, 1 - labels) for logits, labels in figures._outputs]
    monkeypatch.setattr("domain_canine.classification.gather_object", lambda mine: mine + flipped)
    told = figures.figures(SimpleNamespace(num_processes=2, reduce=lambda sums, how: 2 * sums))
    assert told["names"] == 8 and told["accuracy"] == 0.5


def test_ties_are_found_together():
    scores, positives = np.array([3.0, 2, 2, 2, 1]), np.array([True, True, False, True, False])
    assert recall_at(0.4, scores, positives) == (1 / 3, 3.0) and recall_at(0.5, scores, positives) == (1.0, 2.0)
    scores, positives = np.repeat([4.0, 3, 2, 1], 2), np.tile([True, False], 4)
    assert recall_at(0.5, scores, positives) == (0.5, 3.0)


@pytest.mark.parametrize(
    ("classes", "labels", "figure", "told"),
    [
        (["a", "b", "c"], [0, 1, 2], "recall_at_fpr_0.01", "take loss, accuracy, macro_f1, auc$"),
        (["a", "b"], [1, 1], "auc", "take loss, accuracy, macro_f1$"),
        (None, [2.0, 2.0], "r2", "take loss, rmse, mae$"),
    ],
)
def test_a_figure_that_the_labels_do_not_have_is_a_mistake(classes, labels, figure, told):
    with pytest.raises(UserError, match=told):
        LabelFigures(classes).insist_on(figure, np.array(labels))
    LabelFigures(classes).insist_on("loss", np.array(labels))


def test_margins_are_log_odds():
    logits = np.random.default_rng(0).normal(scale=3, size=(200, 5))
    shares = class_shares(logits)
    assert _margins(logits) == pytest.approx(np.log(shares / (1 - shares)), rel=1e-6)


def test_the_report_counts_each_class():
    logits = np.array([[2, 0], [2, 0], [0, 2], [0, 2], [2, 0]], float)
    report = class_report(["no", "yes"], 1, logits, np.array([0, 0, 1, 0, 0]))
    assert report["confusion_matrix"] == [[3, 1], [0, 1]]
    assert report["classes"]["yes"] == {"precision": 0.5, "recall": 1, "f1": pytest.approx(2 / 3), "names": 1}
    absent = class_report(["a", "b", "c"], 1, np.eye(3)[[0, 2, 2]], np.array([0, 2, 0]))
    assert [absent["classes"][each]["names"] for each in "abc"] == [2, 0, 1]
    lines = told_report(["no", "yes"], report)
    assert any(line.split() == ["no", "3", "1"] for line in lines) and any("0.1%" in line for line in lines)


def test_figures_of_numbers():
    labels, guessed = np.array([1.0, 2, 3, 4]), np.array([1.0, 2, 3, 8])
    found = regression_figures(guessed, labels)
    assert found == pytest.approx({"rmse": 2.0, "mae": 1.0, "r2": 1 - 16 / 5, "spearman": 1.0})
    assert regression_figures(np.ones(4), labels)["spearman"] == 0  # no order at all
    assert regression_figures(guessed, np.full(4, 0.1)).keys() == {"rmse", "mae"}


def test_numbers_below_0_count_and_empty_names_do_not():
    figures = LabelFigures(None)
    figures.begin(torch.device("cpu"))
    batch = {"labels": torch.tensor([-2.0, 3.0, 0.0]), "loss_weights": torch.tensor([1.0, 1.0, 0.0])}
    figures.add(lambda **_: SimpleNamespace(loss=torch.tensor(1.0), logits=torch.tensor([[-2.0], [3.0], [9.0]])), batch)
    told = figures.figures(Accelerator(cpu=True))
    assert (told["names"], told["rmse"]) == (2, 0)


def test_the_loss_is_weighted_and_empty_names_do_not_count():
    model = DomainCanineForSequenceClassification(DomainCanineConfig(**SMALL)).eval()
    ids = torch.full((3, 6), ord("a"))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.tensor([0, 1, -100])}
    batch["loss_weights"] = torch.tensor([3.0, 1.0, 0.0])
    figures = LabelFigures(["a", "b"])
    figures.begin(torch.device("cpu"))
    with torch.no_grad():
        figures.add(model, batch)
        logits = model(ids).logits
    each = torch.nn.functional.cross_entropy(logits[:2], torch.tensor([0, 1]), reduction="none")
    told = figures.figures(Accelerator(cpu=True))
    assert told["loss"] == pytest.approx(float(3 * each[0] + each[1]) / 4, rel=1e-6) and told["names"] == 2
