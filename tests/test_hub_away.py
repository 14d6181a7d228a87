"""The Hub being away: a run goes on without it, and says so once; what it refuses is a mistake at the start."""

import json
import signal
import time
from types import SimpleNamespace

import huggingface_hub
import pytest
from huggingface_hub import constants
from services import SITE
from test_processes import Launch, finish
from test_run import QUICK, call_main

from domain_canine import hub, run_folder, sharing
from domain_canine.errors import Stopped, UserError
from domain_canine.trainer import DomainTrainer


def push(monkeypatch, folder, *flags):
    """A short run that uploads."""
    flags = "--dataset", "sample", "--num_samples", 100, "--use_cpu", "--push_to_hub", "--output_dir", folder, *flags
    return call_main(monkeypatch, *QUICK, *flags)


def test_a_hub_that_is_away_for_a_moment_is_tried_again(serve, at, monkeypatch, tmp_path, capsys):
    server = serve(503, 429)
    at(server.url)
    assert push(monkeypatch, tmp_path / "names", "--hub_model_id", "someone/names") == 0
    said = capsys.readouterr().err
    assert "not reachable" not in said and said.endswith(f"{SITE}/commit/0\n")
    assert server.count("/create") == server.count("/commit/") == 1


def test_a_run_without_a_hub_ends_well_and_says_what_to_do(closed, at, monkeypatch, tmp_path, capsys):
    at(closed)
    assert push(monkeypatch, tmp_path / "names", "--hub_model_id", "someone/names") == 0
    said = capsys.readouterr().err
    assert said.count("the run starts, and the upload is tried at its end") == 1
    folder = tmp_path / "names"
    told = f"The model is safe in {folder}; upload it later: python -m domain_canine export hub {folder} --repo_id "
    told += "someone/names\n"
    assert said.count(told) == 1 and said.count("is not reachable") == 2
    assert (folder / "model.safetensors").is_file()
    assert json.loads((folder / "last_exit.json").read_text())["status"] == "finished"


def test_a_hub_that_comes_back_gets_the_model_and_a_card_with_its_name(serve, at, monkeypatch, tmp_path, capsys):
    server = serve(503, 500, 502)
    at(server.url)
    assert push(monkeypatch, tmp_path / "mine") == 0
    said = capsys.readouterr().err
    assert said.count("is not reachable") == 1 and said.endswith(f"{SITE}/commit/0\n")
    assert server.count("/create") == server.count("/commit/") == 1
    assert 'model="someone/names"' in (tmp_path / "mine" / "README.md").read_text()


def test_a_repository_that_is_public_already_is_not_filled(serve, at, monkeypatch, tmp_path):
    server = serve(private=False)
    at(server.url)
    with pytest.raises(UserError, match="^'someone/names' is there already, and public.*--no_hub_private_repo"):
        push(monkeypatch, tmp_path / "names", "--hub_model_id", "someone/names")
    assert not server.uploaded() and not (tmp_path / "names" / "model.safetensors").exists()
    assert push(monkeypatch, tmp_path / "open", "--hub_model_id", "someone/names", "--no_hub_private_repo") == 0
    assert server.uploaded()


@pytest.mark.parametrize("status", [400, 401, 403, 404])
def test_what_the_hub_refuses_is_a_mistake_before_the_first_step(serve, at, monkeypatch, tmp_path, status):
    server = serve(refusal=status)
    at(server.url)
    with pytest.raises(UserError, match="the Hub does not take a repository from here"):
        push(monkeypatch, tmp_path / "names")
    assert server.count("/create") == 1 and not list(tmp_path.glob("names/checkpoint-*"))


def test_a_name_that_is_none_is_a_mistake_with_the_hub_away_too(closed, at, monkeypatch, tmp_path):
    at(closed)
    with pytest.raises(UserError, match="the Hub does not take a repository from here: .*a/b/c"):
        push(monkeypatch, tmp_path / "names", "--hub_model_id", "a/b/c")


