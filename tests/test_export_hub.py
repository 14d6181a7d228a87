"""``export hub``: what of a folder goes up, and what never; whose it is, and what is said where it cannot."""

import json
import shutil

import pytest
from conftest import SMALL
from services import SITE
from test_hub_away import push

from domain_canine import DomainCanineConfig, DomainCanineForSequenceClassification, checkpoints, cli
from domain_canine.errors import UserError

# Of a run that has ended: the model, what says how good it is, and the card.
MODEL = {
    "config.json", "model.safetensors", "added_tokens.json", "tokenizer_config.json", "completion_domain_canine.py",
    "configuration_domain_canine.py", "embedding_domain_canine.py",
    "fused_attention_domain_canine.py", "fused_domain_canine.py", "fused_layer_domain_canine.py",
    "fused_projection_domain_canine.py", "kernels_domain_canine.py", "layers_domain_canine.py",
    "modeling_domain_canine.py", "molecules_domain_canine.py", "normalization_domain_canine.py",
    "pipeline_domain_canine.py", "scoring_domain_canine.py", "tokenization_domain_canine.py",
}  # fmt: skip
OURS = MODEL | {"README.md", "curves.png", "eval_results.json", "trainer_state.json"}
TOKEN = "hf_ofTheEnvironment"


def export(folder, *flags, name="someone/names"):
    return cli.main(["export", "hub", str(folder), "--repo_id", name, *flags])


def made_private(server) -> bool:
    """Whether a private repository was asked for, in the words of older and newer clients."""
    [body] = [body for _, path, body in server.requests if path.endswith("/create")]
    told = json.loads(body)
    return told.get("private") is True or told.get("visibility") == "private"


@pytest.fixture
def run(short_run, tmp_path):
    """A run's folder, to be changed, with all that must stay at home."""
    run = shutil.copytree(short_run, tmp_path / "run")
    for name in ("not_finite-3.txt", "report.html", "training_args.bin", "optimizer.pt", ".hidden", "names.txt",
                 "labelled.csv.gz", "train.log", "runs/x/events.out.tfevents.1", "run-0/checkpoint-5/training_args.bin",
                 "old/config.json", "old/run_arguments.json", "onnx/.env", "lora/names.csv"):  # fmt: skip
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text("stays at home")
    return run


