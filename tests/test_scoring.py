"""Scores of names: what they are sums of, that they depend on nothing else, and the pipeline that comes with a model."""

import itertools
import json
import math
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from conftest import SMALL

from domain_canine import DomainCanineConfig, DomainCanineForMaskedLM, scoring_domain_canine
from domain_canine.arguments import ModelArguments
from domain_canine.pretrained import build_model, build_tokenizer
from domain_canine.sample import sample_names
from domain_canine.scoring_domain_canine import score_names

LONGEST = ".".join(["a" * 63, "b" * 63, "c" * 63, "d" * 57, "com"])


def alone(model, name: str, hidden: list[int]) -> torch.Tensor:
    """Log-probabilities (len(hidden),) of a name's hidden characters, by the plainest call there is."""
    ids = torch.tensor([[0xE000, *map(ord, name), 0xE001]])
    ids[0, [at + 1 for at in hidden]] = model.config.mask_code_point
    with torch.no_grad():
        found = model(input_ids=ids).logits[0].log_softmax(-1)
    return torch.stack([found[at + 1, ord(name[at])] for at in hidden])


def test_each_character_is_scored_from_all_others(model):
    for name in ("a.bc", "example.com", "xn--bcher-kva.de"):
        [score] = score_names(model, [name])
        expected = [alone(model, name, [at]).item() for at in range(len(name))]
        assert score.name == name and score.characters == pytest.approx(expected, abs=1e-4)
        assert score.log_probability == pytest.approx(sum(expected), abs=1e-3)
        assert score.bits_per_character == pytest.approx(-sum(expected) / len(name) / math.log(2), abs=1e-4)


@pytest.mark.parametrize("orders", [0, 4])
def test_a_long_name_is_scored_a_part_at_a_time(model, monkeypatch, orders):
    [whole] = score_names(model, [LONGEST], orders=orders)
    monkeypatch.setattr(scoring_domain_canine, "SLOTS_ON_CPU", 1000)
    sizes = []
    with torch.no_grad():
        handle = model.register_forward_pre_hook(
            lambda module, given, named: sizes.append(named["input_ids"].numel()), with_kwargs=True
        )
        [score] = score_names(model, [LONGEST], orders=orders)
    handle.remove()
    assert max(sizes) <= 1000 and len(sizes) >= 84 * max(1, orders)
    assert score.characters == pytest.approx(whole.characters, abs=1e-4)


def test_the_bound_is_the_mean_over_orders(model):
    """With all 24 orders of four characters written out by hand."""
    name, total = "a.bc", torch.zeros(4)
    for order in itertools.permutations(range(4)):
        for step in range(4):
            hidden = sorted(order[step:])
            total[hidden] += alone(model, name, hidden) / len(hidden)
    expected = total / 24
    assert len(list(itertools.permutations(range(4)))) == 24
    [many] = score_names(model, [name], orders=4000)
    assert many.characters == pytest.approx(expected.tolist(), abs=0.1)
    assert many.log_probability == pytest.approx(expected.sum().item(), abs=0.1)


def test_the_bound_of_few_orders_is_the_mean_over_what_is_hidden(model):
    name, expected = "ab.cd", torch.zeros(5)
    for number in range(2):
        turns = scoring_domain_canine._turns(name, 0, number, 5)
        for step in range(5):
            hidden = [at for at in range(5) if turns[at] >= step]
            expected[hidden] += alone(model, name, hidden) / len(hidden) / 2
    [score] = score_names(model, [name], orders=2)
    assert score.characters == pytest.approx(expected.tolist(), abs=1e-4)


def test_which_masks_are_looked_up_sooner():
    for mask, usual in ((ord("?"), True), (0xE003, True), (0xE007, True), (0xE008, False), (0x2592, False)):
        assert scoring_domain_canine.is_usual(SimpleNamespace(config=SimpleNamespace(mask_code_point=mask))) == usual


def test_the_bound_of_a_model_that_knows_the_probabilities_is_tight(model, monkeypatch):
    """A model that finds every class equally likely: n characters of 128 classes, whatever the order."""
    torch.nn.init.zeros_(model.lm_head.decoder.weight)
    torch.nn.init.zeros_(model.lm_head.decoder.bias)
    for orders in (0, 1, 3):
        [score] = score_names(model, ["example.com"], orders=orders)
        assert score.log_probability == pytest.approx(-11 * math.log(128), abs=1e-4)


