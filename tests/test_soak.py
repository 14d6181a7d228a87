"""A short run of the launch command that is watched; the long one is in docs/benchmarks.md."""

import json

import pytest

from benchmarks import soak
from domain_canine.errors import UserError


def sampled(memory=lambda i: 500.0, files=lambda i: 26, count=200, workers=lambda i: 2) -> list[dict]:
    return [
        {
            "at": i / 2,
            "step": 10 * i,
            "memory": memory(i),
            "files": files(i),
            "worker_memory": 700.0,
            "workers": workers(i),
        }
        for i in range(count)
    ]


def test_growth_is_seen_and_a_save_is_none():
    assert soak.figures(sampled())["growth_mb"] == 0 and soak.figures(sampled())["steps_per_s"] == 20
    assert soak.figures(sampled(memory=lambda i: 500 + i / 4))["growth_mb"] == pytest.approx(45, abs=1)
    saves = soak.figures(sampled(memory=lambda i: 500 + 90 * (i % 10 == 9), files=lambda i: 26 + 5 * (i % 10 == 9)))
    assert (saves["growth_mb"], saves["memory_most_mb"]) == (0, 590)
    assert (saves["open_files_first"], saves["open_files_last"], saves["open_files_most"]) == (26, 26, 31)
    leak = soak.figures(sampled(files=lambda i: 26 + i // 10))
    assert leak["open_files_last"] - leak["open_files_first"] == pytest.approx(18, abs=1)
    evaluated = soak.figures(sampled(files=lambda i: 26 + 6 * (i > 150), workers=lambda i: 2 + (i > 150)))
    assert (evaluated["open_files_last"], evaluated["workers"], evaluated["workers_most"]) == (26, 2, 3)
    with pytest.raises(UserError, match="give more --steps"):
        soak.figures(sampled(count=9))


def test_a_short_run_keeps_its_files_and_its_memory(capsys, monkeypatch):
    monkeypatch.setattr(soak, "EVERY_S", 0.2)
    assert soak.main(["--steps", "300", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["steps"] == 300 and found["samples"] >= 10 and found["steps_per_s"] > 0
    assert 100 < found["memory_first_mb"] < found["memory_most_mb"] + 1
    # A batch on its way from a worker is 4 files.
    assert abs(found["open_files_last"] - found["open_files_first"]) <= 4
    assert abs(found["growth_mb"]) < 20