def test_a_finished_run_goes_up_privately_and_nothing_else_of_it(run, short_run, serve, at, monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    server = serve()
    at(server.url)
    assert {"checkpoint-6", "run_arguments.json", "last_exit.json", ".lock", ".lock.json"} <= {
        entry.name for entry in run.iterdir()
    }
    assert export(run) == 0
    out, said = capsys.readouterr()
    assert made_private(server) and out == f"{SITE}/commit/0\n"
    files = server.uploaded()
    assert files.keys() == OURS
    assert all(files[name] == (run / name).read_bytes() for name in OURS)
    assert b'model="someone/names"' in files["README.md"]
    assert f"to the private repository someone/names: {', '.join(sorted(OURS))}" in said
    assert TOKEN not in said and not [body for _, _, body in server.requests if TOKEN.encode() in body]
    # What is of the machine is in none of them; the run was made in another folder than the one that goes up.
    assert str(short_run).encode() in (run / "run_arguments.json").read_bytes()
    here = {str(short_run).encode(), str(run).encode()}
    assert not [name for name, content in files.items() for folder in here if folder in content]


def test_push_to_hub_sends_the_same_files(serve, at, monkeypatch, tmp_path):
    server = serve()
    at(server.url)
    push(monkeypatch, tmp_path / "names", "--hub_model_id", "someone/names", "--logging_steps", 1)
    assert server.uploaded().keys() == OURS


def test_a_checkpoint_goes_up_without_what_only_a_resume_wants(short_run, tmp_path, serve, at):
    server = serve()
    at(server.url)
    stopped = shutil.copytree(short_run.parent / "stopped", tmp_path / "stopped")
    with pytest.raises(UserError, match=r"has not ended.*upload .*stopped/checkpoint-5'"):
        export(stopped)
    (stopped / "model.safetensors").write_bytes((stopped / "checkpoint-5" / "model.safetensors").read_bytes())
    with pytest.raises(UserError, match="has not ended"):  # they are of an earlier end
        export(stopped)
    assert not server.requests
    assert export(stopped / "checkpoint-5") == 0
    files = server.uploaded()
    assert files.keys() == OURS - {"eval_results.json"}
    lines = files["README.md"].decode()
    assert "| steps | 5 |" in lines and "## Evaluation" not in lines  # there was none at this step
    # It is as whole as it was, and its card does not come into the run's folder.
    assert checkpoints.damage(stopped / "checkpoint-5", digests=True) is None
    (stopped / "checkpoint-5" / "report.html").write_text("of the checkpoint")
    (tmp_path / "copy").mkdir()
    checkpoints.copy_model(stopped / "checkpoint-5", tmp_path / "copy")
    assert {path.name for path in (tmp_path / "copy").iterdir()} == MODEL


def test_a_classifier_goes_up_with_a_card_of_its_own_task(tmp_path, serve, at):
    server = serve()
    at(server.url)
    DomainCanineForSequenceClassification(DomainCanineConfig(**SMALL)).save_pretrained(tmp_path / "classifier")
    (tmp_path / "classifier" / "onnx").mkdir()
    (tmp_path / "classifier" / "onnx" / "model.onnx").write_text("onnx")
    assert export(tmp_path / "classifier", "--public") == 0
    assert not made_private(server)
    files = server.uploaded()
    assert {"model.safetensors", "README.md", "onnx/model.onnx"} <= files.keys()
    assert b"pipeline_tag: text-classification" in files["README.md"]
    assert b'pipeline("text-classification", model="someone/names"' in files["README.md"]


def test_a_card_of_ones_own_goes_up_as_it_is(run, serve, at):
    server = serve()
    at(server.url)
    (run / "README.md").write_text("# Mine\n")
    assert export(run) == 0 and server.uploaded()["README.md"] == b"# Mine\n"
    # The client has the Hub look at it before.
    (run / "README.md").write_text("---\nlicense: mine\n---\n# Mine\n")
    with pytest.raises(UserError, match=r"(?s)Invalid metadata in README.md.*license.*and README.md"):
        export(run)


def test_what_is_public_already_is_not_filled_without_a_word(run, serve, at):
    server = serve(private=False)
    at(server.url)
    with pytest.raises(UserError, match=r"'someone/names' is there already, and public: add --public"):
        export(run)
    assert not server.uploaded()
    assert export(run, "--public") == 0 and server.uploaded()


@pytest.mark.parametrize("status", [401, 403])
def test_what_the_hub_refuses_is_one_message(run, serve, at, status):
    server = serve(refusal=status)
    at(server.url)
    with pytest.raises(UserError, match=r"(?s)does not take .*Log in with 'hf auth login' or HF_TOKEN") as told:
        export(run)
    assert f"python -m domain_canine export hub {run} --repo_id someone/names" in str(told.value)
    assert not server.uploaded()


def test_a_hub_that_is_away_is_one_message_with_the_command_for_later(run, closed, at):
    at(closed)
    card = (run / "README.md").read_bytes()
    with pytest.raises(UserError, match=r"not reachable .*nothing is uploaded") as told:
        export(run, "--public")
    assert (run / "README.md").read_bytes() == card  # whose code would name a repository that is not there
    later = f"Later: python -m domain_canine export hub {run} --repo_id someone/names --public"
    assert str(told.value).endswith(later)


@pytest.mark.parametrize(
    ("folder", "name", "told"),
    [
        ("missing", "a/b", "there is no folder"),
        ("empty", "a/b", "holds no weights of a model"),
        ("run", "a/b/c", "--repo_id 'a/b/c' is no name of a repository; write owner/name"),
        ("run", "a b", "--repo_id 'a b' is no name"),
        ("weights", "a/b", "holds no model"),
    ],
)
def test_a_mistake_is_told_before_the_hub_is_asked(run, tmp_path, serve, at, folder, name, told):
    server = serve()
    at(server.url)
    (tmp_path / "empty").mkdir()
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "model.safetensors").write_bytes((run / "model.safetensors").read_bytes())
    with pytest.raises(UserError, match=told):
        export(tmp_path / folder, name=name)
    assert not server.requests
