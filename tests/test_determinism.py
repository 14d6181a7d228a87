"""What the weights depend on, by the command: on the seeds, to the bit; not on the number of workers."""

import os

import pytest
import torch
from test_run import QUICK, call_main


@pytest.fixture
def final_weights(tmp_path, names_file, monkeypatch):
    """Trains with these flags; the bytes of the weights."""
    runs = []

    def train(*flags) -> bytes:
        runs.append(tmp_path / f"run{len(runs)}")
        data = ("--dataset", names_file, "--output_dir", runs[-1], "--learning_rate", "1e-3", "--warmup_steps", 1)
        assert call_main(monkeypatch, *QUICK, *data, "--use_cpu", *flags) == 0
        return (runs[-1] / "model.safetensors").read_bytes()

    return train


@pytest.fixture
def full_determinism_for_this_test_only():
    environment, cudnn = dict(os.environ), torch.backends.cudnn
    yield
    torch.use_deterministic_algorithms(False)
    cudnn.deterministic = False
    os.environ.clear()
    os.environ.update(environment)


def test_one_seed_gives_one_model_whatever_the_workers(final_weights):
    first = final_weights("--seed", 1, "--dataloader_num_workers", 0)
    for workers in (0, 3, 3):
        assert final_weights("--seed", 1, "--dataloader_num_workers", workers) == first


def test_another_seed_gives_another_model(final_weights):
    """``--seed`` alone moves initial weights and dropout, ``--data_seed`` alone the order and the masks."""
    seeds = [(1, 1), (2, 1), (1, 2), (2, 2)]
    models = [final_weights("--seed", seed, "--data_seed", data, "--dataloader_num_workers", 0) for seed, data in seeds]
    assert len(set(models)) == len(seeds)


def test_full_determinism_finds_nothing_to_refuse(final_weights, full_determinism_for_this_test_only):
    """Torch raises at an operation without a deterministic form; on a CPU it is the one that is taken anyway."""
    plain = final_weights("--seed", 1)
    assert final_weights("--seed", 1, "--full_determinism") == plain
    assert torch.are_deterministic_algorithms_enabled() and os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"
