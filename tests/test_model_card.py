"""The model card says what its run was, the Hub takes it, its code works as pasted, and a changed one is kept."""

import copy
import json
import re
import shutil
import subprocess
import sys

import pytest
from huggingface_hub import ModelCard
from huggingface_hub.repocard_data import eval_results_to_model_index
from test_run import QUICK, call_main

from domain_canine.model_card import card_text, table, write_model_card
from domain_canine.run_record import read_record


@pytest.fixture
def run(short_run, tmp_path):
    """A run's folder, to be changed."""
    return shutil.copytree(short_run, tmp_path / "run", ignore=shutil.ignore_patterns("checkpoint-*"))


def rows(text: str) -> dict[str, list[str]]:
    """The rows of all tables, by their first cell."""
    lines = [re.findall(r"[^|]+", line) for line in text.splitlines() if line.startswith("| ")]
    return {cells[0].strip(): [cell.strip() for cell in cells[1:]] for cells in lines}


def test_the_card_says_what_the_run_was(run, short_run):
    text = (run / "README.md").read_text()
    told, state = rows(text), json.loads((run / "trainer_state.json").read_text())
    data = {"lines read": "311", "kept": "300", "duplicate": "7", "empty": "1", "comment": "1", "one label": "1"}
    assert {why: told[why] for why in data} == {why: [count] for why, count in data.items()}
    assert told["bad character"] == ["1"]
    validation = int(told["for validation"][0])
    assert int(told["to train on"][0]) + validation == 300 and f"On {validation} names" in text
    assert told["steps"] == [f"{state['global_step']:,}"] == ["12"] and told["names a step"] == ["48"]
    assert told["`learning_rate`"] == ["0.005", "1e-05"] and told["`weight_decay`"][0] == "0.01"
    assert told["`config_overrides`"][0] == "num_hidden_layers=1,hidden_size=32"
    for elsewhere in (
        "output_dir",
        "save_steps",
        "dataloader_num_workers",
        "hub_token",
        "use_cpu",
        "include_for_metrics",
    ):
        assert f"`{elsewhere}`" not in told
    # Where the names are is nobody's concern.
    assert str(short_run.parent / "names.txt") not in text and "Local names" in text
    assert "trained on few names" in text and "MIT" in text
    log = [entry["step"] for entry in state["log_history"] if "loss" in entry]
    assert log == list(range(1, 13)) and all(
        entry["names_per_second"] > 0 for entry in state["log_history"] if "loss" in entry
    )


def test_a_run_that_changed_its_split_does_not_say_that_it_never_trained_on_it(run):
    starts = json.loads((run / "run_arguments.json").read_text())
    assert "no validation name is ever trained on" in card_text(read_record(run))
    other = copy.deepcopy(starts[0])
    other["settings"]["split_seed"] = 7
    (run / "run_arguments.json").write_text(json.dumps([other, *starts]))
    assert "no validation name is ever trained on" in card_text(read_record(run))  # it had no part in the weights
    starts[0]["resumed_from"] = 3
    (run / "run_arguments.json").write_text(json.dumps([other, *starts]))
    text = card_text(read_record(run))
    assert "ever trained on" not in text and "an earlier start of the run held out others" in text


def test_a_cell_stays_a_cell():
    line = table(("a", "b"), [("x|y\nz`<img src=x>", 1)]).splitlines()[-1]
    assert line == "| x&#124;y z`&lt;img src=x&gt; | 1 |"


def test_the_results_are_those_of_the_run_and_stay_so_on_the_way_through_the_hub_s_own_code(run):
    card = ModelCard.load(run / "README.md")
    found = json.loads((run / "eval_results.json").read_text())
    told = {result.metric_name: result.metric_value for result in card.data.eval_results}
    assert told == {
        "perplexity of a masked character": found["eval_perplexity"],
        "perplexity before the last dot": found["eval_perplexity_name"],
        "perplexity of the last dot and what follows": found["eval_perplexity_suffix"],
        "bits per masked character": found["eval_bits_per_character"],
        "accuracy": found["eval_accuracy"],
        "accuracy, top 5": found["eval_accuracy_top5"],
    }
    assert rows(str(card))["accuracy"] == [f"{found['eval_accuracy']:.4f}"]
    index = eval_results_to_model_index(card.data.model_name, card.data.eval_results)
    assert card.data.to_dict()["model-index"] == index
    again = ModelCard(str(card))
    assert again.data.to_dict() == card.data.to_dict() and again.text == card.text


