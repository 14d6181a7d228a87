"""Embeddings: what they are the mean of, that they depend on nothing else, and the ways to them that end alike."""

import csv
import gzip
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from conftest import ROOT, SMALL

from domain_canine import DomainCanineConfig, DomainCanineForSequenceClassification, cli, rows, scoring_domain_canine
from domain_canine import export_sentence_transformers as st
from domain_canine.configuration_domain_canine import AUTO_MAP, PIPELINES
from domain_canine.embedding_domain_canine import embed_names
from domain_canine.errors import UserError
from domain_canine.pretrained import build_tokenizer, load_encoder_for_use
from domain_canine.sample import sample_names
from domain_canine.vectors import VectorTable

LONGEST = ".".join(["a" * 63, "b" * 63, "c" * 63, "d" * 57, "com"])
LINES = ["Example.com", "", "no-dot", "bücher.de", "last.org"]
NAMES = ["example.com", None, None, "xn--bcher-kva.de", "last.org"]
REASONS = [None, "empty", "one_label", None, None]


def call(*words) -> int:
    return cli.main([str(word) for word in words])


def close(one, other, tolerance: float = 1e-4) -> bool:
    one, other = torch.as_tensor(one), torch.as_tensor(other)
    return one.shape == other.shape and (one - other).abs().max().item() <= tolerance


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A checkpoint, and names beside it, as the documents have them."""
    from domain_canine import DomainCanineForMaskedLM

    here = tmp_path_factory.mktemp("here")
    torch.manual_seed(0)
    # Ten times the usual spread of weights, as in conftest.py: 253 characters do not look alike then.
    model = DomainCanineForMaskedLM(DomainCanineConfig(**SMALL, auto_map=AUTO_MAP, custom_pipelines=PIPELINES)).eval()
    model.save_pretrained(here / "runs" / "quickstart")
    build_tokenizer(model, 128).save_pretrained(here / "runs" / "quickstart")
    names = sample_names(30)
    (here / "names.txt").write_text("\n".join(names) + "\nno-dot\n")
    with gzip.open(here / "names.csv.gz", "wt") as file:
        csv.writer(file).writerows([["id", "domain"], *enumerate(names)])
    return here / "runs" / "quickstart"


@pytest.fixture(scope="module")
def encoder(folder):
    return load_encoder_for_use(str(folder))


@pytest.fixture
def lines(tmp_path):
    path = tmp_path / "lines.txt"
    path.write_text("\n".join(LINES) + "\n")
    return path


# ---- in Python


@pytest.mark.parametrize("name", ["a.b", "example.com", "xn--bcher-kva.de", "bücher.de", "日本.jp", LONGEST])
def test_the_mean_is_over_characters_and_cls_is_the_first_state(model, name):
    with torch.no_grad():
        states = model.canine(input_ids=torch.tensor([[0xE000, *map(ord, name), 0xE001]])).last_hidden_state[0]
    assert close(embed_names(model, [name])[0], states[1:-1].mean(0))
    assert close(embed_names(model, [name], "cls")[0], states[0])
    unit = embed_names(model, [name], normalize=True)[0]
    assert close(unit, states[1:-1].mean(0) / states[1:-1].mean(0).norm()) and close(unit.norm(), torch.tensor(1.0))


def test_an_embedding_depends_on_no_other_name_and_order_is_kept(model, monkeypatch):
    names = [*sample_names(60), "a.b", LONGEST, "bücher.de", "1.com"]
    together = embed_names(model, names)
    assert together.shape == (64, SMALL["hidden_size"]) and together.dtype == torch.float32
    assert together.std(0).min() > 0.01  # they are not all alike
    for index in (*range(0, 60, 7), 60, 61, 62, 63):
        assert close(embed_names(model, [names[index]])[0], together[index])
    monkeypatch.setattr(scoring_domain_canine, "SLOTS_ON_CPU", 100)  # other batches
    assert close(embed_names(model, names), together)
    assert embed_names(model, []).shape == (0, SMALL["hidden_size"])


def test_batches_are_of_like_lengths_and_within_the_slots(model, monkeypatch):
    monkeypatch.setattr(scoring_domain_canine, "SLOTS_ON_CPU", 200)
    shapes, forward = [], model.canine.forward
    monkeypatch.setattr(
        model.canine, "forward", lambda **inputs: shapes.append(inputs["input_ids"].shape) or forward(**inputs)
    )
    names = [f"{'a' * (3 + index % 40)}.com" for index in range(200)]
    embed_names(model, names)
    assert sum(count for count, _ in shapes) == 200
    assert all(count * ((length + 5) // 4 * 4) <= 200 + 4 * count for count, length in shapes)
    slots = sum(count * length for count, length in shapes)
    assert slots < 1.15 * sum(len(name) + 2 for name in names)


def test_any_model_on_an_encoder_will_do_and_features_can_be_trained_on(model):
    names = ["example.com", "a.org"]
    expected = embed_names(model, names)
    assert torch.equal(embed_names(model.canine, names), expected)
    classifier = DomainCanineForSequenceClassification(DomainCanineConfig(**SMALL)).eval()
    classifier.canine.load_state_dict(model.canine.state_dict(), strict=False)
    assert close(embed_names(classifier, names), expected)
    torch.nn.Linear(SMALL["hidden_size"], 1)(expected).sum().backward()
    with pytest.raises(ValueError, match="pooling is mean or cls, not 'max'"):
        embed_names(model, names, "max")


# ---- where the package is not: everything in the document, and sentence-transformers

STRANGER = """
import json, sys
sys.modules["domain_canine"] = None
from transformers.utils import logging
logging.disable_progress_bar()
logging.set_verbosity_error()
documented, names = json.load(open("documented.json")), json.load(open("raw.json"))
told, scope = {}, {}
for number, block in enumerate(documented):
    exec(block, scope)
    for name in ("rows", "embeddings", "vectors"):
        if name in scope:
            value = scope.pop(name)
            told[f"{number} {name}"] = value if isinstance(value, list) else value.tolist()
