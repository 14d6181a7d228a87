"""Secrets stay out of what a run leaves and says; what others have made is read, never run."""

import json
import os
import pathlib
import pickle
import shutil
import subprocess
import sys
from contextlib import suppress
from types import SimpleNamespace

import pytest
import torch
from accelerate.utils import fsdp_utils
from conftest import ROOT
from small_runs import make_trainer
from test_run import QUICK
from torch.distributed.fsdp import StateDictType

from domain_canine import checkpoints, cli, reporting
from domain_canine.arguments import ModelArguments
from domain_canine.configuration_domain_canine import AUTO_MAP
from domain_canine.errors import UserError
from domain_canine.pretrained import build_model, load_model

SECRETS = {"HF_TOKEN": "hf_ofTheEnvironment", "WANDB_API_KEY": "key0" * 10, "--hub_token": "hf_ofTheCommandLine"}


# ---- secrets


def test_a_secret_is_in_no_file_no_message_and_no_upload(tmp_path, names_file, serve):
    """Of the command, with W&B where it is installed: it keeps the command line, and the Trainer's arguments."""
    server = serve()
    command = [
        sys.executable, ROOT / "run_mlm_domains.py", *QUICK, "--use_cpu", "--dataset", names_file, "--output_dir",
        tmp_path / "run", "--save_steps", 1, "--logging_steps", 1, "--push_to_hub",
        "--hub_token", SECRETS["--hub_token"],
    ]  # fmt: skip
    environment = os.environ | {name: value for name, value in SECRETS.items() if name.isupper()}
    environment |= {
        "HF_HUB_OFFLINE": "0", "HF_ENDPOINT": server.url, "HF_HOME": str(tmp_path / "hf"), "HOME": str(tmp_path / "home"),
        "WANDB_DIR": str(tmp_path), "WANDB_MODE": "offline", "DOMAIN_CANINE_CACHE": str(tmp_path / "cache"),
    }  # fmt: skip
    try:
        import wandb  # noqa: F401

        command.append("--use_wandb")
    except ImportError:
        pass
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stderr
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    names = {path.name for path in files}
    assert {"run_arguments.json", "last_exit.json", ".lock.json", "trainer_state.json", "README.md"} <= names
    kept = b"".join(path.read_bytes() for path in files if path.suffix == ".wandb")
    assert b"--save_steps" in kept or "--use_wandb" not in command
    sent = [body for _, _, body in server.requests]
    assert any(b"model.safetensors" in body for body in sent)
    for secret in SECRETS.values():
        assert secret not in done.stdout + done.stderr
        assert not [path for path in files if secret.encode() in path.read_bytes()], secret
        assert not [body for body in sent if secret.encode() in body], secret


def test_a_token_leaves_the_command_line_in_any_form(monkeypatch):
    command = ["run.py", "--hub_token=hf_x", "--hub_token", "hf_x", "--epochs", "1"]
    monkeypatch.setattr(sys, "argv", command)
    reporting.prepare(SimpleNamespace(hub_token="hf_x", report_to=[]))
    assert sys.argv == ["run.py", "--hub_token=<HUB_TOKEN>", "--hub_token", "<HUB_TOKEN>", "--epochs", "1"]


# ---- code of others