def test_figures_that_are_no_numbers_are_left_out(run):
    found = json.loads((run / "eval_results.json").read_text())
    found |= {"eval_perplexity": float("inf"), "eval_perplexity_suffix": float("nan")}
    (run / "eval_results.json").write_text(json.dumps(found))
    card = ModelCard(card_text(read_record(run)))
    names = [result.metric_name for result in card.data.eval_results]
    assert len(names) == 4 and "perplexity of a masked character" not in names


def test_the_hub_takes_the_metadata(run, serve, at):
    """By the client's own call, at a stand-in that knows what the Hub asks for."""
    server = serve()
    at(server.url)
    card = ModelCard.load(run / "README.md")
    card.validate()
    assert server.count("/api/validate-yaml") == 1
    card.data.license = "mine"
    with pytest.raises(ValueError, match="license"):
        card.validate()


CODE = """
import sys
sys.modules["domain_canine"] = None
exec(open(sys.argv[1]).read())
told = pipeline("domain-embed", model=name, trust_remote_code=True)(["example.com", "ein-beispiel.de"])
expected = torch.tensor([each["embedding"] for each in told])
assert torch.allclose(vectors, expected, atol=1e-5), "vectors are not those of embed"
print("done", vectors.shape[0], len(fill("exam[MASK]le.com", top_k=3)), len(complete("py????.com", count=3)))
"""


def test_its_code_works_as_pasted_where_the_package_is_not(run, tmp_path):
    text = card_text(read_record(run), None)
    blocks = re.findall(r"```python\n(.*?)```", text, re.S)
    assert len(blocks) == 2
    (tmp_path / "pasted.py").write_text("\n".join(blocks))
    done = subprocess.run(
        [sys.executable, "-c", CODE, tmp_path / "pasted.py"], capture_output=True, text=True, cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin", "HF_HUB_OFFLINE": "1", "HOME": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("done 2 3 3\n")


def test_curves_are_drawn_where_matplotlib_is(run, monkeypatch, capsys):
    assert (run / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert "](curves.png)" in (run / "README.md").read_text()
    (run / "curves.png").unlink()
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert write_model_card(run)
    assert "README.md has no curves: 'pip install matplotlib'" in capsys.readouterr().err
    assert "curves.png" not in (run / "README.md").read_text() and not (run / "curves.png").exists()


def test_a_changed_card_is_kept_and_an_unchanged_one_made_anew(run, capsys):
    card = run / "README.md"
    made = card.read_text()
    assert write_model_card(run, "someone/names")
    assert 'model="someone/names"' in card.read_text() and made != card.read_text()
    for changed in (card.read_text().replace("## Limits", "## My limits"), "# A card of mine\n", made + "\nMore.\n"):
        card.write_text(changed)
        capsys.readouterr()
        assert not write_model_card(run, "someone/others")
        assert card.read_text() == changed and "is left as it is" in capsys.readouterr().err
    card.unlink()
    assert write_model_card(run)


@pytest.mark.parametrize(
    ("origin", "name", "licence", "base", "told"),
    [
        ("random", None, "mit", None, "MIT: the weights began at random"),
        ("hub", None, "apache-2.0", "google/canine-c", "Apache 2.0, that of `google/canine-c`"),
        ("hub", "google/canine-s", "apache-2.0", "google/canine-s", "continued from `google/canine-s`"),
        ("hub", "someone/canine", None, "someone/canine", "That of `someone/canine`"),
        ("local", "/home/me/canine", None, None, "That of a local checkpoint"),
    ],
)
def test_the_licence_is_that_of_the_weights_it_began_with(run, origin, name, licence, base, told):
    starts = json.loads((run / "run_arguments.json").read_text())
    for start in starts:
        start["origin"] = origin
        start["settings"] |= {"model_name_or_path": name, "model_size": "tiny" if origin == "random" else None}
    (run / "run_arguments.json").write_text(json.dumps(starts))
    text = card_text(read_record(run))
    card = ModelCard(text)
    assert (card.data.license, card.data.base_model) == (licence, base) and told in text
    assert "/home/me" not in text


def test_a_run_without_checkpoints_and_without_evaluation_has_a_card_too(tmp_path, monkeypatch, names_file):
    flags = ("--use_cpu", "--save_strategy", "no", "--logging_steps", 1)
    call_main(monkeypatch, *QUICK, "--dataset", names_file, "--output_dir", tmp_path / "a", *flags)
    assert "](curves.png)" in (text := (tmp_path / "a" / "README.md").read_text()) and "## Evaluation" in text
    flags = (*flags, "--eval_strategy", "no", "--num_samples", 64, "--dataset", "sample")
    call_main(monkeypatch, *QUICK, "--output_dir", tmp_path / "b", *flags)
    text = (tmp_path / "b" / "README.md").read_text()
    assert "trained on synthetic names" in text and "## Evaluation" not in text
    assert ModelCard(text).data.eval_results is None
