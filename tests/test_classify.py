"""Fine-tuning as people start it: what a run learns, keeps, leaves behind, and says of mistakes."""

import csv
import json
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import SMALL
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from small_runs import At, assert_equal, entries, terminate

from domain_canine import (
    DomainCanineConfig,
    DomainCanineForMaskedLM,
    DomainCanineForSequenceClassification,
    checkpoints,
    cli,
    predictions,
)
from domain_canine.classification import LabelFigures
from domain_canine.classifier import ClassifierTrainer, build_classifier, class_weights
from domain_canine.classify_arguments import ClassifierArguments, ClassifyDataArguments, ClassifyTrainingArguments
from domain_canine.errors import Stopped, UserError
from domain_canine.labelled import build_batches, load_labelled
from domain_canine.modeling_domain_canine import mean_of_characters
from domain_canine.parser import Parser
from domain_canine.predictions import classify_names
from domain_canine.pretrained import build_tokenizer, load_model
from domain_canine.sample import sample_names
from domain_canine.stopping import StopRequest

FLAGS = (
    "--use_cpu --dataloader_num_workers 0 --disable_tqdm true --logging_steps 1 --batch_size 32 --learning_rate 2e-3"
)
WAYS = {
    "all": [], "lora": ["--lora_rank", "4"], "frozen": ["--freeze_encoder"], "cls": ["--pooling", "cls"],
    "lora cls": ["--lora_rank", "4", "--pooling", "cls"],
}  # fmt: skip


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A pretrained model, and names that are told apart by their suffix, with a number that is their length."""
    folder = tmp_path_factory.mktemp("files")
    torch.manual_seed(3)
    model = DomainCanineForMaskedLM(DomainCanineConfig(**SMALL | {"initializer_range": 0.05}))
    model.save_pretrained(folder / "model")
    build_tokenizer(model, 128).save_pretrained(folder / "model")
    names = [name.rsplit(".", 1)[0] + (".com", ".net")[i % 2] for i, name in enumerate(sample_names(400))]
    with (folder / "names.csv").open("w") as file:
        file.write("domain,label,length\n")
        file.writelines(f"{name},{name[-3:]},{100 * len(name)}\n" for name in names)
    return folder


def test_a_head_that_was_trained_elsewhere_is_told_by_its_kind(files, tmp_path, capfd):
    """One output is a number, whatever the configuration says; several labels a name are none of this command's."""
    for problem, labels in ((None, 1), ("multi_label_classification", 3)):
        model = load_model(
            str(files / "model"), kind=DomainCanineForSequenceClassification, num_labels=labels, problem_type=problem
        )
        model.save_pretrained(tmp_path / str(labels))
    assert cli.main(["classify", str(tmp_path / "1"), "example.com", "--all"]) == 0
    head, row = capfd.readouterr().out.splitlines()
    assert head == "input,name,number,reason" and row.startswith("example.com,example.com,")
    with pytest.raises(UserError, match="several labels, and this command tells one"):
        cli.main(["classify", str(tmp_path / "3"), "example.com"])


def parse(files, *flags):
    flags = [*FLAGS.split(), "--train_file", files / "names.csv", *flags]
    if "--model_size" not in flags:
        flags += ["--model_name_or_path", files / "model"]
    return Parser((ClassifierArguments, ClassifyDataArguments, ClassifyTrainingArguments)).parse([*map(str, flags)])


def make_trainer(files, folder, *flags, stop=None):
    model_arguments, data_arguments, args = parse(files, "--output_dir", folder, *flags)
    args.choose_metric(data_arguments.task)
    torch.manual_seed(args.seed)
    data = load_labelled(data_arguments)
    model = build_classifier(model_arguments, data)
    train, validation = build_batches(data, args, class_weights(data_arguments, data))
    return ClassifierTrainer(
        model=model, args=args, train_dataset=train, eval_dataset=validation, stop=stop, kind=LabelFigures(data.classes),
        processing_class=build_tokenizer(model, 255),
    )  # fmt: skip


def run(monkeypatch, files, *flags):
    import run_classify_domains

    flags = [*FLAGS.split(), "--train_file", files / "names.csv", *flags]
    monkeypatch.setattr(sys, "argv", ["run_classify_domains.py", *map(str, flags)])
    return run_classify_domains.main()


