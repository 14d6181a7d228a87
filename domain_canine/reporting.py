"""Reporting to Weights & Biases and others: none of them ends a run, keeps it waiting for long, or learns a token."""

import configparser
import importlib.util
import os
import sys
import time
from contextlib import suppress
from pathlib import Path

import requests
from requests.utils import get_netrc_auth
from transformers import TrainerCallback
from transformers.integrations import get_reporting_integration_callbacks

from .errors import UserError, first_line
from .hub import PASSING

PAUSES = (1, 3)  # seconds between three looks for W&B; with the time-outs 49 at most
TIMEOUT = (5, 10)  # seconds to connect, and for the answer
# Seconds for the beginning and the end of W&B's run. Of its own it waits 90, and until everything is uploaded.
WANDB = {"INIT_TIMEOUT": "60", "FINISH_TIMEOUT": "60", "FINISH_TIMEOUT_RAISES": "true", "SILENT": "true"}


def prepare(args) -> None:
    """Get what ``--report_to`` names ready; W&B without a prompt, and offline where it is away.

    Raises:
        UserError: it is not installed.
    """
    if args.hub_token:
        # W&B and others keep the command line.
        sys.argv[:] = [each.replace(args.hub_token, "<HUB_TOKEN>") for each in sys.argv]
    if "wandb" in args.report_to:
        _prepare_wandb(args)
    try:
        for callback in get_reporting_integration_callbacks(args.report_to):
            callback()
    except (ImportError, RuntimeError, ValueError) as error:
        raise UserError(f"--report_to {' '.join(args.report_to)}: {first_line(error)}") from error


def _prepare_wandb(args):
    if importlib.util.find_spec("wandb") is None:
        raise UserError("--use_wandb needs the package wandb: pip install wandb")
    for name, value in {"PROJECT": args.project, **WANDB}.items():
        os.environ.setdefault(f"WANDB_{name}", value)
    if args.process_index or os.environ.get("WANDB_MODE", "online") != "online":
        return
    # Found out without importing wandb, which reads its mode then and asks for a key later.
    host = _wandb_host()
    keys = ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE")
    if not any(map(os.environ.get, keys)) and get_netrc_auth(host) is None:
        lacks = "no login found"
    elif not _reachable(host):
        lacks = f"{host} is not reachable"
    else:
        return
    os.environ["WANDB_MODE"] = "offline"
    print(f"W&B: {lacks}, logging offline", file=sys.stderr)


def _wandb_host():
    """The server: a variable, else what ``wandb login --host`` has kept, else the public one."""
    kept = configparser.RawConfigParser()
    folder = os.environ.get("WANDB_CONFIG_DIR") or Path.home() / ".config" / "wandb"
    kept.read(Path(folder) / "settings")
    public = kept.get("default", "base_url", fallback="https://api.wandb.ai")
    return os.environ.get("WANDB_BASE_URL") or public


def _reachable(host):
    for pause in (0, *PAUSES):
        time.sleep(pause)
        with suppress(requests.RequestException):
            if requests.head(host, timeout=TIMEOUT).status_code not in PASSING:
                return True
    return False


class Unfailing(TrainerCallback):
    """A reporter; when it fails, that is told, and it is left out."""

    def __init__(self, reporter: TrainerCallback):
        self.reporter = reporter


def _event(name):
    def call(self, args, state, control, **kwargs):
        if self.reporter is None:
            return
        try:
            getattr(self.reporter, name)(args, state, control, **kwargs)
        except Exception as error:  # of any library, over any network
            what = type(self.reporter).__name__.removesuffix("Callback")
            self.reporter = None
            if state.is_world_process_zero:
                told = f"warning: reporting to {what} failed: {first_line(error)}; the run goes on without it"
                print(told, file=sys.stderr)

    return call


for _name in dir(TrainerCallback):
    if _name.startswith("on_"):
        setattr(Unfailing, _name, _event(_name))


def make_unfailing(trainer) -> None:
    """Put the Trainer's reporters into ``Unfailing``."""
    kinds, handler = tuple(get_reporting_integration_callbacks(trainer.args.report_to)), trainer.callback_handler
    handler.callbacks = [Unfailing(each) if isinstance(each, kinds) else each for each in handler.callbacks]


def finish() -> None:
    """End W&B's run, if there is one; what it could not upload in time is told."""
    wandb = sys.modules.get("wandb")
    if wandb is None or wandb.run is None:
        return
    folder = Path(wandb.run.dir).parent
    if wandb.run.offline:
        print(f"W&B: logged offline; 'wandb sync {folder}' uploads it", file=sys.stderr)
    try:
        wandb.finish()
    except Exception as error:  # a time-out, or anything else of its service
        told = f"W&B: the log is not all uploaded: {first_line(error)}; 'wandb sync {folder}' does that later"
        print(told, file=sys.stderr)