class Payload:
    """When it is unpickled it makes a file."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return pathlib.Path.touch, (self.marker,)


WAYS = {
    "zip": torch.save,
    "legacy": lambda what, path: torch.save(what, path, _use_new_zipfile_serialization=False),
    "plain": lambda what, path: path.write_bytes(pickle.dumps(what, protocol=2)),
}


@pytest.fixture
def marker(tmp_path):
    """What code of others would make: never there when the test is over."""
    path = tmp_path / "it ran"
    yield path
    assert not path.exists()


def test_a_payload_is_one(tmp_path):
    for number, (way, save) in enumerate(WAYS.items()):
        path = tmp_path / str(number)
        save({"x": Payload(tmp_path / way)}, path)
        with suppress(RuntimeError):  # by then it has run
            torch.load(path, weights_only=False)
        assert (tmp_path / way).exists()


def test_code_beside_a_checkpoint_never_runs_and_is_not_passed_on(tmp_path, model, marker, capsys):
    """We use our own classes, whatever a folder asks for; so no flag is there that would allow more."""
    evil = f"import pathlib\npathlib.Path({str(marker)!r}).touch()\n"
    folder = tmp_path / "theirs"
    model.save_pretrained(folder)
    told = json.loads((folder / "config.json").read_text())
    told["auto_map"] = {name: f"evil.{name}" for name in ("AutoConfig", "AutoModelForMaskedLM", "AutoTokenizer")}
    # Attention from the Hub would be code, too.
    told |= {"attn_implementation": "someone/evil", "_attn_implementation": "someone/evil"}
    (folder / "config.json").write_text(json.dumps(told))
    tokenizer = {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.Evil", None]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    for name in ("evil", *(path.stem for path in (ROOT / "domain_canine").glob("*_domain_canine.py"))):
        (folder / f"{name}.py").write_text(evil)
    built = build_model(ModelArguments(model_name_or_path=str(folder)))
    assert cli.main(["fill", str(folder), "exam?le.com"]) == 0 and "exam" in capsys.readouterr().out
    assert built.config._attn_implementation == "sdpa"
    built.save_pretrained(tmp_path / "ours")
    assert json.loads((tmp_path / "ours" / "config.json").read_text())["auto_map"] == AUTO_MAP
    assert not [path for path in (tmp_path / "ours").glob("*.py") if evil in path.read_text()]


@pytest.mark.parametrize("way", WAYS)
def test_pickled_weights_never_run(tmp_path, model, marker, way):
    folder = tmp_path / "theirs"
    model.save_pretrained(folder)
    (folder / "model.safetensors").unlink()
    WAYS[way](model.state_dict() | {"x": Payload(marker)}, folder / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"theirs' are pickled \(pytorch_model.bin\) with more than tensors"):
        load_model(str(folder))


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A checkpoint in mid-run."""
    folder = tmp_path_factory.mktemp("stopped")
    make_trainer(folder, max_steps=2, save_steps=2, eval_strategy="no").train()
    return folder / "checkpoint-2"


@pytest.mark.parametrize(
    "name", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "scaler.pt", "pytorch_model.bin", "training_args.bin"]
)
def test_a_pickled_part_of_a_checkpoint_never_runs(tmp_path, stopped, marker, name):
    """Even if its digests are right."""
    checkpoint = tmp_path / "run" / "checkpoint-2"
    shutil.copytree(stopped, checkpoint)
    if name == "pytorch_model.bin":
        (checkpoint / "model.safetensors").unlink()
    torch.save({"x": Payload(marker)}, checkpoint / name)
    (checkpoint / checkpoints.MANIFEST).unlink()
    checkpoints.seal(checkpoint)
    assert checkpoints.to_resume_from(checkpoint.parent, "newest") == str(checkpoint)
    trainer = make_trainer(checkpoint.parent, max_steps=3, eval_strategy="no")
    if name == "training_args.bin":  # nobody's concern
        trainer.train(resume_from_checkpoint=str(checkpoint))
        return
    if name == "scaler.pt":  # as on a GPU, in fp16
        trainer.accelerator.scaler = torch.amp.GradScaler("cpu")
    with pytest.raises(UserError, match=f"{name} of '.*checkpoint-2' is pickled with more than tensors"):
        trainer.train(resume_from_checkpoint=str(checkpoint))
    assert trainer.state.global_step in (0, 2)


def test_a_run_in_fp16_goes_on_in_fp32(tmp_path, stopped):
    """Its checkpoints have a scale that nobody wants then."""
    checkpoint = tmp_path / "run" / "checkpoint-2"
    shutil.copytree(stopped, checkpoint)
    torch.save(torch.amp.GradScaler("cpu").state_dict(), checkpoint / "scaler.pt")
    trainer = make_trainer(checkpoint.parent, max_steps=3, eval_strategy="no")
    trainer.train(resume_from_checkpoint=str(checkpoint))
    assert trainer.state.global_step == 3


@pytest.mark.parametrize("name", ["pytorch_model_fsdp.bin", "optimizer.bin"])
def test_a_pickled_part_of_a_checkpoint_by_fsdp_never_runs(tmp_path, marker, name):
    """By the calls that the Trainer makes, as the first of its processes."""
    torch.save({"x": Payload(marker)}, tmp_path / name)
    plugin = SimpleNamespace(
        state_dict_type=StateDictType.FULL_STATE_DICT, fsdp_version=2, state_dict_config=SimpleNamespace(),
        optim_state_dict_config=SimpleNamespace(rank0_only=True), cpu_offload=None,
    )  # fmt: skip
    accelerator = SimpleNamespace(
        wait_for_everyone=lambda: None, num_processes=2, process_index=0, is_fsdp2=True, is_main_process=True
    )
    with pytest.raises(pickle.UnpicklingError):
        if name == "optimizer.bin":
            fsdp_utils.load_fsdp_optimizer(plugin, accelerator, None, None, tmp_path)
        else:
            fsdp_utils.load_fsdp_model(plugin, accelerator, None, tmp_path)
    assert checkpoints.pickled_code(tmp_path) == name
