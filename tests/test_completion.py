"""Names from patterns: which forms a pattern has, that only valid names come of it, and that searches find the best."""

import itertools
import random
import re

import pytest
import torch

from domain_canine import (
    DomainCanineForMaskedLM,
    completion_domain_canine,
    normalize_domain,
    pipeline_domain_canine,
    scoring_domain_canine,
)
from domain_canine.completion_domain_canine import NAME_CHARACTERS, BadPattern, beam_search, complete, expand, sample
from domain_canine.pipeline_domain_canine import DomainCompletePipeline
from domain_canine.scoring_domain_canine import encode, score_names


@pytest.mark.parametrize(
    ("pattern", "length", "suffixes", "forms"),
    [
        ("py????.com", (4, 12), [], ["py????.com"]),
        ("ex[MASK]mple.com", (4, 12), [], ["ex?mple.com"]),
        ("best*shop.com", (8, 10), [], ["bestshop.com", "best?shop.com", "best??shop.com"]),
        ("best*shop.com", (10, 10), [], ["best??shop.com"]),
        ("a*b*c.de", (4, 4), [], ["ab?c.de", "a?bc.de"]),
        ("*", (3, 4), ["com", "co.uk"], ["???.com", "????.com", "???.co.uk", "????.co.uk"]),
        ("*", (2, 2), [], ["??.com"]),
        ("shop.???", (4, 12), ["com", "io", "net"], ["shop.com", "shop.net"]),
        ("shop.*", (4, 12), ["com", ".io", "co.uk"], ["shop.com", "shop.io", "shop.co.uk"]),
        ("www.py?.com", (4, 12), ["com", "net"], ["www.py?.com"]),
        ("www.py?.*", (4, 12), ["com", "co.uk"], ["www.py?.com", "www.py?.co.uk"]),
        ("py?.co.u?", (4, 12), ["uk", "co.uk", "com"], ["py?.co.uk"]),
        ("shop.??", (4, 12), [], ["shop.??"]),
        ("*-x.com", (2, 3), [], ["?-x.com"]),
        ("a******b.com", (2, 4), [], ["ab.com", "a?b.com", "a??b.com"]),
        ("py?.com.", (4, 12), [], ["py?.com"]),
        ("*?*?*.com", (1, 4), [], ["??.com", "???.com", "????.com"]),
        ("b?", (4, 12), ["РФ", ".COM "], ["b?.xn--p1ai", "b?.com"]),
    ],
)
def test_the_forms_of_a_pattern(pattern, length, suffixes, forms):
    assert sorted(expand(pattern, length, suffixes)) == sorted(forms)


@pytest.mark.parametrize(
    ("pattern", "suffixes", "told"),
    [
        ("-ab?.com", [], "cannot become a domain name: bad label"),
        ("a b?.com", [], "cannot become a domain name: bad character"),
        ("ab?.com", ["net"], "ends in none of the suffixes net"),
        ("shop.?????", ["co.uk"], "ends in none of the suffixes co.uk"),  # an unknown character is no dot
        ("co.uk", ["co.uk"], "ends in none of the suffixes co.uk"),
        ("ab.*", [], "say which suffixes"),
        ("averyveryverylong*.com", [], "is to have 12 characters at most, and has 17 already"),
        ("*a*b*c*.com", [], "more than 10,000 forms"),
        ("*a*b*c*d*e*f*g*.com", [], "more than 10,000 forms"),
        ("bü?.de", [], "is not ASCII: write its Unicode labels in their xn-- form"),
        ("b?", ["c m"], "'c m' is no suffix: bad character"),
        ("b?", ["*"], "is no suffix: bad character"),
        ("b?", ["123"], "is no suffix: "),
        ("b?", ["com", ""], "'' is no suffix"),
        ("", [], "cannot become"),
    ],
)
def test_patterns_of_which_nothing_can_come(pattern, suffixes, told):
    with pytest.raises(BadPattern, match=told):
        expand(pattern, (4, 60) if "forms" in told else (4, 12), suffixes)


class Loves:
    """A model that finds the characters of a text likely, each a little less than the one before."""

    def __init__(self, model, text):
        self.config, self.device, self.calls = model.config, model.device, 0
        self.scores = torch.full((128,), -10.0)
        for place, character in enumerate(text):
            self.scores[ord(character)] = -float(place)

    def asked(self, positions):
        pass

    def __call__(self, input_ids, masked_positions=None, **_):
        self.calls += 1
        self.asked(masked_positions)
        shape = input_ids.shape if masked_positions is None else masked_positions.shape
        return type("Output", (), {"logits": self.scores.expand(*shape, 128)})


