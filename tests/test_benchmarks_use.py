"""The benchmarks of what people do with a model run, and tell what they say they tell."""

import json
import random

import numpy as np
import pyarrow as pa
import pytest

from benchmarks import classification, generation, scoring
from domain_canine.labelled import groups
from domain_canine.sample import sample_names


def told(capsys, main, *words) -> dict:
    assert main([str(word) for word in words]) == 0
    return json.loads(capsys.readouterr().out.splitlines()[-1])


@pytest.fixture
def corpus(short_run):
    """The names that the model was trained on, and how they were split."""
    return "--dataset", short_run.parent / "names.txt"


def test_real_names_against_shuffled_ones(short_run, corpus, capsys, monkeypatch):
    found = told(capsys, scoring.main, short_run, *corpus, "--count", "20", "--json")[str(short_run)]
    assert 15 <= found["names"] <= 20 and 0 <= found["one_by_one"]["auc"] <= 1
    assert found["one_by_one"]["real_bits"] > 1 and found["one_by_one"]["names_per_s"] > 0
    # A model that is sure of real names.
    monkeypatch.setattr(
        scoring, "bits", lambda model, names, **options: np.array([len(set(name)) == 3.0 for name in names])
    )
    monkeypatch.setattr(scoring, "shuffled", lambda name, chance: "aaa.b")
    assert (
        told(capsys, scoring.main, short_run, *corpus, "--count", "20", "--json")[str(short_run)]["one_by_one"]["auc"]
        == 1
    )


def test_shuffling_keeps_the_characters_the_hyphens_and_the_suffix():
    other = scoring.shuffled("abc-defghij.klmnopqr.com", random.Random(0))
    assert other != "abc-defghij.klmnopqr.com" and other[3] == "-" and other.endswith(".com")
    assert [sorted(label) for label in other.split(".")] == [
        sorted(label) for label in "abc-defghij.klmnopqr.com".split(".")
    ]


def test_memory_of_the_command(short_run, capsys):
    [found] = told(capsys, scoring.main, short_run, "--memory", "50", "--json")[str(short_run)]
    assert found["rows"] == 50 and found["peak_mb"] > 100 and found["rows_per_s"] > 0


def test_names_that_are_made(short_run, corpus, capsys, tmp_path):
    found = told(capsys, generation.main, short_run, *corpus, "--count", "20", "--write", tmp_path, "--json")
    assert len(found) == 5
    completed = found.pop(next(name for name in found if name.endswith("completed")))
    assert completed["completions"] == 60 and completed["valid"] == 1 and 0 <= completed["found_again"] <= 1
    for each in found.values():
        assert each["valid"] == 1 and 0 < each["different"] <= 1 and 0 <= each["known"] <= 1 and 0 <= each["auc"] <= 1
    train, validation = (
        (tmp_path / f"run-from_nothing-random-{side}.csv").read_text().split() for side in ("train", "validation")
    )
    assert len(train) == 1 + 2 * 16 and len(validation) == 1 + 2 * 4
    for real, made in zip(validation[1::2], validation[2::2]):
        assert real.endswith(",real") and made.endswith(",made")
        assert len(real) == len(made) and real.split(".")[-1][:-5] == made.split(".")[-1][:-5]


def test_classifiers_and_the_corpus_that_they_may_be_pretrained_on(capsys, tmp_path, short_run):
    names = sample_names(200)
    rows = [f"{name},{'good' if len(name) % 2 else 'bad'}" for name in names]
    (tmp_path / "labelled.csv").write_text("domain,label\n" + "\n".join(rows) + "\n")
    flags = "--train_file", tmp_path / "labelled.csv", "--use_cpu", "--validation_split", "0.3"
    found = told(
        capsys, classification.main, *flags, "--json", "--seeds", "1", "--model", short_run, "--num_train_epochs", "1"
    )
    for side in ("tfidf", "pretrained"):
        mean, least, most = found[side]["auc"]
        assert 0 <= mean == least == most <= 1
    (tmp_path / "corpus.txt").write_text("\n".join([f"www.{names[0]}", names[1], *sample_names(300)[250:]]) + "\n")
    assert classification.main(
        [str(each) for each in (*flags, "--corpus", tmp_path / "corpus.txt", "--cleaned", tmp_path / "clean.txt")]
    ) == 0  # fmt: skip
    kept = (tmp_path / "clean.txt").read_text().split()
    assert kept and not set(groups(pa.array(kept), "last_two_labels")) & set(groups(pa.array(names), "last_two_labels"))
