"""W&B being away, or any reporter that fails: a run goes on without it, and says so once."""

import os
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import requests
from conftest import ROOT
from small_runs import make_trainer
from test_run import QUICK
from transformers import TrainerCallback

from domain_canine import reporting

KEY = "0123456789" * 4


@pytest.fixture
def login(monkeypatch, tmp_path):
    """A W&B login of this process, which is as before after the test."""
    before = dict(os.environ)
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        del os.environ[name]
    os.environ |= {"WANDB_API_KEY": KEY, "WANDB_CONFIG_DIR": str(tmp_path / "none")}
    monkeypatch.setattr(reporting, "PAUSES", (0, 0))
    yield
    os.environ.clear()
    os.environ |= before


def look_for_wandb(host=None, process_index=0) -> str:
    """Get ready for W&B at an address; the mode that it is in then."""
    if host:
        os.environ["WANDB_BASE_URL"] = host
    reporting._prepare_wandb(SimpleNamespace(project="mine", process_index=process_index))
    return os.environ.get("WANDB_MODE", "online")


@pytest.fixture
def installed(monkeypatch):
    monkeypatch.setattr(reporting.importlib.util, "find_spec", lambda name: name)


def test_a_wandb_that_is_away_is_logged_to_offline(login, installed, closed, serve, capsys):
    for server in (closed, serve(502, 503, 500).url):
        os.environ.pop("WANDB_MODE", None)
        assert look_for_wandb(server) == "offline"
        told = f"W&B: {server} is not reachable, logging offline\n"
        assert capsys.readouterr().err == told
    os.environ.pop("WANDB_MODE")
    # Without a login it is not looked for; and the user's own word holds.
    del os.environ["WANDB_API_KEY"]
    os.environ["NETRC"] = "/none"
    assert look_for_wandb(closed) == "offline" and "no login found" in capsys.readouterr().err
    os.environ |= {"WANDB_API_KEY": KEY, "WANDB_MODE": "disabled", "WANDB_INIT_TIMEOUT": "7"}
    assert look_for_wandb(closed) == "disabled" and os.environ["WANDB_INIT_TIMEOUT"] == "7"


def test_a_wandb_that_is_away_for_a_moment_is_looked_for_again(login, installed, serve, capsys):
    server = serve(503, 429)
    assert look_for_wandb(server.url) == "online" and len(server.requests) == 3
    assert look_for_wandb(serve(404, 404, 404).url) == "online"  # that is an answer
    # It is not waited for without end, neither at the beginning nor at the end.
    assert os.environ["WANDB_INIT_TIMEOUT"] == os.environ["WANDB_FINISH_TIMEOUT"] == "60"
    # The server of "wandb login --host"; the first process alone looks and speaks.
    folder = os.environ["WANDB_CONFIG_DIR"]
    os.makedirs(folder)
    del os.environ["WANDB_BASE_URL"]
    other = serve(503, 503, 503)
    with open(f"{folder}/settings", "w") as file:
        file.write(f"[default]\nbase_url = {other.url}\n")
    assert look_for_wandb(process_index=1) == "online" and not other.requests
    assert capsys.readouterr().err == ""
    assert look_for_wandb() == "offline" and len(other.requests) == 3


def test_a_wandb_that_never_answers_is_not_waited_for(login, installed, serve, monkeypatch):
    monkeypatch.setattr(reporting, "TIMEOUT", (0.2, 0.2))
    began = time.monotonic()
    assert look_for_wandb(serve(None, None, None).url) == "offline" and time.monotonic() - began < 5
    monkeypatch.undo()
    assert sum(reporting.PAUSES) + 3 * sum(reporting.TIMEOUT) < 60


class Reporter(TrainerCallback):
    def __init__(self):
        self.heard = []
        reporters.append(self)

    def on_log(self, *args, **kwargs):
        self.heard.append("log")

    on_train_end = on_log


class Broken(Reporter):
    def on_log(self, *args, **kwargs):
        self.heard.append("log")
        raise requests.ConnectionError("the server is gone\nwith a long story")

    on_train_end = on_log


reporters = []


def test_a_reporter_that_fails_is_told_of_once_and_left_out(tmp_path, monkeypatch, capsys):
    from transformers.integrations import integration_utils

    reporters.clear()
    for name, kind in (("mlflow", Broken), ("tensorboard", Reporter)):
        monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, name, kind)
    done = make_trainer(tmp_path, report_to=["mlflow", "tensorboard"])
    done.train()
    told = "warning: reporting to Broken failed: the server is gone; the run goes on without it\n"
    assert capsys.readouterr().err.count(told) == 1 and done.state.global_step == 10
    broken, other = reporters
    assert len(broken.heard) == 1 and len(other.heard) > 10
    # One process speaks for all.
    reporting.Unfailing(Broken()).on_log(None, SimpleNamespace(is_world_process_zero=False), None)
    assert capsys.readouterr().err == ""


def test_what_wandb_could_not_upload_is_told(monkeypatch, capsys):
    def finish():
        raise TimeoutError("timed out")

    reporting.finish()  # nothing was begun
    run = SimpleNamespace(dir="logs/wandb/run-0/files", offline=False)
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(run=run, finish=finish))
    reporting.finish()
    told = "W&B: the log is not all uploaded: timed out; 'wandb sync logs/wandb/run-0' does that later\n"
    assert capsys.readouterr().err == told


def test_a_run_outlives_a_wandb_that_refuses_the_key_or_goes_away(serve, tmp_path):
    """The real package: a key is refused; a server takes the run and then nothing more."""
    pytest.importorskip("wandb")
    started = []
    for name, server in (("refused", serve(refusal=401)), ("gone", serve(takes_logs=False))):
        command = [sys.executable, ROOT / "run_mlm_domains.py", *QUICK, "--use_cpu", "--dataset", "sample",
                   "--num_samples", 100, "--logging_steps", 1, "--use_wandb", "--output_dir", tmp_path / name]  # fmt: skip
        environment = os.environ | {
            "WANDB_BASE_URL": server.url, "WANDB_API_KEY": KEY, "WANDB_DIR": str(tmp_path), "HOME": str(tmp_path),
            "WANDB_FINISH_TIMEOUT": "1", "OMP_NUM_THREADS": "1",
        }  # fmt: skip
        process = subprocess.Popen(
            list(map(str, command)),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=ROOT,
            env=environment,
        )
        started.append((process, server))
    (refused, _), (gone, server) = started
    told = [process.communicate(timeout=120)[0] for process in (refused, gone)]
    assert refused.returncode == gone.returncode == 0, told
    assert told[0].count("reporting to Wandb failed: ") == 1 and "saved the best weights" in told[0], told[0]
    assert "saved the best weights" in told[1] and server.count("/file_stream") > 0
    assert told[1].count("W&B: the log is not all uploaded: ") == 1 and "Traceback" not in told[1], told[1]