@pytest.mark.parametrize("search", ["beam", "sample"])
@pytest.mark.parametrize("order", ["confidence", "random"])
def test_only_valid_names_come_of_a_model_that_wants_hyphens_digits_and_dots(model, search, order):
    loves = Loves(model, ".-0")
    patterns = ["*", "a*b.com", "??????.??", "a-?-?.com", "ab?-c.net", "ab-?c.net", "xn--?.com", "*.co.uk"]
    for pattern in patterns:
        found = names_of(loves, pattern, search, order)
        assert found
        for name in found:
            assert normalize_domain(name) == name
            labels = name.split(".")
            assert labels[-1].isalpha() and len(labels) == pattern.count(".") + (1 if "." in pattern else 2)
            # Unless the pattern itself has it.
            assert name[2:4] != "--" or pattern.startswith("xn--")


def names_of(loves, pattern, search, order):
    forms = expand(pattern, (3, 8), [])
    chance = random.Random(0)
    if search == "beam":
        return [name for each in beam_search(loves, forms, order, 8, [chance] * len(forms)) for name in each]
    return sample(loves, forms * 4, order, 1.0, None, [chance] * 4 * len(forms))


def all_names(form):
    places = [i for i, character in enumerate(form) if character == "?"]
    for letters in itertools.product(NAME_CHARACTERS, repeat=len(places)):
        name = list(form)
        for place, letter in zip(places, letters):
            name[place] = letter
        name = "".join(name)
        if not any(label.startswith("-") or label.endswith("-") for label in name.split(".")):
            yield name


def test_a_wide_beam_finds_the_likeliest_of_all_names(model):
    """One unknown character: all of them, in the order of the model. Two: what the chain rule says of every name."""
    [found] = beam_search(model, ["ex?mple.com"], "confidence", 37, [random.Random()])
    ids = encode(["exxmple.com"], model.device)
    ids[0, 3] = model.config.mask_code_point
    with torch.no_grad():
        logits = model(input_ids=ids).logits[0, 3]
    expected = sorted(all_names("ex?mple.com"), key=lambda name: -logits[ord(name[2])].item())
    assert found == expected
    [found] = beam_search(model, ["ab?c?.de"], "confidence", 2000, [random.Random()])
    assert len(found) == len(set(found)) and set(found) == set(all_names("ab?c?.de"))


@pytest.mark.parametrize("objective", ["mlm", "any_order"])
def test_completions_are_ranked_by_the_score_and_left_out_if_known(model, monkeypatch, objective):
    monkeypatch.setattr(model.config, "objective", objective)
    [found] = complete(model, ["ab??.com"], count=5)
    bits = [each.bits_per_character for each in found]
    assert len(found) == 5 and bits == sorted(bits) and len({each.name for each in found}) == 5
    scores = score_names(model, [each.name for each in found], orders=0)
    assert [each.log_probability for each in found] == pytest.approx([s.log_probability for s in scores], abs=1e-4)
    known = {found[0].name, found[2].name}
    [rest] = complete(model, ["ab??.com"], count=5, exclude=known)
    assert not known & {each.name for each in rest}
    assert {each.name for each in found} - known <= {each.name for each in rest}
    # The likeliest names are the registered ones: most of what a beam finds may be left out.
    [best] = complete(model, ["a??.com"], count=300)
    known = {each.name for each in best}
    [rest] = complete(model, ["a??.com"], count=10, exclude=known)
    assert len(rest) == 10 and not known & {each.name for each in rest}


