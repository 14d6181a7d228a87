"""The launch command, killed five times, ends as if nothing had been; and what would count as a loss."""

import json
import shutil

import pytest
import torch

from benchmarks import torture
from domain_canine.checkpoints import MANIFEST, seal


def test_five_kills_lose_nothing_and_change_nothing(capsys):
    assert torture.main(["--kills", "5", "--seed", "1", "--json"]) == 0
    told = capsys.readouterr()
    found = json.loads(told.out)
    assert found["kills"] == 5 and found["resumes"] >= 2, told.err
    assert found["kills_while_writing"] >= 1, told.err
    assert found["tensors"] > 300 and found["values"] > 250 and found["steps"] == 300
    for name in ("different_tensors", "different_values", "lost_checkpoints", "half_written_checkpoints"):
        assert found[name] == 0, told.err


@pytest.fixture
def checkpoints(tmp_path):
    """Five whole checkpoints, the second the best."""
    for step in range(10, 60, 10):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        (folder / "trainer_state.json").write_text(json.dumps({"best_global_step": 20}))
        (folder / "weights").write_bytes(bytes(100))
        seal(folder)
    return tmp_path


def test_what_is_lost_and_what_is_rotated_away(checkpoints):
    seen = {path.name for path in checkpoints.iterdir()}
    assert torture.losses(checkpoints, seen) == ([], [])
    shutil.rmtree(checkpoints / "checkpoint-10")
    assert torture.losses(checkpoints, seen) == ([], [])
    seen.remove("checkpoint-10")
    (checkpoints / "checkpoint-40" / "weights").write_bytes(b"x" + bytes(99))
    assert torture.losses(checkpoints, seen) == (["checkpoint-40"], ["checkpoint-40"])
    (checkpoints / "checkpoint-40" / "weights").write_bytes(bytes(100))
    (checkpoints / "checkpoint-50" / MANIFEST).unlink()
    assert torture.losses(checkpoints, set()) == ([], ["checkpoint-50"])
    seal(checkpoints / "checkpoint-50")
    shutil.rmtree(checkpoints / "checkpoint-30")
    assert torture.losses(checkpoints, seen) == (["checkpoint-30"], [])
    shutil.rmtree(checkpoints / "checkpoint-20")  # the best
    assert sorted(torture.losses(checkpoints, seen)[0]) == ["checkpoint-20", "checkpoint-30"]


def test_one_bit_is_a_difference():
    one, other = torch.zeros(3), torch.zeros(3)
    assert torture.differences({"a": one}, {"a": other}) == []
    other[1] = -0.0
    assert torture.differences({"a": one}, {"a": other}) == ["a"]
    assert torture.differences({"a": torch.tensor(float("nan"))}, {"a": torch.tensor(float("nan"))}) == []
    assert torture.differences({"a": 1.0}, {"a": 1.0, "b": None, "c": 2}) == ["c"]


def test_a_folder_that_goes_while_it_is_looked_at_is_empty(tmp_path):
    (tmp_path / "checkpoint-7").mkdir()
    assert torture.named(tmp_path) == [tmp_path / "checkpoint-7"] and torture.changed(tmp_path / "checkpoint-7") > 0
    assert torture.named(tmp_path / "gone") == [] and torture.changed(tmp_path / "gone") == 0
