"""The training command as people start it."""

import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from test_loading import ask_stranger

from domain_canine.errors import UserError

BIN = Path(sys.executable).parent
SECRET = "hf_thisIsNobodysToken"
QUICK = "--model_size tiny --epochs 1 --batch_size 32 --config_overrides num_hidden_layers=1,hidden_size=32".split()


def launch(*arguments, script="run_mlm_domains.py", **environment):
    return subprocess.run(
        [BIN / "accelerate", "launch", "--quiet", "--config_file", ROOT / "accelerate_configs" / "cpu.yaml", ROOT / script,
         *map(str, arguments)],
        # With the threads set, accelerate has no default to tell of.
        capture_output=True, text=True, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "2"} | environment,
    )  # fmt: skip


def launch_on_a_terminal(*arguments, **environment) -> str:
    """As launch, with a pseudo-terminal for all three streams; what was shown on it."""
    ours, theirs = pty.openpty()
    command = [sys.executable, ROOT / "run_mlm_domains.py", "--use_cpu", *map(str, arguments)]
    process = subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, cwd=ROOT, env=os.environ | environment
    )
    os.close(theirs)
    shown = b""
    try:
        while block := os.read(ours, 65536):
            shown += block
    except OSError:  # the other end is closed: Linux says so with EIO
        pass
    assert process.wait(timeout=120) == 0, shown.decode()
    os.close(ours)
    return shown.decode()