@pytest.mark.parametrize("mask", [0xE003, 0x2592])
def test_a_beam_adds_up_what_each_step_says_of_what_is_allowed(config, mask):
    config.mask_code_point = mask
    model = DomainCanineForMaskedLM(config).eval()
    letters = {0: NAME_CHARACTERS[:36], 4: NAME_CHARACTERS[:26]}

    def shares(name, at):
        ids = torch.tensor([[0xE000, *(mask if character == "?" else ord(character) for character in name), 0xE001]])
        with torch.no_grad():
            logits = model(input_ids=ids).logits[0, at + 1, [*map(ord, letters[at])]]
        return dict(zip(letters[at], logits.log_softmax(-1).tolist()))

    def walk(name, total):
        if "?" not in name:
            return {name: total}
        told = {at: shares(name, at) for at in letters if name[at] == "?"}
        at = max(told, key=lambda at: max(told[at].values()))
        names = {name[:at] + letter + name[at + 1 :]: total + share for letter, share in told[at].items()}
        return {each: sum_ for name, total in names.items() for each, sum_ in walk(name, total).items()}

    expected = walk("?b.c?", 0.0)
    [found] = beam_search(model, ["?b.c?"], "confidence", 2000, [random.Random()])
    assert set(found) == set(expected)
    assert [expected[name] for name in found] == pytest.approx(sorted(expected.values(), reverse=True), abs=1e-4)


def test_each_character_is_drawn_anew_and_in_an_order_of_its_own(model):
    uniform = Loves(model, "")
    names = sample(uniform, ["????.com"] * 20, "random", 1.0, None, [random.Random(0)] * 20)
    assert all(len(set(name[:4])) > 1 for name in names)
    first = set()
    for seed in range(20):
        asked = []
        uniform = Loves(model, "")
        uniform.asked = asked.append
        beam_search(uniform, ["????????.com"], "random", 1, [random.Random(seed)])
        first.add(asked[0].item())
    assert len(first) > 3


def scripted(monkeypatch, *rounds):
    """Drawing that comes to these names, three at once."""
    rounds = iter(rounds)
    monkeypatch.setattr(completion_domain_canine, "sample", lambda *_: [f"{name}.com" for name in next(rounds).split()])


def test_the_first_draws_count_not_the_best(model, monkeypatch):
    scripted(monkeypatch, "aa aa ab", "ac ad ae")
    [found] = complete(model, ["a?.com"], count=3, search="sample")
    assert {each.name for each in found} == {"aa.com", "ab.com", "ac.com"}


def test_drawing_ends_after_rounds_without_a_new_name_side_by_side(model, monkeypatch):
    scripted(monkeypatch, *["aa aa aa"] * 6, *["ab ab ab"] * 6, "ac ac ac")
    [found] = complete(model, ["a?.com"], count=3, search="sample")
    assert len(found) == 3


def test_names_of_different_lengths_are_ranked_by_bits_per_character(model):
    [found] = complete(model, ["*"], count=30, length=(2, 6), search="sample", suffixes=iter(["net"]))
    bits, nats = ([getattr(each, kind) for each in found] for kind in ("bits_per_character", "log_probability"))
    assert bits == sorted(bits) and nats != sorted(nats, reverse=True)
    two = complete(model, ["a?", "b?"], count=2, suffixes=iter(["net"]))
    assert [each.name[2:] for found in two for each in found] == [".net"] * 4


@pytest.mark.parametrize("order", ["confidence", "random"])
def test_draws_are_the_models_probabilities(model, order):
    """One unknown character drawn 4,000 times."""
    [ids] = encode(["exxmple.com"], model.device)
    ids[3] = model.config.mask_code_point
    with torch.no_grad():
        logits = model(input_ids=ids[None]).logits[0, 3, [ord(letter) for letter in NAME_CHARACTERS]]
    for temperature, top_k in ((1.0, None), (0.5, None), (1.0, 3)):
        expected = (logits / temperature).softmax(-1)
        if top_k:
            expected = torch.where(logits >= logits.topk(top_k).values[-1], expected, 0)
            expected = expected / expected.sum()
        names = sample(model, ["ex?mple.com"] * 4000, order, temperature, top_k, [random.Random(1)] * 4000)
        shares = torch.tensor([sum(name[2] == letter for name in names) / 4000 for letter in NAME_CHARACTERS])
        assert (shares - expected).abs().max() < 0.035
        assert set(map(len, names)) == {11}