opened = scope["model"]
told["similarity"], told["longest"] = opened.similarity_fn_name, opened.max_seq_length
told["in_twos"] = opened.encode(names, batch_size=2).tolist()
told["at_once"] = opened.encode(names, batch_size=64).tolist()
SentenceTransformer = type(opened)
opened.save("again")
told["again"] = SentenceTransformer("again", trust_remote_code=True).encode(names).tolist()
told["cls"] = SentenceTransformer("cls", trust_remote_code=True).encode(names).tolist()
try:
    SentenceTransformer("cls")
except ValueError as error:
    told["untrusted"] = str(error)
else:
    told["untrusted"] = None
print(json.dumps(told))
"""


@pytest.fixture(scope="module")
def told(folder, tmp_path_factory):
    """What the document's examples, and sentence-transformers, give where the package cannot be imported."""
    here, raw = folder.parent.parent, [*sample_names(9), "a.b", "bücher.de", "日本.jp", "EXAMPLE.com", LONGEST]
    document = (ROOT / "docs" / "embedding.md").read_text()
    for words in map(str.split, "".join(re.findall(r"```bash\n(.*?)```", document, re.S)).splitlines()):
        assert words[:3] == ["python", "-m", "domain_canine"]
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(here)
            assert call(*words[3:]) == 0
    assert call("export", "sentence-transformers", folder, "--output", here / "cls", "--pooling", "cls") == 0
    blocks = re.findall(r"```python\n(.*?)```", document, re.S)
    (here / "documented.json").write_text(json.dumps([each for each in blocks if "from domain_canine" not in each]))
    (here / "raw.json").write_text(json.dumps(raw))
    done = subprocess.run(
        [sys.executable, "-c", STRANGER], capture_output=True, text=True, cwd=here,
        env={"PATH": "/usr/bin:/bin", "HF_HUB_OFFLINE": "1", "HOME": str(tmp_path_factory.mktemp("home")),
             "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    *printed, last = done.stdout.splitlines()
    return json.loads(last) | {"printed": printed, "raw": raw}


def test_the_documented_ways_give_the_same_numbers(told, encoder, folder):
    two = ["example.com", "exarnple.com"]
    assert close(told["1 embeddings"], embed_names(encoder, two), 1e-5)
    pipe = told["0 rows"]
    assert [(row["input"], row["name"], row["reason"]) for row in pipe] == [
        ("Example.com", "example.com", None), ("exarnple.com", "exarnple.com", None), ("no-dot", None, "one_label"),
    ]  # fmt: skip
    assert close([row["embedding"] for row in pipe[:2]], embed_names(encoder, two, normalize=True), 1e-5)
    assert pipe[2]["embedding"] is None
    assert close(told["2 vectors"], embed_names(encoder, [*two, "shop24.de"], normalize=True), 1e-5)
    # The neighbours of the first name, itself before all.
    assert len(told["printed"]) == 10 and told["printed"][0] == f"1.000  {sample_names(1)[0]}"
    names = sample_names(30)
    unit = embed_names(encoder, names, normalize=True)
    best = (unit @ unit[0]).argsort(descending=True)[:10]
    assert [line.split()[1] for line in told["printed"]] == [names[index] for index in best]
    with_package = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "embedding.md").read_text(), re.S)[0]
    scope = {}
    exec(with_package.replace("runs/quickstart", str(folder)), scope)
    assert close(scope["embeddings"], embed_names(encoder, two))


