"""``--bf16`` of the commands that make rows of names: the same answers, but for the precision."""

import json

import numpy as np
import pytest
import torch
from conftest import SMALL

from domain_canine import DomainCanineForMaskedLM, DomainCanineForSequenceClassification, cli
from domain_canine.configuration_domain_canine import DomainCanineConfig
from domain_canine.pretrained import build_tokenizer
from domain_canine.sample import sample_names

NAMES = sample_names(30)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    model = DomainCanineForMaskedLM(DomainCanineConfig(**SMALL))
    classes = DomainCanineConfig(**SMALL, num_labels=3, pooling="mean", problem_type="single_label_classification")
    for name, made in (("mlm", model), ("classes", DomainCanineForSequenceClassification(classes))):
        made.save_pretrained(root / name)
        build_tokenizer(model, 128).save_pretrained(root / name)
    return root


@pytest.mark.parametrize(
    "command, model, flags, column",
    [
        ("score", "mlm", "", "log_probability"), ("score", "mlm", "--orders 2", "log_probability"),
        ("complete", "mlm", "", "log_probability"), ("embed", "mlm", "--normalize", "embedding"),
        ("classify", "classes", "--all", "p_LABEL_0"),
    ],
)  # fmt: skip
def test_answers_are_the_same_but_for_the_precision(folders, tmp_path, command, model, flags, column):
    found = {}
    for how in ([], ["--bf16"]):
        output = tmp_path / f"{len(how)}.jsonl"
        words = [command, folders / model, *NAMES, "--output", output, *flags.split(), *how]
        assert cli.main([str(word) for word in words]) == 0
        rows = [json.loads(line) for line in output.read_text().splitlines()]
        found[bool(how)] = np.array([row[column] for row in rows])
    spread = np.abs(found[False] - found[False].mean(0)).mean()
    off = np.abs(found[True] - found[False])
    assert len(off) == len(NAMES) and 0 < off.mean() < 0.1 * spread