def test_sampling_goes_on_until_there_are_enough_and_stops_where_there_are_no_more(model, monkeypatch):
    [found] = complete(model, ["*"], count=60, search="sample", order="random", length=(5, 7), suffixes=["com", "net"])
    assert len({each.name for each in found}) == 60
    assert {len(each.name) for each in found} == {9, 10, 11} and {each.name[-3:] for each in found} == {"com", "net"}
    for seed in range(3):  # the last of 36 are found, too
        [few] = complete(model, ["a?.com"], count=40, search="sample", temperature=10, seed=seed)
        assert len(few) == 36
    [left] = complete(model, ["a?.com"], count=40, search="sample", temperature=10, exclude=[few[0].name, few[9].name])
    assert {each.name for each in few} - {each.name for each in left} == {few[0].name, few[9].name}
    again = complete(model, ["*"], count=20, search="sample", seed=3)
    assert again == complete(model, ["*"], count=20, search="sample", seed=3)
    assert again != complete(model, ["*"], count=20, search="sample", seed=4)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"length": 8}, r"as \(4, 12\), not 8"),
        ({"length": "8-12"}, "not '8-12'"),
        ({"length": (12, 8)}, r"not \(12, 8\)"),
        ({"length": (1, 64)}, "from 1 to 63"),
        ({"count": 0}, "count must be at least 1"),
        ({"search": "greedy"}, "search must be one of beam, sample, not 'greedy'"),
        ({"order": "any"}, "order must be one of confidence, random"),
        ({"search": "sample", "temperature": 0}, "temperature must be 0.001 or more, not 0"),
        ({"temperature": 0.5}, "are for drawing: take search sample"),
        ({"suffixes": "com,n t"}, "'n t' is no suffix"),
    ],
)
def test_options_that_will_not_do(model, options, told):
    with pytest.raises(ValueError, match=told):
        complete(model, ["a*"], **options)


def test_a_pipeline_goes_on_after_its_first_block_and_keeps_its_parameters(model, monkeypatch):
    monkeypatch.setattr(pipeline_domain_canine, "BLOCK", 3)
    completer = DomainCompletePipeline(model=model, tokenizer=None, task="domain-complete", count=1)
    found = completer([f"{letter}?.com" for letter in "abcdefgh"])
    assert [[each["name"][0] for each in names] for names in found] == [[letter] for letter in "abcdefgh"]
    assert len(completer("a?.com", count=2)) == 2
    found = completer([f"{letter}?" for letter in "abcd"], suffixes=iter(["net"]), exclude=iter(["d0.net"]), count=40)
    assert {each["name"][2:] for names in found for each in names} == {".net"}
    assert "d0.net" not in {each["name"] for each in found[3]}


def test_a_pipeline_takes_names_to_leave_out_as_they_come(model):
    completer = DomainCompletePipeline(model=model, tokenizer=None, task="domain-complete")
    found = completer("a?.com", count=40, exclude=["AB.com.", "ac.com", "no name"], suffixes="com,net")
    assert {each["name"][1] for each in found} == set("abcdefghijklmnopqrstuvwxyz0123456789") - set("bc")
    for wrong, told in ((5, "not 5"), (["a?.com", 5], "takes texts, not 5")):
        with pytest.raises(TypeError, match=told):
            completer(wrong)
    with pytest.raises(TypeError, match=r"exclude must be names, as \['ab.com'\]"):
        completer("a?.com", exclude="ab.com")


@pytest.mark.parametrize("search", ["beam", "sample"])
def test_more_names_than_there_can_be_take_no_memory(model, monkeypatch, search):
    for limit in ("MOST_BEAMS", "MOST_DRAWN"):
        monkeypatch.setattr(completion_domain_canine, limit, 20)
    temperature = 10 if search == "sample" else 1
    [found] = complete(model, ["ab?.com"], count=10**11, search=search, order="random", temperature=temperature)
    assert len(found) == 20 if search == "beam" else len(found) == 36


@pytest.mark.parametrize("search", ["beam", "sample"])
@pytest.mark.parametrize("order", ["confidence", "random"])
def test_patterns_of_many_kinds_at_once_are_the_same_as_one_by_one(model, monkeypatch, search, order):
    # Three of them are alike: of one length, and with as many unknown characters.
    patterns = ["py??.com", "qu??.org", "a*.net", "?ab?.net", "shop?.de", "b*x.org", "*"]
    how = {"count": 3, "length": (3, 6), "search": search, "order": order, "exclude": ["pyaa.com"]}
    together = complete(model, patterns, **how)
    monkeypatch.setattr(scoring_domain_canine, "SLOTS_ON_CPU", 200)
    for pattern, found in zip(patterns, together):
        [single] = complete(model, [pattern], **how)
        assert [each.name for each in single] == [each.name for each in found]
        assert len(found) == 3 and found[0].pattern == pattern
        likes = pattern.replace(".", r"\.").replace("?", ".").replace("*", ".*")
        assert all(re.match(likes, each.name) for each in found)