def test_sentence_transformers_gives_the_same_numbers_in_any_batch(told, encoder):
    lower = [name.replace("EXAMPLE", "example") for name in told["raw"]]
    expected = embed_names(encoder, lower, normalize=True)
    assert close(told["in_twos"], expected, 1e-5) and close(told["at_once"], expected, 1e-5)
    assert close(told["again"], expected, 1e-5)  # saved by sentence-transformers itself
    assert close(told["cls"], embed_names(encoder, lower, "cls"), 1e-4)
    assert told["similarity"] == "cosine" and told["longest"] == 255
    assert told["untrusted"]  # stock CANINE, whose outputs change with the padding, does not get in by oversight


def test_an_export_has_nothing_of_what_needs_a_head(told, folder):
    config = json.loads((folder.parent / "quickstart-st" / "config.json").read_text())
    assert set(config["auto_map"]) == {"AutoConfig", "AutoModel"} and not config["custom_pipelines"]
    assert load_encoder_for_use(str(folder.parent / "quickstart-st")).pooler is None  # it is a checkpoint, too


# ---- the command


def test_every_line_is_a_row_in_order(folder, encoder, lines, tmp_path, capfd):
    expected = embed_names(encoder, [name for name in NAMES if name])
    for suffix in ("parquet", "jsonl", "csv", "npy"):
        assert call("embed", folder, lines, "--output", tmp_path / f"out.{suffix}") == 0
        err = capfd.readouterr().err
        assert "2 of 5 rows are no names (" in err and f"): {'NaN' if suffix == 'npy' else 'the reason'}" in err
        assert f"5 rows in {tmp_path / f'out.{suffix}'}" in err
    table = pq.read_table(tmp_path / "out.parquet").to_pylist()
    assert [tuple(row) for row in table] == [("input", "name", "embedding", "reason")] * 5
    assert [row["input"] for row in table] == LINES
    assert [row["name"] for row in table] == NAMES and [row["reason"] for row in table] == REASONS
    assert [row["embedding"] is None for row in table] == [name is None for name in NAMES]
    assert close([row["embedding"] for row in table if row["embedding"]], expected)
    assert [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()] == table
    cells = [row["embedding"] for row in csv.DictReader((tmp_path / "out.csv").open())]
    assert [not cell for cell in cells] == [name is None for name in NAMES]
    assert close([list(map(float, cell.split())) for cell in cells if cell], expected)
    array = np.load(tmp_path / "out.npy", mmap_mode="r")
    assert array.dtype == np.float32 and array.shape == (5, SMALL["hidden_size"])
    assert np.isnan(array[1:3]).all() and close(array[[0, 3, 4]], expected)


