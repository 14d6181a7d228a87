import json

import numpy as np
import pytest
import torch

from benchmarks.quality import (
    CHARACTERS,
    EDGE,
    HIDDEN,
    WIDEST,
    CountModel,
    count_figures,
    every_position,
    main,
    masked_positions,
    model_figures,
    validation_batches,
)
from domain_canine.arguments import DataArguments
from domain_canine.configuration_domain_canine import DomainCanineConfig
from domain_canine.corpus import Corpus, load_corpus
from domain_canine.data import build_batches, build_collator
from domain_canine.modeling_domain_canine import DomainCanineForMaskedLM
from domain_canine.prepare import Settings
from domain_canine.pretrained import SIZES
from domain_canine.sample import sample_names
from domain_canine.table import table_of
from domain_canine.trainer import DomainTrainer
from domain_canine.training_arguments import DomainTrainingArguments

A, B, C = range(3)
KINDS = ["perplexity", "perplexity_name", "perplexity_suffix"]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DOMAIN_CANINE_CACHE", str(tmp_path / "cache"))


def sample(names: int) -> Corpus:
    return load_corpus("sample", Settings(num_samples=names), quiet=True)


@pytest.fixture
def untrained() -> DomainCanineForMaskedLM:
    torch.manual_seed(0)
    return DomainCanineForMaskedLM(DomainCanineConfig(**SIZES["tiny"]))


def test_positions_and_their_neighbours():
    targets, contexts = every_position(table_of(["ab", "cab"]))
    assert [CHARACTERS[target] for target in targets] == list("abcab")
    assert contexts.tolist() == [
        [EDGE, B, EDGE, EDGE, EDGE, EDGE],
        [A, EDGE, EDGE, EDGE, EDGE, EDGE],
        [EDGE, A, EDGE, B, EDGE, EDGE],
        [C, B, EDGE, EDGE, EDGE, EDGE],
        [A, EDGE, C, EDGE, EDGE, EDGE],
    ]


def test_probability_by_hand():
    """The characters of ab, ab and cb with one neighbour on each side."""
    contexts = np.array([[EDGE, B], [A, EDGE], [EDGE, B], [A, EDGE], [EDGE, B], [C, EDGE]], dtype=np.int8)
    model = CountModel(np.array([A, B, A, B, C, B], dtype=np.int8), contexts)
    asked = np.array([[EDGE, B], [HIDDEN, B], [HIDDEN, HIDDEN], [C, B], [B, B]], dtype=np.int8)
    found = model.probabilities(asked)[:, A]
    nothing = (2 + 3 * 3 / 38) / (6 + 3 * 3)  # a, b and c in 6 positions
    edge = (2 + 3 * 2 * nothing) / (3 + 3 * 2)  # a, a and c stand behind an edge; they also stand before b
    after_c = (0 + 3 * 1 * nothing) / (1 + 3 * 1)
    assert found[0] == pytest.approx((2 + 3 * 2 * (edge + edge) / 2) / (3 + 3 * 2), rel=1e-12)
    assert found[1] == pytest.approx(edge, rel=1e-12)
    assert found[2] == pytest.approx(nothing, rel=1e-12)
    assert found[3] == pytest.approx((after_c + edge) / 2, rel=1e-12)  # c and b never met around a character
    assert found[4] == pytest.approx((nothing + edge) / 2, rel=1e-12)  # nor did anything follow b


def test_probabilities_sum_to_one():
    targets, contexts = every_position(table_of(sample_names(300)))
    asked = np.random.default_rng(0).integers(0, HIDDEN + 1, (2_000, 2 * WIDEST)).astype(np.int8)
    found = CountModel(targets, contexts).probabilities(np.concatenate([asked, contexts]))
    assert found.min() > 0
    assert found.sum(1) == pytest.approx(1, abs=1e-12)


def test_masked_neighbours_are_hidden():
    corpus = sample(300)
    targets, contexts, suffix = masked_positions(validation_batches(corpus))
    truth = "".join(corpus.validation.table.names(np.arange(len(corpus.validation.table))))
    assert len(targets) == len(contexts) == len(suffix) == pytest.approx(0.15 * len(truth), rel=0.1)
    assert targets.max() < len(CHARACTERS)
    assert (contexts == HIDDEN).any(0).all()
    assert 0.1 < suffix.mean() < 0.5


def test_wider_is_better_on_the_sample():
    found = count_figures(sample(10_000))
    one, two, three = (found[f"count_{k}"] for k in (1, 2, 3))
    for kind in KINDS:
        assert one[kind] > two[kind] > three[kind] > 1
    assert one["perplexity"] < 12


def test_same_figures_as_the_training_command(tmp_path, untrained):
    data = DataArguments(dataset="sample", num_samples=600)
    args = DomainTrainingArguments(output_dir=str(tmp_path), use_cpu=True, dataloader_num_workers=0, report_to=[])
    train, validation, _ = build_batches(data, args, build_collator(data, args, untrained.config))
    expected = DomainTrainer(model=untrained, args=args, train_dataset=train, eval_dataset=validation).evaluate()
    found = model_figures(untrained, sample(600))
    assert found["masked_characters"] == expected["eval_masked_characters"]
    for kind in KINDS:
        assert found[kind] == pytest.approx(expected[f"eval_{kind}"], rel=1e-4)


def test_command(tmp_path, capsys, untrained):
    untrained.save_pretrained(tmp_path / "model")
    command = ["--dataset", "sample", "--num_samples", "3000", "--json"]
    assert main([*command, "--model", str(tmp_path / "model")]) == 0
    out, table = capsys.readouterr()
    found = json.loads(out)
    assert out.count("\n") == 1
    counts = ["count_1", "count_2", "count_3"]
    assert list(found) == ["names", "masked_characters", *counts, "model", "seconds"]
    assert all(list(found[each]) == KINDS for each in [*counts, "model"])
    assert 250 < found["names"] < 350
    assert 50 < found["model"]["perplexity"] < 300  # 128 classes, not trained
    assert f"{found['count_3']['perplexity']:.3f}" in table

    assert main(command[:-1]) == 0
    out, table = capsys.readouterr()
    assert out == ""
    assert "model" not in table