def call_main(monkeypatch, *arguments) -> int:
    import run_mlm_domains

    monkeypatch.setattr(sys, "argv", ["run_mlm_domains.py", *map(str, arguments)])
    return run_mlm_domains.main()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """One run by the launch command on 200 names, and what it said."""
    from domain_canine.sample import sample_names

    folder = tmp_path_factory.mktemp("trained")
    (folder / "names.txt").write_text("\n".join(sample_names(200)) + "\nbad name\n")
    done = launch(
        "--dataset", folder / "names.txt", "--output_dir", folder / "run", *QUICK, "--hub_token", SECRET
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder / "run", done


def test_a_run_says_what_it_does_and_leaves_a_model(trained):
    run, done = trained
    said = done.stderr
    assert done.stdout == ""
    for part in ("1e-05 suits a pretrained model", "the warm-up is as long as the run", "random weights (tiny)", "mask U+E003", "kept 200", "bad character 1", "'bad name'", "1 x cpu, fp32",
                 "32 names x 2 accumulated x 1 = 64 names a step", "under 1,000,000 names", "learning rate 1e-05",
                 "names/s", "perplexity", "bits per character", "saved the best weights"):  # fmt: skip
        assert part in said, (part, said)
    assert "Warning" not in said and "Traceback" not in said and "[transformers]" not in said
    names = {entry.name for entry in run.iterdir()}
    assert {"model.safetensors", "config.json", "tokenizer_config.json", "modeling_domain_canine.py",
            "tokenization_domain_canine.py", "configuration_domain_canine.py", "README.md"} <= names  # fmt: skip
    assert not any(name.endswith((".bin", ".pt")) for name in names)
    card = (run / "README.md").read_text()
    assert card.startswith("---\n") and "perplexity" in card and "fill-mask" in card


def test_every_folder_of_a_run_loads_where_the_package_is_not(trained, tmp_path):
    run, _ = trained
    folders = [run, *run.glob("checkpoint-*")]
    assert len(folders) == 2
    for folder in folders:
        told = ask_stranger(folder, tmp_path)
        assert told["masked"] == ["DomainCanineForMaskedLM", 0, 0] and told["stock"] == ["CanineModel", []]


def test_a_token_is_in_no_file_and_no_message(trained):
    run, done = trained
    assert SECRET not in done.stdout + done.stderr
    files = [path for path in run.rglob("*") if path.is_file()]
    assert len(files) > 15
    assert not [path for path in files if SECRET.encode() in path.read_bytes()]


def test_the_model_fills_in_a_process_of_its_own(trained):
    run, _ = trained
    done = subprocess.run(
        [sys.executable, "-m", "domain_canine", "fill", str(run), "exam?le.com", "fr[MASK][MASK].de", "--json"],
        capture_output=True, text=True, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    first, second = map(json.loads, done.stdout.splitlines())
    assert re.fullmatch(r"exam.le\.com", first["name"]) and len(second["steps"]) == 2


def test_a_folder_with_a_run_is_not_overwritten_but_resumed(trained, monkeypatch, capsys):
    run, _ = trained
    weights = (run / "model.safetensors").read_bytes()
    data = ("--dataset", run.parent / "names.txt", "--output_dir", run)
    with pytest.raises(UserError, match="holds an earlier run; add --resume_from_checkpoint"):
        call_main(monkeypatch, *data, *QUICK)
    assert (run / "model.safetensors").read_bytes() == weights
    resume = ("--epochs", 2, "--resume_from_checkpoint", "--use_cpu")
    # As another run it is not gone on with.
    with pytest.raises(UserError, match=r"(?s)started otherwise:\n  split_seed +0 -> 5\n.*--allow_changed_run"):
        call_main(monkeypatch, *data, *QUICK, *resume, "--split_seed", 5)
    with pytest.raises(UserError, match=r"names a step +64 -> 32\n"):
        call_main(monkeypatch, *data, *QUICK, *resume, "--batch_size", 16)
    # Nor with other names behind the same path.
    names = (run.parent / "names.txt").read_text()
    (run.parent / "names.txt").write_text(names + "another.com\n")
    with pytest.raises(UserError, match=r"(?s)started otherwise:\n  content of the names .* -> .*--allow_changed_run"):
        call_main(monkeypatch, *data, *QUICK, *resume)
    (run.parent / "names.txt").write_text(names)
    assert (run / "model.safetensors").read_bytes() == weights
    # The same batch in other shares is the same run, as are the same names by another path.
    shares = ("--batch_size", 16, "--gradient_accumulation_steps", 4)
    data = ("--dataset", run.parent / run.name / ".." / "names.txt", "--output_dir", run)
    assert call_main(monkeypatch, *data, *QUICK, *resume, *shares) == 0
    said = capsys.readouterr().err
    assert "epoch 2.00" in said and "stopping early" not in said, said
    weights, again = (run / "model.safetensors").read_bytes(), weights
    assert weights != again
    starts = json.loads((run / "run_arguments.json").read_text())
    assert [start["training"]["num_train_epochs"] for start in starts] == [1, 2]
    # And once more: the run has ended.
    assert call_main(monkeypatch, *data, *QUICK, *resume) == 0
    said = capsys.readouterr().err
    assert "this run had ended at step 6 (of 6): nothing to train" in said and "saved the best weights" in said
    assert (run / "model.safetensors").read_bytes() == weights and not (run / "checkpoint-7").exists()


@pytest.mark.parametrize("terminal", [False, True])
def test_wandb_offline_never_asks(tmp_path, names_file, terminal):
    """Without a login it logs offline, on a terminal too, where it could ask."""
    environment = {
        "WANDB_DIR": str(tmp_path),
        "HOME": str(tmp_path),
        "WANDB_API_KEY": "",
        "NETRC": str(tmp_path / "none"),
    }
    arguments = ["--dataset", names_file, "--output_dir", tmp_path / "run", *QUICK, "--logging_steps", 1]
    if terminal:
        said = launch_on_a_terminal(*arguments, "--report_to", "wandb", **environment)
    else:
        done = launch(*arguments, "--use_wandb", **environment)
        said = done.stderr
        assert done.returncode == 0, said
    assert "logging offline" in said and "saved the best weights" in said
    assert re.search(r"'wandb sync \S*/offline-run-\S+' uploads it", said)
    log = next((tmp_path / "wandb").glob("offline-run-*/run-*.wandb")).read_bytes()
    for key in (b"train/loss", b"train/perplexity", b"train/learning_rate", b"eval/loss", b"train/global_step"):
        assert key in log
    assert b"domain-canine-pretrain" in log


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--dataset", "{tmp}/missing.txt", "--model_size", "tiny"], "there is no file or folder"),
        (["--lerning_rate", "1"], "did you mean --learning_rate"),
    ],
)
@pytest.mark.parametrize("by", ["python", "accelerate"])
def test_a_mistake_is_one_message_without_a_traceback(tmp_path, arguments, told, by):
    arguments = [each.format(tmp=tmp_path) for each in arguments]
    if by == "python":
        command = [sys.executable, str(ROOT / "run_mlm_domains.py"), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == 2
    else:
        done = launch(*arguments)
        assert done.returncode != 0
    assert told in done.stderr and "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) <= 3, done.stderr


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--dataset", "sample", "--output_dir", "{foreign}"], "is not empty and not a run of this program"),
        (["--dataset", "sample", "--output_dir", "{foreign}/precious.txt"], "is a file"),
        (["--dataset", "sample", "--output_dir", "{foreign}/precious.txt/x"], "cannot be made"),
        (["--dataset", "sample", "--output_dir", "{tmp}/x", "--resume_from_checkpoint"], "there is no checkpoint in"),
        (["--dataset", "sample", "--output_dir", "{tmp}/x", "--resume_from", "{tmp}"], "is not a whole checkpoint"),
        (["--dataset", "sample", "--output_dir", "{tmp}/x", "--resume_from", "{tmp}/no"], "is no folder"),
        (["--dataset", "some/names", "--output_dir", "{tmp}/x"], "cannot load the data set"),
        (["--dataset", "{names}", "--push_to_hub", "--output_dir", "{tmp}/x"], "--push_to_hub: the Hub does not take"),
        (["--dataset", "{names}", "--report_to", "tensorboard", "--output_dir", "{tmp}/x"], "--report_to tensorboard"),
        (["--dataset", "{names}", "--report_to", "nothing", "--output_dir", "{tmp}/x"], "--report_to nothing"),
    ],
)
def test_mistakes_overwrite_nothing(tmp_path, names_file, monkeypatch, arguments, told):
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "precious.txt").write_text("mine")
    arguments = [each.format(tmp=tmp_path, foreign=foreign, names=names_file) for each in arguments]
    with pytest.raises(UserError, match=told):
        call_main(monkeypatch, "--model_size", "tiny", *arguments)
    assert [entry.name for entry in foreign.iterdir()] == ["precious.txt"]
    assert (foreign / "precious.txt").read_text() == "mine"
    if "--push_to_hub" not in arguments:  # the last thing that can fail
        assert not (tmp_path / "x").exists()