def test_options_and_a_file_of_many_windows(folder, encoder, tmp_path, monkeypatch):
    monkeypatch.setattr(rows, "WINDOW", 50)
    names = sample_names(220)
    (tmp_path / "names.txt").write_text("\n".join(names))
    for pooling in ("mean", "cls"):
        out = tmp_path / f"{pooling}.npy"
        assert call("embed", folder, tmp_path / "names.txt", "--output", out, "--pooling", pooling, "--normalize") == 0
        assert close(np.load(out), embed_names(encoder, names, pooling, normalize=True))
    (tmp_path / "empty.txt").write_text("")
    for suffix in ("parquet", "npy"):
        assert call("embed", folder, tmp_path / "empty.txt", "--output", tmp_path / f"empty.{suffix}") == 0
    assert np.load(tmp_path / "empty.npy").shape == (0, SMALL["hidden_size"])
    assert pq.read_table(tmp_path / "empty.parquet").num_rows == 0


def test_a_classifier_and_a_stock_checkpoint_are_embedded_too(tmp_path):
    from transformers import CanineConfig, CanineModel

    classifier = DomainCanineForSequenceClassification(DomainCanineConfig(**SMALL))
    for name, model in (("classifier", classifier), ("stock", CanineModel(CanineConfig(**SMALL)))):
        model.save_pretrained(tmp_path / name)
        out = tmp_path / f"{name}.npy"
        assert call("embed", tmp_path / name, "example.com", "--output", out) == 0
        kept = load_encoder_for_use(str(tmp_path / name))
        assert close(np.load(out), embed_names(kept, ["example.com"]))
        ours = dict(model.base_model.named_parameters())
        assert all(torch.equal(ours[key], value) for key, value in kept.named_parameters())


def test_an_encoder_that_lacks_a_weight_is_refused(folder, tmp_path):
    from safetensors.torch import load_file, save_file

    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    state = load_file(folder / "model.safetensors")
    del state["canine.projection.conv.weight"]
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="lacks 1 weights of the encoder, .*projection.conv.weight"):
        call("embed", tmp_path, "example.com")


def test_an_array_is_whole_after_each_block(tmp_path):
    path, width = tmp_path / "out.npy", 7
    expected = np.empty((0, width), np.float32)
    with VectorTable(str(path)).of_width(width) as table:
        for count in (0, 3, 1, 200):  # the number of rows grows by digits
            block = rows.Rows(["x"] * count, ["x"] * count, [None] * count, 0.0)
            vectors = np.random.default_rng(count).random((count, width), np.float32)
            table.write_vectors(block, vectors)
            expected = np.concatenate([expected, vectors])
            assert np.array_equal(np.load(path), expected)
            # A power cut between the rows and their number leaves rows that are not counted.
            cut = tmp_path / "cut.npy"
            cut.write_bytes(path.read_bytes() + b"\0" * 4 * width)
            assert np.array_equal(np.load(cut), expected)


