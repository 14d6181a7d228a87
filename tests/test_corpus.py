"""Raw files through the cache, and folders that are prepared already."""

import shutil

import numpy as np
import pytest

from domain_canine import corpus as module
from domain_canine.corpus import load_corpus
from domain_canine.errors import UserError
from domain_canine.manifest import is_prepared
from domain_canine.prepare import Settings, prepare
from domain_canine.remote import open_stream
from domain_canine.sample import sample_names
from domain_canine.sources import open_source


def load(path, column=None, **settings):
    return load_corpus(str(path), Settings(**settings), column, quiet=True)


@pytest.fixture
def prepared(tmp_path, names_file):
    prepare(open_source(str(names_file)), tmp_path / "prepared", Settings(), quiet=True)
    return tmp_path / "prepared"


def test_the_cache_is_keyed_by_content_and_settings(tmp_path, monkeypatch):
    built = []
    monkeypatch.setenv("DOMAIN_CANINE_CACHE", str(tmp_path / "cache"))
    real = module.prepare
    monkeypatch.setattr(module, "prepare", lambda *args, **options: built.append(real(*args, **options)))
    path = tmp_path / "names.txt"
    path.write_text("\n".join(sample_names(200)))
    load(path)
    load(path)
    assert built == [True, False]
    for changed in ({"validation_split": 0.2}, {"split_seed": 1}, {"max_length": 64}, {"num_samples": 150}):
        load(path, **changed)
    load(path, column="x")  # which text has not
    assert built[2:] == [True] * 4 + [False]
    path.write_text("\n".join(sample_names(201)))
    assert load(path).counts["kept"] == 201
    assert built[-1] is True
    # The same content elsewhere is the same names.
    shutil.copy(path, tmp_path / "other.txt")
    load(tmp_path / "other.txt")
    assert built[-1] is False


def test_a_prepared_folder_is_opened_as_it_is(tmp_path, monkeypatch, prepared, names_file):
    monkeypatch.setenv("DOMAIN_CANINE_CACHE", str(tmp_path / "cache"))
    assert is_prepared(prepared) and not is_prepared(names_file) and not is_prepared(tmp_path)
    found, raw = load(prepared), load(names_file)
    for side in ("train", "validation"):
        one, other = getattr(found, side), getattr(raw, side)
        assert one.table.names(np.arange(len(one.table))) == other.table.names(np.arange(len(other.table)))
    assert found.counts == raw.counts and found.description == str(prepared)


def test_a_prepared_folder_is_neither_streamed_nor_prepared_again(prepared):
    for open_it in (open_source, open_stream):
        with pytest.raises(UserError, match="prepared' is prepared: a training takes it as it is"):
            open_it(str(prepared))


def test_a_prepared_folder_must_fit_the_flags(prepared):
    with pytest.raises(UserError, match="prepared with --validation_split 0.1, not 0.2: give that"):
        load(prepared, validation_split=0.2)
    with pytest.raises(UserError, match="prepared with --split_seed 0, not 3"):
        load(prepared, split_seed=3)
    longest = max(len(name) for name in sample_names(200)) + 2
    assert load(prepared, max_length=longest)
    with pytest.raises(UserError, match=f"need --max_length {longest}, not {longest - 1}"):
        load(prepared, max_length=longest - 1)


def test_num_samples_of_a_prepared_folder_are_its_first(prepared):
    everything, some = load(prepared), load(prepared, num_samples=100)
    train, validation = len(some.train.lengths), len(some.validation.lengths)
    assert 98 <= train + validation <= 102 and 80 <= train <= 100
    assert np.array_equal(some.train.lengths, everything.train.lengths[:train])
    assert len(load(prepared, num_samples=9_999).train.lengths) == len(everything.train.lengths)


@pytest.mark.parametrize(
    ("harm", "match"),
    [
        (lambda folder: (folder / "train" / "lengths.u8").unlink(), "lengths.u8' is missing"),
        (lambda folder: next(folder.glob("train/*.arrow")).write_bytes(b"x"), "has 1 bytes, not"),
        (lambda folder: (folder / "manifest.json").write_text('{"input": {"version": 1}}'), "another version"),
    ],
)
def test_a_damaged_folder_is_told_clearly(prepared, harm, match):
    harm(prepared)
    with pytest.raises(UserError, match=match):
        load(prepared)
