"""What every test shares: a small configuration, a fixed seed, a cache of its own, and no network."""

import os
import signal
import socket

# Before any Hugging Face library is imported: a test that would download fails at once instead.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from pathlib import Path

import hypothesis
import pytest
import torch

from domain_canine import DomainCanineConfig, DomainCanineForMaskedLM
from domain_canine.pretrained import build_tokenizer

# The first example of a test pays for imports, and machines differ.
hypothesis.settings.register_profile("project", deadline=None)
hypothesis.settings.load_profile("project")

ROOT = Path(__file__).resolve().parent.parent
SMALL = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "num_hash_buckets": 512,
    # Ten times the usual: differences that the usual 0.02 would hide show up.
    "initializer_range": 0.2,
}


def equal(one: dict, other: dict) -> bool:
    """Whether two batches are the same, to the bit."""
    return one.keys() == other.keys() and all(
        torch.equal(value, other[name]) if torch.is_tensor(value) else value == other[name]
        for name, value in one.items()
    )


def pytest_collection_modifyitems(config, items):
    asked = config.getoption("-m")
    for item in items:
        if "slow" in item.keywords and "slow" not in asked:
            item.add_marker(pytest.mark.skip(reason="takes minutes; run with -m slow"))
        if "gpu" in item.keywords and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs CUDA"))


@pytest.fixture(autouse=True, scope="session")
def _signals_as_usual():
    """A shell that starts the tests in the background, or by nohup, has these ignored, and so would every process here."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGHUP)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch):
    """The runs of one test may write a hundred checkpoints, and a busy disk takes a second to flush one."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture(autouse=True)
def _fixed_seed_and_own_cache(tmp_path_factory, monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setenv("DOMAIN_CANINE_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture
def config() -> DomainCanineConfig:
    return DomainCanineConfig(**SMALL)


@pytest.fixture
def model(config) -> DomainCanineForMaskedLM:
    return DomainCanineForMaskedLM(config).eval()


@pytest.fixture
def tokenizer(model):
    return build_tokenizer(model, 128)


@pytest.fixture
def names_file(tmp_path) -> Path:
    """200 different valid names."""
    from domain_canine.sample import sample_names

    path = tmp_path / "names.txt"
    path.write_text("\n".join(sample_names(200)) + "\n")
    return path


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Two epochs of 5 steps with dropout, never stopped."""
    from small_runs import make_trainer

    trainer = make_trainer(tmp_path_factory.mktemp("finished"), save_steps=3)
    trainer.train()
    return trainer


@pytest.fixture
def told_losses(monkeypatch):
    """Make evaluations report these losses, one after the other."""

    from domain_canine.metrics import figures

    def tell(*losses):
        told = iter(losses)
        monkeypatch.setattr("domain_canine.metrics.figures", lambda sums: figures(sums) | {"loss": next(told)})

    return tell


@pytest.fixture
def serve():
    """Start servers; they end with the test."""
    from services import Server

    started = []

    def start(*statuses, **options):
        started.append(Server(*statuses, **options))
        return started[-1]

    yield start
    for server in started:
        server.close()


@pytest.fixture
def closed():
    """An address where nobody listens."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{bound.getsockname()[1]}"