@pytest.mark.parametrize(("suffix", "number"), [("npy", signal.SIGINT), ("parquet", signal.SIGTERM)])
def test_what_was_written_before_a_signal_is_valid(folder, encoder, tmp_path, suffix, number):
    path, names = tmp_path / f"out.{suffix}", sample_names(5000)
    command = [sys.executable, "-m", "domain_canine", "embed", folder, "-", "--output", path]
    running = subprocess.Popen(
        command, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdin=subprocess.PIPE, stderr=subprocess.PIPE
    )
    os.set_blocking(running.stdin.fileno(), False)
    endless, deadline = "".join(f"{name}\n" for name in names).encode(), time.monotonic() + 60
    while not (path.exists() and path.stat().st_size > 500_000) and time.monotonic() < deadline:
        try:
            running.stdin.write(endless)
        except BlockingIOError:
            time.sleep(0.02)
    running.send_signal(number)
    assert running.wait(30) == 128 + number and b"Traceback" not in running.stderr.read()
    found = np.load(path) if suffix == "npy" else np.stack(pq.read_table(path)["embedding"].to_numpy())
    assert len(found) > 1000 and close(found[:1000], embed_names(encoder, names[:1000]))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("embed MODEL nofile.txt", "there is no file or folder 'nofile.txt'"),
        ("embed MODEL lines.csv --column nope", "has no column 'nope'; it has a, b"),
        ("embed MODEL lines.csv", "has the columns a, b; name one with"),
        ("embed MODEL a.com --output x.txt", "give it the suffix .parquet, .npy, .jsonl or .csv"),
        ("embed MODEL a.com --output there.npy", "exists; add --overwrite"),
        ("embed MODEL a.com --output no/where.npy", "cannot be written: No such file"),
        ("embed MODEL a.com --pooling max", "invalid choice: 'max'"),
        ("embed . a.com", "holds no model"),
        ("export", "arguments are required: target"),
        ("export sentence-transformers MODEL", "arguments are required: --output"),
        ("export sentence-transformers nomodel/x --output new", "cannot load the model"),
        ("export sentence-transformers MODEL --output there.npy", "is a file: give a folder"),
        ("export sentence-transformers MODEL --output mine", "is not empty and no export of this program"),
        ("export sentence-transformers MODEL --output mine --overwrite", "is not empty and no export of this program"),
        ("export sentence-transformers MODEL --output old", "exists; add --overwrite to replace it"),
        ("export sentence-transformers MODEL --output there.npy/new", "cannot be written: "),
    ],
)
def test_mistakes_are_one_message(folder, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lines.csv").write_text("a,b\n1,2\n")
    for name in ("there.npy", "mine/file", "old/1_CharacterPooling/config.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("mine")
    with pytest.raises(UserError, match=re.escape(message)):
        call(*(folder if word == "MODEL" else word for word in words.split()))
    for name in ("there.npy", "mine/file", "old/1_CharacterPooling/config.json"):
        assert (tmp_path / name).read_text() == "mine"
    assert {path.name for path in tmp_path.iterdir()} == {"lines.csv", "there.npy", "mine", "old"}


def test_overwrite_replaces_and_an_export_that_fails_leaves_what_was(folder, tmp_path, monkeypatch):
    (tmp_path / "there.npy").write_text("mine")
    assert call("embed", folder, "a.com", "--output", tmp_path / "there.npy", "--overwrite") == 0
    assert np.load(tmp_path / "there.npy").shape == (1, SMALL["hidden_size"])
    words = ("export", "sentence-transformers", folder, "--output", tmp_path / "deep" / "st", "--overwrite")
    for pooling in ("mean", "cls"):
        assert call(*words, "--pooling", pooling) == 0
        kept = json.loads((tmp_path / "deep" / "st" / "1_CharacterPooling" / "config.json").read_text())
        assert kept == {"pooling": pooling}

    (tmp_path / "deep" / "st" / "notes").mkdir()
    (tmp_path / "deep" / "st" / "notes" / "config.json").write_text("mine")
    with pytest.raises(UserError, match="no export of this program"):
        call(*words)
    shutil.rmtree(tmp_path / "deep" / "st" / "notes")

    write = st.write

    def interrupted(model, whole, *options):
        write(model, whole, *options)
        raise KeyboardInterrupt

    monkeypatch.setattr(st, "write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        call(*words)
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["st"]
    assert json.loads((tmp_path / "deep" / "st" / "1_CharacterPooling" / "config.json").read_text()) == kept
