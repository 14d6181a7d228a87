"""Graphs of ONNX: equal to PyTorch at any shape, refused where they are not, and what comes beside them."""

import json
import os
import re
import signal
import subprocess
import sys
import tomllib

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from conftest import ROOT, SMALL

from benchmarks import inference
from domain_canine import (
    DomainCanineConfig,
    DomainCanineForMaskedLM,
    DomainCanineForSequenceClassification,
    check,
    cli,
    export_onnx,
    onnx_graphs,
    onnx_int8,
)
from domain_canine.errors import Stopped, UserError
from domain_canine.layers_domain_canine import DomainCanineLayer
from domain_canine.masking import DataCollatorForCodePointMasking
from domain_canine.metrics import SUMS, figures, masked_sums, suffix_positions
from domain_canine.pretrained import build_tokenizer
from domain_canine.sample import sample_names
from domain_canine.scoring_domain_canine import encode, score_names

NAMES = sample_names(60)


def long_name(characters: int) -> str:
    """Labels of 63 letters at most."""
    return "".join("." if i % 64 == 63 else chr(97 + i * i % 26) for i in range(characters))


# Around the windows of 128 code points, and up to the longest.
LONG = [long_name(characters) for characters in (62, 124, 125, 126, 127, 128, 190, 253)]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A masked language model and a classifier, and their folders."""
    torch.manual_seed(0)
    config = DomainCanineConfig(**SMALL | {"num_hidden_layers": 1, "num_labels": 3})
    found = {}
    for kind in (DomainCanineForMaskedLM, DomainCanineForSequenceClassification):
        model, folder = kind(config).eval(), tmp_path_factory.mktemp("models") / kind.__name__
        model.save_pretrained(folder)
        build_tokenizer(model, 128).save_pretrained(folder)
        found["classifier" if kind is DomainCanineForSequenceClassification else "masked"] = model, folder
    return found


def export(folder, output, *words) -> int:
    return cli.main(["export", "onnx", str(folder), "--output", str(output), *map(str, words)])


@pytest.fixture(scope="module")
def names_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("names") / "names.txt"
    path.write_text("\n".join(NAMES) + "\nno-name\n")
    return path


@pytest.fixture(scope="module")
def embedder(models, names_file, tmp_path_factory):
    """The folder of an export that a user has started, and its process."""
    folder = tmp_path_factory.mktemp("embedder") / "embed"
    words = [
        "export",
        "onnx",
        models["masked"][1],
        "--output",
        folder,
        "--task",
        "embed",
        "--int8",
        "--names",
        names_file,
    ]
    done = subprocess.run(
        [sys.executable, "-m", "domain_canine", *words], cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder, done


@pytest.fixture(scope="module")
def exported(models, names_file, embedder, tmp_path_factory):
    """Task -> folder of its export, made once."""
    root, made = tmp_path_factory.mktemp("exported"), {"embed": embedder[0]}

    def of(task):
        if task not in made:
            # Those of fill-mask and classify are found by the checkpoint.
            words = ["--task", "score"] if task == "score" else []
            folder = models["classifier" if task == "classify" else "masked"][1]
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(onnx_graphs, "LENGTHS", (4, 9, 62, 126))  # the tests look at others
                assert export(folder, root / task, *words, "--int8", "--names", names_file) == 0
            made[task] = root / task
        return made[task]

    return of


def outputs(path, names: list[str]) -> dict[str, np.ndarray]:
    session = onnxruntime.InferenceSession(path)
    ids = encode(names, torch.device("cpu"))
    given = {"input_ids": ids.numpy(), "attention_mask": (ids != 0).long().numpy()}
    return dict(zip([each.name for each in session.get_outputs()], session.run(None, given)))


@torch.no_grad()
def expected(task, models, name: str) -> dict[str, np.ndarray]:
    """Of one name alone, by PyTorch and the plainest means."""
    model = models["classifier" if task == "classify" else "masked"][0]
    ids = encode([name], torch.device("cpu"))
    if task in ("fill-mask", "classify"):
        return {"logits": model(ids).logits[0].numpy()}
    if task == "embed":
        return {"embedding": model.canine(ids).last_hidden_state[0, 1:-1].mean(0).numpy()}
    [score] = score_names(model, [name], orders=0)
    return {"log_probabilities": np.array([0.0, *score.characters, 0.0]), "score": np.array(score.log_probability)}


@pytest.mark.parametrize("task", export_onnx.TASKS)
def test_a_graph_gives_what_pytorch_gives_for_each_name_alone(task, models, exported):
    """One name, several, and some that are longer than a window beside a short one."""
    path = exported(task) / export_onnx.GRAPH
    for names in (["a.bc"], NAMES[:20], ["abc.de", *LONG[1 : 3 if task == "score" else None]], LONG[-1:]):
        found = outputs(path, names)
        for i, name in enumerate(names):
            for output, values in expected(task, models, name).items():
                mine = found[output][i]
                if output in ("log_probabilities",) or (output == "logits" and task == "fill-mask"):
                    beyond, mine = mine[len(name) + 2 :], mine[: len(name) + 2]
                    assert task == "fill-mask" or not beyond.any()
                assert mine.shape == values.shape
                assert np.abs(mine - values).max() <= 1e-4, (task, output, len(name))


def test_windows_by_a_mask_are_the_windows(config):
    """Windows full, half full, and without a real key."""
    layer = DomainCanineLayer(config, window=128).eval()
    states = torch.randn(4, 300, config.hidden_size)
    mask = torch.arange(300) < torch.tensor([300, 129, 128, 5])[:, None]
    for attention in ("sdpa", "eager"):
        config._attn_implementation = attention
        with torch.no_grad():
            cut, by_mask = layer._windows(states, mask)[0], layer._windows_by_mask(states, mask)[0]
        assert (cut - by_mask).abs().max() <= 1e-5
    assert not by_mask[3, 128:].any()


def test_embeddings_of_cls_and_of_length_1(models):
    encoder = models["masked"][0].canine
    ids = encode(["example.com", "a.de"], torch.device("cpu"))
    mask = (ids != 0).long()
    with torch.no_grad():
        states = encoder(ids).last_hidden_state
        [cls] = onnx_graphs.Embed(encoder, "cls")(ids, mask)
        [unit] = onnx_graphs.Embed(encoder, "mean", normalize=True)(ids, mask)
    assert torch.equal(cls, states[:, 0])
    assert torch.allclose(unit[1], torch.nn.functional.normalize(states[1, 1:5].mean(0), dim=0), atol=1e-6)


def test_the_folder_holds_what_is_told(exported):
    folder = exported("fill-mask")
    assert {path.name for path in folder.iterdir()} >= {"config.json", "tokenizer_config.json", "model_int8.onnx"}
    assert not [path for path in folder.parent.iterdir() if path.name.startswith(".")]
    assert (folder / "model_int8.onnx").stat().st_size < 0.5 * (folder / "model.onnx").stat().st_size
    dims = [each.type.tensor_type.shape.dim for each in onnx.load(folder / "model.onnx").graph.output]
    assert [[dim.dim_param or dim.dim_value for dim in each] for each in dims] == [["batch", "length", 128]]


def test_nothing_but_the_lines_about_the_result_is_said(embedder):
    _, done = embedder
    assert done.stdout == ""
    first, second, third, fourth = done.stderr.splitlines()
    assert re.fullmatch(
        r".*/embed/model\.onnx: [\d.]+ MB, input_ids, attention_mask \(batch, length\) -> embedding", first
    )
    found = re.fullmatch(
        r"  differs from PyTorch by (\S+) at most, over 39 shapes of 1 to 64 names, 4 to 253 .*", second
    )
    assert 0 < float(found[1]) <= 1e-4
    assert re.fullmatch(r".*/embed/model_int8\.onnx: [\d.]+ MB", third)
    assert re.fullmatch(r"  on 60 names: cosine between both 0\.9\d+ in the mean, 0\.\d+ at least", fourth)


def test_the_cost_of_8_bits_is_that_of_the_masked_characters(models, exported):
    """Before as PyTorch has it, and after nothing where the files are the same."""
    model, folder = models["masked"][0], exported("fill-mask")
    graph, sums = onnx_graphs.FillMask(model), torch.zeros(len(SUMS), dtype=torch.float64)
    for name in NAMES:
        ids = encode([name], torch.device("cpu"))
        batch = DataCollatorForCodePointMasking().for_evaluation()([{"input_ids": ids[0]}])
        with torch.no_grad():
            logits = model(batch["input_ids"], masked_positions=batch["masked_positions"]).logits
        sums += masked_sums(logits, batch["labels"], suffix_positions(batch))
    told = figures(sums)
    exact, rounded = folder / "model.onnx", folder / "model_int8.onnx"
    before, after = (
        [float(each) for each in re.findall(r"\d+\.\d+", onnx_int8.cost(graph, exact, path, NAMES))]
        for path in (exact, rounded)
    )
    expected = [told["perplexity"]] * 2 + [100 * told["accuracy"]] * 2
    assert before == pytest.approx(expected, rel=1e-4, abs=0.01)
    assert after[0] == before[0] and after[1] != before[1] and after[2] == before[2]


def test_the_cost_of_8_bits_of_scores_and_labels(models, exported):
    paths = {
        task: (exported(task) / "model.onnx", exported(task) / "model_int8.onnx") for task in ("score", "classify")
    }
    # As many as are run together: in 8 bits a name's outputs depend on its batch mates, which share a scale.
    names = NAMES[:4]
    found = [outputs(path, names)["score"] for path in paths["score"]]
    bits = np.abs(found[1] - found[0]) / np.log(2) / [len(name) for name in names]
    told = onnx_int8.cost(onnx_graphs.Score(models["masked"][0]), *paths["score"], names)
    numbers = [float(each) for each in re.findall(r"\d\.\d+", told)]
    assert numbers == pytest.approx([bits.mean(), bits.max()], abs=1e-4) and bits.mean() > 0
    names = NAMES[: onnx_int8.BATCH]
    found = [torch.from_numpy(outputs(path, names)["logits"]).softmax(-1) for path in paths["classify"]]
    same = (found[0].argmax(-1) == found[1].argmax(-1)).double().mean().item()
    worst = (found[0] - found[1]).abs().max().item()
    told = onnx_int8.cost(onnx_graphs.Classify(models["classifier"][0]), *paths["classify"], names)
    share, difference = re.fullmatch(r"(\S+)% of the predictions are the same, .* by (\S+) at most", told).groups()
    assert float(share) == pytest.approx(100 * same, abs=0.01) and float(difference) == pytest.approx(worst, abs=1e-4)


@pytest.mark.parametrize("wrong", ["weights", "shape", "nan"])
def test_a_wrong_graph_is_refused_and_leaves_nothing(wrong, models, exported, tmp_path, monkeypatch):
    """Of other weights, by a little; for one length alone; of no numbers. An earlier export stays."""
    model = DomainCanineForMaskedLM.from_pretrained(models["masked"][1])
    made = onnx.load(exported("fill-mask") / "model.onnx")
    if wrong == "weights":
        model.lm_head.decoder.bias.data[97] += 2e-4
    elif wrong == "shape":
        for value in made.graph.input:
            value.type.tensor_type.shape.dim[1].dim_value = 9
    else:
        model.lm_head.decoder.bias.data[97] = float("nan")
    model.save_pretrained(tmp_path / "model")
    monkeypatch.setattr(onnx_graphs, "export", lambda graph, path: onnx.save(made, path))
    with pytest.raises(UserError, match=r"not as PyTorch for \d+ names of \d+ characters"):
        export(tmp_path / "model", tmp_path / "new" / "out")
    assert not list((tmp_path / "new").iterdir())
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "model.onnx").write_text("mine")
    with pytest.raises(UserError, match="not as PyTorch"):
        export(tmp_path / "model", tmp_path / "old", "--overwrite")
    assert [path.name for path in (tmp_path / "old").iterdir()] == ["model.onnx"]
    assert (tmp_path / "old" / "model.onnx").read_text() == "mine"


def test_a_signal_leaves_nothing(models, exported, tmp_path, monkeypatch):
    made = onnx.load(exported("fill-mask") / "model.onnx")
    monkeypatch.setattr(onnx_graphs, "export", lambda graph, path: onnx.save(made, path))
    monkeypatch.setattr(onnx_graphs, "check", lambda graph, path: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Stopped):
        export(models["masked"][1], tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_overwrite_replaces_an_export_and_nothing_else(models, exported, tmp_path, monkeypatch):
    made = onnx.load(exported("fill-mask") / "model.onnx")
    monkeypatch.setattr(onnx_graphs, "export", lambda graph, path: onnx.save(made, path))
    monkeypatch.setattr(onnx_graphs, "LENGTHS", (4, 9))
    out = tmp_path / "out"
    assert export(models["masked"][1], out) == 0
    (out / "model_int8.onnx").write_text("of an earlier model")
    with pytest.raises(UserError, match="exists; add --overwrite"):
        export(models["masked"][1], out)
    assert export(models["masked"][1], out, "--overwrite") == 0
    assert not (out / "model_int8.onnx").exists() and (out / "config.json").exists()
    for there in (["mine.txt"], ["model.onnx", "model.safetensors"], ["model.onnx", "runs/best/mine.txt"]):
        other = tmp_path / there[-1].replace("/", "-")
        for name in there:
            (other / name).parent.mkdir(parents=True, exist_ok=True)
            (other / name).write_text("mine")
        with pytest.raises(UserError, match="no export of this program"):
            export(models["masked"][1], other, "--overwrite")
        assert {path.read_text() for path in other.rglob("*") if path.is_file()} == {"mine"}


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["masked", "--task", "classify"], "has no head for labels"),
        (["classifier", "--task", "fill-mask"], "has no head for masked characters"),
        (["classifier", "--task", "score"], "has no head for masked characters"),
        (["./nomodel"], "there is no model folder './nomodel'"),
        (["masked", "--task", "summary"], "invalid choice: 'summary'"),
        (["masked", "--pooling", "cls"], "--pooling is for --task embed"),
        (["masked", "--normalize"], "--normalize is for --task embed"),
        (["masked", "--names", "a.txt"], "--names is for --int8"),
        (["masked", "--int8", "--names", "nofile.txt"], "there is no file or folder 'nofile.txt'"),
        (["masked", "--int8", "--names", "empty.txt"], "--names 'empty.txt' holds no valid domain name"),
    ],
)
def test_mistakes_are_one_message(models, tmp_path, monkeypatch, words, told):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.txt").write_text("none\n")
    folder, *words = words
    with pytest.raises(UserError, match=re.escape(told)):
        export(models[folder][1] if folder in models else folder, tmp_path / "out", *words)
    assert {path.name for path in tmp_path.iterdir()} == {"empty.txt"}


def test_packages_that_will_not_do_are_told(models, tmp_path, monkeypatch):
    version, find = check._version, export_onnx.find_spec
    others = {"onnxscript": None, "torch": "2.12.1", "onnxruntime": None}  # the last by another name
    monkeypatch.setattr(check, "_version", lambda name: others.get(name, version(name)))
    monkeypatch.setattr(export_onnx, "find_spec", lambda name: None if name == "onnxscript" else find(name))
    told = "will not do with torch 2.12.1, onnxscript not installed: pip install 'torch>=2.13' 'onnxscript>=0.7'$"
    with pytest.raises(UserError, match=told):
        export(models["masked"][1], tmp_path / "out")


def test_its_packages_are_those_of_the_extra():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert extras["onnx"] == list(export_onnx.PACKAGES)


def test_shapes_reach_from_short_to_long_and_from_one_to_many(models):
    model = models["masked"][0]
    for graph in (onnx_graphs.FillMask(model), onnx_graphs.Score(model)):
        shapes = list(onnx_graphs.shapes_of(graph))
        assert (64, 5 if graph.rows else 253) in shapes
        names, characters = zip(*shapes)
        assert min(names) == 1 and max(names) == 64 and min(characters) == 4 and max(characters) == 253
        assert {each % 4 for each in characters} == {0, 1, 2, 3} and {126, 253} <= set(characters)
    ids, mask = onnx_graphs.random_names(7, 30, torch.Generator().manual_seed(0), onnx_graphs.FillMask(model))
    assert (ids[:, 0] == 0xE000).all() and ((ids == 0xE001).sum(1) == 1).all()
    assert (ids == 0xE003).any() and ((ids != 0) == (mask == 1)).all() and (ids == 0).sum() > 0


def test_the_example_of_the_docs_runs_where_this_package_is_not_installed(models, exported, tmp_path):
    [example] = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "export.md").read_text(), re.S)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "onnx").symlink_to(exported("fill-mask"))
    done = subprocess.run(
        [sys.executable, "-c", "import sys; sys.modules['domain_canine'] = None\n" + example], cwd=tmp_path,
        capture_output=True, text=True, env={"PATH": "/usr/bin:/bin", "HF_HUB_OFFLINE": "1", "HOME": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    best = []
    for name in ("exam?le.com", "a-longer-na?e.co.uk"):
        ids = encode([name], torch.device("cpu"))
        at = name.index("?") + 1
        ids[0, at] = 0xE003
        with torch.no_grad():
            best.append(chr(models["masked"][0](ids).logits[0, at].argmax()))
    assert done.stdout.split("\n") == [*best, ""]


def test_the_benchmark_tells_all_sides(capsys, monkeypatch):
    monkeypatch.setitem(inference.SIZES, "tiny", SMALL | {"num_hidden_layers": 1})
    arguments = ["--size", "tiny", "--count", "64", "--batch", "16", "--rounds", "1", "--json"]
    assert inference.main(arguments) == 0
    said = capsys.readouterr()
    found = json.loads(said.out.splitlines()[-1])
    sides = ("pytorch", "onnx", "onnx_int8", "score", "score_bf16")
    assert all(found[f"{side}_names_per_s"] > 0 and found[f"{side}_ratio"] > 0 for side in sides)
    for side, stock in zip(sides, ["stock"] * 3 + ["stock_score"] * 2):
        ratio = found[f"{side}_names_per_s"] / found[f"{stock}_names_per_s"]
        assert found[f"{side}_ratio"] == pytest.approx(ratio, rel=0.05)
    assert all(found[f"{side}_differs_by"] <= 1e-3 for side in ("onnx", "stock", "stock_score"))
    assert 0 < found["score_bf16_mean"] < found["score_bf16_max"] < found["score_bf16_spread"]
    assert "score_ratio" in said.err
