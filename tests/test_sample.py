import re
from hashlib import blake2b

import pytest

from domain_canine.sample import sample_names

VALID = re.compile(r"(?=.{4,253}\Z)([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.)+(?=[a-z0-9-]*[a-z])[a-z0-9-]{0,62}[a-z0-9]")


@pytest.fixture(scope="module")
def names() -> list[str]:
    return sample_names()


def share(names: list[str], pattern: str) -> float:
    return sum(re.search(pattern, name) is not None for name in names) / len(names)


def test_same_list_everywhere(names: list[str]) -> None:
    digest = blake2b("\n".join(names).encode(), digest_size=16).hexdigest()
    assert digest == "9fa67e3107da4e157a54f42ea90390ed"


def test_smaller_count_is_a_prefix(names: list[str]) -> None:
    assert sample_names(100) == names[:100]
    assert sample_names(0) == []


def test_seed_matters(names: list[str]) -> None:
    other = sample_names(1_000, seed=1)
    assert other == sample_names(1_000, seed=1)
    assert len(set(other) & set(names[:1_000])) < 100


@pytest.mark.parametrize("seed", range(3))
def test_names_are_unique_and_valid(seed: int) -> None:
    names = sample_names(seed=seed)
    assert len(names) == len(set(names)) == 30_000
    assert [name for name in names if not VALID.fullmatch(name)] == []


def test_idns_decode(names: list[str]) -> None:
    idns = [name for name in names if name.startswith("xn--")]
    assert len(idns) > 30
    assert all(name.encode().decode("idna").encode("idna") == name.encode() for name in idns)


def test_statistics_are_those_of_registrations(names: list[str]) -> None:
    lengths = [len(name) for name in names]
    assert 15 <= sum(lengths) / len(names) <= 16
    assert min(lengths) <= 5
    assert 40 <= max(lengths) <= 50
    assert share(names, r"\.com$") == pytest.approx(0.54, abs=0.015)
    assert share(names, r"[0-9]") == pytest.approx(0.088, abs=0.01)
    assert share(names, r"-") == pytest.approx(0.114, abs=0.01)
    assert share(names, r"^[0-9]+\.") > 0.01
    assert len({name.split(".", 1)[1] for name in names}) > 100