STRANGER = """
import json, sys
sys.modules["domain_canine"] = None
from transformers import pipeline
classify = pipeline("text-classification", model=sys.argv[1], trust_remote_code=True)
names = sys.argv[2:]
embed = pipeline("domain-embed", model=sys.argv[1], trust_remote_code=True)
told = {"alone": [classify(name)[0] for name in names], "batch": classify(names, batch_size=2)}
print(json.dumps(told | {"width": len(embed(names[0])["embedding"])}))
"""


def test_a_run_learns_and_leaves_a_model_that_loads_by_itself(files, tmp_path, monkeypatch, capfd):
    folder, told = tmp_path / "run", []
    monkeypatch.setattr(torch.backends, "fp32_precision", "tf32")  # as the Trainer leaves it on a GPU
    monkeypatch.setattr(
        predictions, "classify_names",
        lambda *given: told.append(torch.backends.fp32_precision) or classify_names(*given),
    )  # fmt: skip
    flags = [
        "--output_dir",
        folder,
        "--epochs",
        "8",
        "--model_name_or_path",
        files / "model",
        "--positive_label",
        "com",
    ]
    assert run(monkeypatch, files, *flags) == 0
    assert told == ["none"]  # as in the process of `classify`, for which thresholds are told
    said = capfd.readouterr().err
    for part in ("400 rows read", "com ", "saved the best weights", "macro f1", "taken for", "from which on"):
        assert part in said, part
    told = json.loads((folder / "eval_results.json").read_text())
    assert told["eval_macro_f1"] > 0.95 and told["eval_auc"] > 0.99 and set(told["classes"]) == {"com", "net"}
    assert np.array(told["confusion_matrix"]).sum() == told["eval_names"] and told["positive"] == "com"
    card = ModelCard.load(folder / "README.md")
    results = {each.metric_name: each.metric_value for each in card.data.eval_results}
    assert card.data.pipeline_tag == "text-classification" and results["macro F1"] == told["eval_macro_f1"]
    assert "label com, to train on" in card.text and "| rows" not in card.text and (folder / "curves.png").is_file()
    assert "10% by a hash of the name" in card.text and "15% of the characters" not in card.text
    with (folder / "validation_predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == told["eval_names"] and all(row["label"] == row["name"][-3:] for row in rows)
    assert np.mean([row["label"] == row["predicted"] for row in rows]) == pytest.approx(told["eval_accuracy"])
    assert all(float(row["p_com"]) + float(row["p_net"]) == pytest.approx(1, abs=1e-5) for row in rows)
    rows.sort(key=lambda row: len(row["name"]))
    two = [rows[0], rows[-1]]
    done = subprocess.run(
        [sys.executable, "-c", STRANGER, folder, *(row["name"] for row in two)], capture_output=True, text=True, cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin", "HF_HUB_OFFLINE": "1", "HOME": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    stranger = json.loads(done.stdout)
    assert stranger["width"] == 64
    for row, alone, batch in zip(two, stranger["alone"], stranger["batch"]):
        assert alone["label"] == batch["label"] == row["predicted"]
        told = float(row[f"p_{row['predicted']}"])
        assert [alone["score"], batch["score"]] == pytest.approx([told, told], abs=1e-4)


def test_the_command_tells_classes_and_numbers_of_every_line(files, tmp_path, capsys):
    lines = ["Example.com", "no name", "b.net", ""]
    (tmp_path / "names.txt").write_text("\n".join(lines) + "\nc.org\n")
    arguments, data, _ = parse(files)
    for task, column in (("classification", "label"), ("regression", "length")):
        data.task, data.label_column = task, column
        model = build_classifier(arguments, load_labelled(data))
        model.save_pretrained(tmp_path / task)
        outputs = classify_names(model.eval(), ["example.com", "b.net", "c.org"])
        path = tmp_path / f"{task}.jsonl"
        assert (
            cli.main(["classify", str(tmp_path / task), str(tmp_path / "names.txt"), "--all", "--output", str(path)])
            == 0
        )
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        assert [row["reason"] for row in rows] == [None, "bad_character", None, "empty", None]
        found = [rows[0], rows[2], rows[4]]
        if task == "regression":
            assert [row["number"] for row in found] == pytest.approx(outputs[:, 0].tolist(), rel=1e-5)
            assert rows[1]["number"] is None
            continue
        shares = torch.tensor(outputs).softmax(-1)
        assert [row["p_net"] for row in found] == pytest.approx(shares[:, 1].tolist(), abs=1e-6)
        assert [row["probability"] for row in found] == pytest.approx(shares.amax(1).tolist(), abs=1e-6)
        assert [row["label"] for row in found] == [("com", "net")[index] for index in outputs.argmax(1)]
        assert rows[1]["label"] is rows[1]["p_com"] is None
    with pytest.raises(UserError, match="has no head for labels; train one with run_classify_domains.py"):
        cli.main(["classify", str(files / "model"), "a.com"])


@pytest.mark.parametrize("way", WAYS)
def test_what_is_trained_changes_and_what_is_not_stays(files, tmp_path, way):
    trainer = make_trainer(files, tmp_path / "run", "--max_steps", "3", *WAYS[way])
    trainer.train()
    trainer.save_final()
    before = load_file(files / "model" / "model.safetensors")
    after = load_file(tmp_path / "run" / "model.safetensors")
    assert not [name for name in after if "lora" in name]
    changed = {name for name in before if name in after and not torch.equal(before[name], after[name])}
    layers = {name for name in before if ".layer." in name and name.endswith(".weight") and "LayerNorm" not in name}
    last = {name for name in before if name.startswith(("canine.projection", "canine.final_char_encoder"))}
    everything = {name for name in before if name.startswith("canine.")}
    # A key's bias adds the same to all scores of a query: its gradient is nothing but rounding.
    assert changed - {name for name in everything if name.endswith("key.bias")} == {
        "all": everything, "lora": layers, "frozen": set(), "cls": everything - last, "lora cls": layers - last,
    }[way] - {name for name in everything if name.endswith("key.bias")}  # fmt: skip
    assert not (tmp_path / "run" / "lora").exists()
    # What is to be trained has a gradient: several processes wait for it.
    updates = [each for name, each in trainer.model.named_parameters() if "lora_B" in name]
    assert all(each.abs().sum() > 0 for each in updates) and bool(updates) == ("lora" in way)


@pytest.mark.parametrize("way", ["all", "lora"])
def test_a_run_that_was_stopped_and_resumed_equals_the_one_never_stopped(files, tmp_path, way):
    flags = [*WAYS[way], "--epochs", "2", "--save_steps", "1000"]
    never = make_trainer(files, tmp_path / "never", *flags)
    never.train()
    for step in (4, 15):  # within an epoch of 12 steps
        folder = tmp_path / str(step)
        with StopRequest() as stop:
            trainer = make_trainer(files, folder, *flags, stop=stop)
            trainer.add_callback(At(step, terminate))
            with pytest.raises(Stopped) as told:
                trainer.train()
        assert told.value.status == 128 + signal.SIGTERM
        again = make_trainer(files, folder, *flags)
        again.train(resume_from_checkpoint=checkpoints.to_resume_from(folder, "newest"))
        assert_equal(again.model.state_dict(), never.model.state_dict())
        assert entries(again, "loss") == entries(never, "loss")
        assert entries(again, "eval_auc") == entries(never, "eval_auc")


def test_a_checkpoint_of_low_rank_updates_loads_with_them_added(files, tmp_path):
    trainer = make_trainer(files, tmp_path / "run", "--max_steps", "4", "--save_steps", "4", *WAYS["lora"])
    trainer.train()
    checkpoint = tmp_path / "run" / "checkpoint-4"
    assert str(files) not in (checkpoint / "lora" / "adapter_config.json").read_text()
    assert not (checkpoint / "README.md").exists()  # PEFT's would keep ours away
    names = sample_names(20)
    loaded = load_model(str(checkpoint), trained=True, kind=DomainCanineForSequenceClassification).eval()
    trainer.model.eval()
    assert np.abs(classify_names(loaded, names) - classify_names(trainer.model, names)).max() < 1e-5


def test_accumulation_does_not_change_the_losses(files, tmp_path):
    flags = ["--max_steps", "6", "--class_weights", "com=5", "--save_strategy", "no"]
    calm = DomainCanineConfig(
        **SMALL | {"initializer_range": 0.05}, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0
    )
    (tmp_path / "data").mkdir()
    torch.manual_seed(0)
    DomainCanineForMaskedLM(calm).save_pretrained(tmp_path / "model")
    (tmp_path / "names.csv").write_text((files / "names.csv").read_text())
    runs = []
    for batch, steps in ((32, 1), (8, 4)):
        trainer = make_trainer(
            tmp_path, tmp_path / f"run{batch}", *flags, "--batch_size", batch, "--gradient_accumulation_steps", steps
        )
        trainer.train()
        runs.append(entries(trainer, "loss"))
    assert runs[0] == pytest.approx(runs[1], rel=1e-5) and len(runs[0]) == 6


def test_numbers_are_estimated_in_their_units(files, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    flags = ["--task", "regression", "--label_column", "length", "--epochs", "20"]
    assert run(monkeypatch, files, "--model_name_or_path", files / "model", "--output_dir", folder, *flags) == 0
    told = json.loads((folder / "eval_results.json").read_text())
    assert told["eval_r2"] > 0.8 and told["eval_rmse"] < 300 and told["eval_loss"] < 0.3
    model = load_model(str(folder), trained=True, kind=DomainCanineForSequenceClassification).eval()
    [[short], [long]] = classify_names(model, ["abc.com", "threedozencharactersmakealongone.com"]).tolist()
    assert 300 < short < 1600 < long


def test_a_name_is_classified_the_same_alone_and_among_others(files):
    [model] = [build_classifier(parse(files)[0], load_labelled(parse(files)[1])).eval()]
    names = sample_names(60) + ["a" * 60 + "." + "b" * 60 + ".com"]
    together = classify_names(model, names)
    alone = np.concatenate([classify_names(model, [name]) for name in names])
    assert np.abs(together - alone).max() < 1e-4


def test_a_classifier_is_where_another_one_begins(files, tmp_path):
    trainer = make_trainer(files, tmp_path / "run", "--max_steps", "2")
    trainer.train()
    trainer.save_final()
    head = load_file(tmp_path / "run" / "model.safetensors")["classifier.weight"]
    arguments, data, _ = parse(files)
    arguments.model_name_or_path = str(tmp_path / "run")
    assert torch.equal(build_classifier(arguments, load_labelled(data)).classifier.weight, head)
    data.task, data.label_column = "regression", "length"  # another number of labels: a new head, the same encoder
    other = build_classifier(arguments, load_labelled(data))
    assert other.classifier.weight.shape == (1, 64)
    assert torch.equal(other.canine.projection.conv.weight, trainer.model.canine.projection.conv.weight)


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--model_name_or_path", "nomodel/x"], "cannot load the model"),
        (["--model_name_or_path", "."], "holds no model"),
        (["--model_size", "tiny", "--lora_rank", "4"], "are random"),
        (["--epochz", "3"], r"unknown flag --epochz; did you mean --epochs\?"),
        (["--model_size", "tiny", "--label_column", "x"], "has no column 'x'"),
        (["--model_size", "tiny", "--metric_for_best_model", "rmse"], "is none of a classification"),
        (["--model_size", "tiny", "--task", "regression"], "is no number"),
    ],
)
def test_mistakes_are_one_message_and_leave_no_folder(files, tmp_path, monkeypatch, flags, told):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=told):
        run(monkeypatch, files, "--output_dir", tmp_path / "run", *flags)
    assert not (tmp_path / "run").exists()


def test_a_folder_that_is_taken_is_left_alone(files, tmp_path, monkeypatch):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="is not empty and not a run"):
        run(monkeypatch, files, "--model_size", "tiny", "--output_dir", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_the_mean_is_over_characters_alone():
    states = torch.arange(12.0).view(1, 6, 2).repeat(2, 1, 1)  # [CLS] a b c [SEP] and padding; [CLS] a b [SEP]
    mask = torch.tensor([[1, 1, 1, 1, 1, 0], [1, 1, 1, 1, 0, 0]])
    assert mean_of_characters(states, mask).tolist() == [[4.0, 5.0], [3.0, 4.0]]