def test_a_stock_checkpoint_is_continued(tmp_path, names_file, monkeypatch, capsys):
    from conftest import SMALL
    from transformers import CanineConfig, CanineModel

    CanineModel(CanineConfig(**SMALL)).save_pretrained(tmp_path / "canine-c")
    capsys.readouterr()
    status = call_main(
        monkeypatch, "--model_name_or_path", tmp_path / "canine-c", "--dataset", names_file, "--output_dir",
        tmp_path / "run", "--epochs", 1, "--batch_size", 64, "--use_cpu",
    )  # fmt: skip
    assert status == 0
    said = capsys.readouterr().err
    assert "canine-c" in said and "LOAD REPORT" not in said and "bos_token_id" not in said
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (config["model_type"], config["mask_code_point"], config["vocab_size"]) == ("canine", 0xE003, 128)


def test_streaming_runs_by_the_command(tmp_path, names_file, monkeypatch, capsys):
    status = call_main(
        monkeypatch, *QUICK, "--dataset", names_file, "--streaming", "--max_steps", 4, "--save_steps", 2, "--output_dir",
        tmp_path / "run", "--use_cpu",
    )  # fmt: skip
    assert status == 0 and (tmp_path / "run" / "model.safetensors").is_file()
    assert "at the head of the stream, 200 lines read: valid 200" in capsys.readouterr().err