@pytest.mark.parametrize("answered", [[], [200]])
def test_a_hub_that_never_answers_is_not_waited_for(serve, at, monkeypatch, answered):
    """Neither when it is looked for nor when a repository is made: the client itself has no time-out."""
    monkeypatch.setattr(hub, "TIMEOUT", 0.2)
    monkeypatch.setattr(hub, "STALL", 0.2)
    server = serve(*[*answered, None] * 3)
    at(server.url)
    began = time.monotonic()
    with pytest.raises(hub.Away):
        hub.insist(lambda: huggingface_hub.HfApi().create_repo("names"))
    assert time.monotonic() - began < 5 and len(server.requests) == 3 * (1 + len(answered))


def test_the_network_is_tried_again_though_it_was_missing_before(serve, closed, at):
    """Unlike for the user's own HF_HUB_OFFLINE."""
    at(closed)
    hub.use_cache_if_unreachable.cache_clear()
    hub.use_cache_if_unreachable()
    assert constants.HF_HUB_OFFLINE
    at(serve().url)
    assert hub.insist(lambda: huggingface_hub.HfApi().create_repo("names")).repo_id == "someone/names"
    assert constants.HF_HUB_OFFLINE  # for those who can do without
    hub._offline_by_us = False
    with pytest.raises(huggingface_hub.errors.OfflineModeIsEnabled):
        hub.insist(lambda: None)


class Answered(hub.ClientError):
    """The Hub's answer was an error."""

    def __init__(self, status):
        super().__init__(str(status))
        self.response = SimpleNamespace(status_code=status)


@pytest.mark.parametrize(
    ("error", "expected", "tries"),
    [
        (PermissionError("x"), PermissionError, 1),
        (ValueError("x"), ValueError, 1),
        (RuntimeError("of hf_xet"), hub.Away, 3),
        (hub.ClientError("x"), hub.Away, 3),
        (ConnectionResetError("x"), hub.Away, 3),
        *((Answered(status), hub.Away, 3) for status in (429, 500, 502, 503, 504)),
        *((Answered(status), Answered, 1) for status in (400, 401, 403, 404, 409, 413)),
    ],
)
def test_which_errors_pass(serve, at, error, expected, tries):
    at(serve().url)
    calls = []

    def call():
        calls.append(0)
        raise error

    with pytest.raises(expected):
        hub.insist(call)
    assert len(calls) == tries


def test_a_signal_is_no_refusal(monkeypatch, tmp_path):
    def stop(call):
        raise Stopped(signal.SIGTERM, "stopped")

    monkeypatch.setattr(hub, "insist", stop)
    args = SimpleNamespace(hub_model_id="a/b", output_dir=str(tmp_path), hub_private_repo=True, push_to_hub=True)
    with pytest.raises(Stopped):
        sharing.create_repository(args, None)
    with pytest.raises(Stopped):
        sharing.push_to_hub(SimpleNamespace(args=args, hub_model_id="a/b"), None)


def test_a_refusal_ends_a_process_that_did_not_ask(monkeypatch):
    def tell(outcome):
        outcome[1] = "refused"

    monkeypatch.setattr(run_folder, "broadcast_object_list", tell)
    with pytest.raises(UserError, match="refused"):
        other = SimpleNamespace(args=SimpleNamespace(process_index=1, world_size=2), make_repository=None)
        DomainTrainer.init_hf_repo(other)


def test_of_two_processes_the_first_asks_and_none_is_left(serve, tmp_path):
    server = serve(refusal=403)
    launch = Launch(
        "multi_cpu", tmp_path / "two", (8, 4), "--push_to_hub", launcher="--main_process_port 0", HF_ENDPOINT=server.url,
        HF_HUB_OFFLINE="0",
    )  # fmt: skip
    with pytest.raises(AssertionError):
        finish(launch)
    said = launch.err.read_text()
    assert launch.process.returncode == 1
    assert said.count("Traceback") == 1 and 'run_mlm_domains.py", line' not in said, said  # of the launcher alone
    assert said.count("error: --push_to_hub: the Hub does not take a repository") == server.count("/create") == 1
