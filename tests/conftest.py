"""What every test shares: a small configuration, a fixed seed, a cache of its own, and no network."""

import os
import shutil
import signal
import socket

# Before any Hugging Face library is imported: a test that would download fails at once instead.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Before torch is: beside other work two threads wait for each other, and a test of 40 s took 9 minutes.
os.environ.setdefault("OMP_NUM_THREADS", "1")

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


@pytest.fixture(scope="session")
def short_run(tmp_path_factory):
    """A run of 12 steps by the command, resumed after its 5th, on names among which are some of no use; not to be changed."""
    import run_mlm_domains
    from domain_canine import errors
    from domain_canine.sample import sample_names
    from domain_canine.trainer import DomainTrainer

    folder = tmp_path_factory.mktemp("short")
    names = [*sample_names(300), *sample_names(7), "nodot", "not a name", "# said", ""]
    (folder / "names.txt").write_text("\n".join(names) + "\n")
    command = [
        "run", "--model_size", "tiny", "--config_overrides", "num_hidden_layers=1,hidden_size=32", "--dataset",
        folder / "names.txt", "--output_dir", folder / "run", "--epochs", 2, "--batch_size", 24, "--learning_rate", 5e-3,
        "--warmup_steps", 1, "--logging_steps", 1, "--save_steps", 5, "--use_cpu", "--dataloader_num_workers", 0,
    ]  # fmt: skip
    stopped = DomainTrainer._stopping
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DOMAIN_CANINE_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        patch.setattr("sys.argv", [str(each) for each in command])
        patch.setattr(DomainTrainer, "_stopping", lambda trainer: trainer.state.global_step == 5)
        with pytest.raises(errors.Stopped):
            run_mlm_domains.main()
        shutil.copytree(folder / "run", folder / "stopped")
        patch.setattr(DomainTrainer, "_stopping", stopped)
        patch.setattr("sys.argv", [*(str(each) for each in command), "--resume_from_checkpoint"])
        assert run_mlm_domains.main() == 0
    return folder / "run"


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
def at(monkeypatch):
    """Make an address the Hub's, for this process, with quick tries."""
    import huggingface_hub
    from huggingface_hub import constants

    from domain_canine import hub

    monkeypatch.setattr(hub, "PAUSES", (0, 0))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "_offline_by_us", False)

    def choose(url):
        monkeypatch.setattr(constants, "ENDPOINT", url)
        monkeypatch.setattr("transformers.utils.hub._hf_api", None)  # which keeps the address

    yield choose
    huggingface_hub.close_session()


@pytest.fixture
def closed():
    """An address where nobody listens."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{bound.getsockname()[1]}"
