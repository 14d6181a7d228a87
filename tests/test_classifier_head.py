"""The head for labels, as stock models and training loops have it."""

import pytest
import torch
from conftest import SMALL
from transformers import CanineForSequenceClassification

from domain_canine import DomainCanineConfig, DomainCanineForSequenceClassification
from domain_canine.tokenization_domain_canine import CLS, SEP


@pytest.mark.parametrize(
    "labels_of, labels, problem",
    [
        (1, torch.tensor([3.0, 5.0]), "regression"), (1, torch.tensor([3, -100]), "regression"),
        (3, torch.tensor([0, 2]), "single_label_classification"),
        (3, torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 1.0]]), "multi_label_classification"),
    ],
)  # fmt: skip
def test_what_labels_are_is_kept_for_those_who_use_the_model(labels_of, labels, problem):
    """As stock heads do; the pipelines of transformers tell by it whether an output is a number, and else how shares are made."""
    made = []
    for kind in (DomainCanineForSequenceClassification, CanineForSequenceClassification):
        model = kind(DomainCanineConfig(**SMALL, num_labels=labels_of, attn_implementation="eager"))
        model(input_ids=torch.tensor([[CLS, 97, 46, 98, SEP, 0, 0, 0]] * 2), labels=labels)
        made.append(model.config.problem_type)
    assert made == [problem, problem]


def test_a_label_that_is_none_counts_for_nothing(config):
    config.num_labels = 3
    model = DomainCanineForSequenceClassification(config).eval()
    ids = torch.tensor([[CLS, 97, 46, letter, SEP] for letter in (98, 99, 100)])
    some, alone = model(ids, labels=torch.tensor([2, -100, -100])).loss, model(ids[:1], labels=torch.tensor([2])).loss
    assert some.item() == pytest.approx(alone.item(), rel=1e-5)