@pytest.mark.parametrize("orders", [0, 2])
def test_a_score_depends_on_no_other_name(model, monkeypatch, orders):
    names = [*sample_names(60), "a.b", LONGEST, "1.com"]
    together = score_names(model, names, orders=orders)
    assert [score.name for score in together] == names
    monkeypatch.setattr(scoring_domain_canine, "SLOTS_ON_CPU", 100)  # other batches
    for score in together[::7] + together[-3:]:
        [single] = score_names(model, [score.name], orders=orders)
        assert single.log_probability == pytest.approx(score.log_probability, abs=1e-4)
        assert single.characters == pytest.approx(score.characters, abs=1e-4)


def test_the_objective_of_the_training_decides_and_the_seed_draws_the_orders(model):
    names = ["example.com"]
    assert score_names(model, names) == score_names(model, names, orders=0)
    model.config.objective = "any_order"
    assert score_names(model, names) == score_names(model, names, orders=scoring_domain_canine.ORDERS)
    assert score_names(model, names) != score_names(model, names, seed=1)


def test_another_mask_is_heeded(model):
    model.config.mask_code_point = 0x2592
    [score] = score_names(model, ["example.com"])
    assert score.characters[3] == pytest.approx(alone(model, "example.com", [3]).item(), abs=1e-4)


STRANGER = """
import json, sys
sys.modules["domain_canine"] = None
from transformers import pipeline
from transformers.pipelines.pt_utils import KeyDataset
score = pipeline("domain-score", model=sys.argv[1], trust_remote_code=True)
told = {
    "one": score("Example.com"), "list": score(["example.com", "nope", "b\\u00fccher.de"]),
    "stream": [row["name"] for row in score(f"{i}.com" for i in range(3))],
    "keys": [row["name"] for row in score(KeyDataset([{"at": "a.com"}, {"at": "b.org"}], "at"))],
    "orders": score("example.com", orders=2), "method": score.model.score(["example.com"])[0].log_probability,
}
complete = pipeline("domain-complete", model=sys.argv[1], trust_remote_code=True)
told["complete"] = complete("ex?mple.com", count=3)
told["several"] = complete(["ab?.com", "*"], count=2, length=(3, 3), suffixes=["com", "net"])
print(json.dumps(told))
"""


def test_the_pipelines_come_with_a_checkpoint(tmp_path):
    model = build_model(ModelArguments(model_size="tiny", config_overrides="num_hidden_layers=1"), "any_order")
    model.eval().save_pretrained(tmp_path / "model")
    build_tokenizer(model, 128).save_pretrained(tmp_path / "model")
    assert json.loads((tmp_path / "model" / "config.json").read_text())["objective"] == "any_order"
    done = subprocess.run(
        [sys.executable, "-c", STRANGER, tmp_path / "model"], capture_output=True, text=True, cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin", "HF_HUB_OFFLINE": "1", "HOME": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    [expected] = score_names(model, ["example.com"])
    assert told["one"]["log_probability"] == pytest.approx(expected.log_probability, abs=1e-4)
    assert told["one"]["input"] == "Example.com" and told["one"]["name"] == "example.com"
    assert told["one"]["characters"] == pytest.approx(expected.characters, abs=1e-4)
    assert [row["reason"] for row in told["list"]] == [None, "one_label", None]
    assert told["list"][1]["log_probability"] is None and told["list"][2]["name"] == "xn--bcher-kva.de"
    assert told["stream"] == ["0.com", "1.com", "2.com"] and told["keys"] == ["a.com", "b.org"]
    assert told["orders"]["log_probability"] != told["one"]["log_probability"]
    assert told["method"] == pytest.approx(expected.log_probability, abs=1e-4)
    assert len(told["complete"]) == 3 and all(row["name"].endswith("mple.com") for row in told["complete"])
    assert [row["pattern"] for row in told["several"][0]] == ["ab?.com", "ab?.com"]
    assert all(len(row["name"]) == 7 and row["name"][-3:] in ("com", "net") for row in told["several"][1])


def test_a_configuration_without_an_objective_is_that_of_mlm():
    assert DomainCanineForMaskedLM(DomainCanineConfig(**SMALL)).config.objective == "mlm"
