"""Checkpoints load with stock calls where this package is not installed."""

import json
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from domain_canine import DomainCanineForMaskedLM, DomainCanineModel, checkpoints
from domain_canine.arguments import ModelArguments
from domain_canine.classifier import build_classifier
from domain_canine.classify_arguments import ClassifierArguments
from domain_canine.configuration_domain_canine import AUTO_MAP
from domain_canine.errors import UserError
from domain_canine.pretrained import SIZES, build_model, build_tokenizer, is_classifier, load_model

# Runs away from the repository, with the package's name blocked; prints one JSON object.
STRANGER = """
import json, sys
sys.modules["domain_canine"] = None
folder = sys.argv[1]
import torch
from transformers import (AutoConfig, AutoModel, AutoModelForMaskedLM, AutoModelForSequenceClassification,
                          AutoTokenizer, CanineForSequenceClassification, CanineModel, pipeline)
from transformers.utils import logging
logging.disable_progress_bar()
logging.set_verbosity_error()
told = {}
trust = {"trust_remote_code": True}
told["config"] = type(AutoConfig.from_pretrained(folder, **trust)).__name__
tokenizer = AutoTokenizer.from_pretrained(folder, **trust)
told["tokenizer"] = type(tokenizer).__name__
model, loaded = AutoModelForMaskedLM.from_pretrained(folder, output_loading_info=True, **trust)
told["masked"] = [type(model).__name__, len(loaded["missing_keys"]), len(loaded["unexpected_keys"])]
inputs = tokenizer("exam[MASK]le.com", return_tensors="pt")
told["logits"] = model.eval()(**inputs).logits[0, 5, 97:123].tolist()
told["encoder"] = type(AutoModel.from_pretrained(folder, **trust)).__name__
told["classifier"] = type(AutoModelForSequenceClassification.from_pretrained(folder, num_labels=3, **trust)).__name__
fill = pipeline("fill-mask", model=folder, **trust)
told["fill"] = fill("exam[MASK]le.com")
told["top_1"] = fill("exam[MASK]le.com", top_k=1)
told["several"] = [[each["token_str"] for each in row] for row in fill("e[MASK]am[MASK]le.com", top_k=2)]
told["targets"] = fill("exam[MASK]le.com", targets=["p", "b"])
told["batch"] = [row[0]["token_str"] for row in fill(["exam[MASK]le.com", "a-much-longer-name[MASK].co.uk"], batch_size=2)]
told["alone"] = [fill(name)[0]["token_str"] for name in ["exam[MASK]le.com", "a-much-longer-name[MASK].co.uk"]]
# And the encoder without any code of ours.
stock, loaded = AutoModel.from_pretrained(folder, output_loading_info=True)
told["stock"] = [type(stock).__name__, sorted(k for k in loaded["missing_keys"] if "pooler" not in k)]
told["stock_class"] = type(CanineModel.from_pretrained(folder)).__name__
told["stock_classifier"] = type(CanineForSequenceClassification.from_pretrained(folder)).__name__
print(json.dumps(told))
"""


def ask_stranger(folder, tmp_path) -> dict:
    script = tmp_path / "stranger.py"
    script.write_text(STRANGER)
    environment = {
        "PATH": "/usr/bin:/bin",
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(tmp_path / "hf"),
        "HOME": str(tmp_path),
    }
    done = subprocess.run(
        [sys.executable, "-I", str(script), str(folder)], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_a_checkpoint_loads_where_the_package_is_not(tmp_path):
    model = build_model(ModelArguments(model_size="tiny")).eval()
    tokenizer = build_tokenizer(model, 128)
    folder = tmp_path / "model"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    told = ask_stranger(folder, tmp_path)
    assert told["config"] == "DomainCanineConfig" and told["tokenizer"] == "DomainCanineTokenizer"
    assert told["masked"] == ["DomainCanineForMaskedLM", 0, 0]
    assert told["encoder"] == "DomainCanineModel" and told["classifier"] == "DomainCanineForSequenceClassification"
    with torch.no_grad():
        ours = model(**tokenizer("exam[MASK]le.com", return_tensors="pt")).logits[0, 5, 97:123]
    assert torch.allclose(torch.tensor(told["logits"]), ours, atol=1e-5)
    assert len(told["fill"]) == 5 and len(told["top_1"]) == 1
    best = told["fill"][0]
    assert best["token_str"] == chr(best["token"]) and best["sequence"] == f"exam{best['token_str']}le.com"
    assert [len(row) for row in told["several"]] == [2, 2]
    assert {each["token_str"] for each in told["targets"]} == {"p", "b"}
    assert told["batch"] == told["alone"]
    assert told["stock"] == ["CanineModel", []] and told["stock_class"] == "CanineModel"
    assert told["stock_classifier"] == "CanineForSequenceClassification"


def test_shipped_files_stand_alone(tmp_path):
    """Only torch, transformers and the standard library; ours by ``from .name import``."""
    import ast

    from conftest import ROOT

    allowed = {"torch", "transformers"} | set(sys.stdlib_module_names)
    shipped = sorted((ROOT / "domain_canine").glob("*_domain_canine.py"))
    assert len(shipped) >= 4
    for path in shipped:
        tree = ast.parse(path.read_text())
        tried = {node for each in ast.walk(tree) if isinstance(each, ast.Try) for node in ast.walk(each)}
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.level:
                assert node.level == 1 and node.module.endswith("_domain_canine"), path
            elif isinstance(node, (ast.Import, ast.ImportFrom)) and node not in tried:
                modules = [node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
                assert {module.split(".")[0] for module in modules} <= allowed, path


def test_auto_map_names_what_is_there():
    import domain_canine.configuration_domain_canine as configuration
    import domain_canine.modeling_domain_canine as modeling

    for target in AUTO_MAP.values():
        module, name = target.split(".")
        assert hasattr({"modeling_domain_canine": modeling, "configuration_domain_canine": configuration}[module], name)


def test_sizes_are_as_documented():
    counts = {}
    for size in ("tiny", "small"):
        counts[size] = sum(p.numel() for p in build_model(ModelArguments(model_size=size)).canine.parameters())
    assert 1.7e6 < counts["tiny"] < 1.75e6 and 6.5e6 < counts["small"] < 6.7e6
    assert SIZES["base"] == {}


def test_overrides_and_the_mask_reach_the_config():
    model = build_model(
        ModelArguments(
            model_size="tiny", config_overrides="hidden_dropout_prob=0,num_hidden_layers=1,hidden_act=relu",
            mask_code_point="U+E000",
        )
    )  # fmt: skip
    config = model.config
    assert (config.hidden_dropout_prob, config.num_hidden_layers, config.hidden_act) == (0.0, 1, "relu")
    assert config.mask_code_point == 0xE000 == build_tokenizer(model, 128).mask_token_id
    for wrong in (
        "layers=1",
        "num_hidden_layers",
        "num_hidden_layers=many",
        "hidden_size=100",
        "hidden_act=none",
        "num_hidden_layers=-1",
        "num_hidden_layers=1.7",
        "mask_code_point=97",
        "num_attention_heads=0",
        "num_hash_functions=32",
        "num_hash_buckets=16",
        "vocab_size=64",
    ):
        with pytest.raises(UserError, match="--config_overrides"):
            build_model(ModelArguments(model_size="tiny", config_overrides=wrong))


def test_what_is_no_canine_is_refused(tmp_path, model):
    with pytest.raises(UserError, match="there is no model folder"):
        load_model(str(tmp_path / "missing"))
    with pytest.raises(UserError, match="(?s)cannot load the model 'some/model'.*--model_size"):
        load_model("some/model")
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(UserError, match="is no CANINE but of the type bert"):
        load_model(str(tmp_path / "bert"))
    model.save_pretrained(tmp_path / "ours")
    shutil.copy(tmp_path / "bert" / "config.json", tmp_path / "empty.json")
    (tmp_path / "ours" / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(UserError, match="cannot load the model"):
        load_model(str(tmp_path / "ours"))


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ([], "describes no model"),
        ({"hidden_size": "x"}, "'hidden_size' expected int, got str"),
        ({"num_hidden_layers": None}, "'num_hidden_layers' expected int, got NoneType"),
        ({"num_attention_heads": 5}, "hidden_size 64 is no multiple of num_attention_heads 5"),
        ({"num_attention_heads": 0}, "num_attention_heads must be at least 1, not 0"),
        ({"hidden_act": "nope"}, "there is no hidden_act 'nope'; one of .*gelu"),
        ({"dtype": "nope"}, "no attribute 'nope'"),
        ({"mask_code_point": None}, "mask_code_point is None, not a value of the type int"),
        ({"local_transformer_stride": 0}, "local_transformer_stride must be at least 1, not 0"),
        ({"id2label": 5}, "describes no model"),
    ],
)
def test_a_config_that_describes_no_model_is_one_message(tmp_path, model, changed, told):
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **changed} if isinstance(changed, dict) else changed))
    for kind in (DomainCanineForMaskedLM, DomainCanineModel):
        with pytest.raises(UserError, match=f"config.json of .*{told}"):
            load_model(str(tmp_path), kind=kind)
    assert not is_classifier(str(tmp_path))


def test_a_checkpoint_without_a_weight_of_the_encoder_is_refused(tmp_path, model):
    from safetensors.torch import load_file, save_file

    model.save_pretrained(tmp_path / "ours")
    state = load_file(tmp_path / "ours" / "model.safetensors")
    del state["canine.projection.conv.weight"]
    save_file(state, tmp_path / "ours" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="lacks 1 weights of the encoder, canine.projection.conv.weight"):
        load_model(str(tmp_path / "ours"))


def test_a_classifier_of_a_pretrained_folder_stands_on_what_was_trained(tmp_path):
    build_model(ModelArguments(model_size="tiny")).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["pooling"] == "mean"


def test_an_onnx_export_is_told_to_be_one(tmp_path, model):
    model.config.save_pretrained(tmp_path)
    (tmp_path / "model.onnx").touch()
    with pytest.raises(UserError, match="It is an ONNX export: give the folder that it was made of"):
        load_model(str(tmp_path))


def test_what_is_wrong_with_a_folder_is_told_of_the_folder(tmp_path, model):
    model.save_pretrained(tmp_path / "whole")
    (tmp_path / "whole" / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(UserError, match="The folder is damaged, or not the whole of it") as told:
        load_model(str(tmp_path / "whole"))
    assert "network" not in str(told.value)
    model.save_pretrained(tmp_path / "run" / "checkpoint-5")
    checkpoints.seal(tmp_path / "run" / "checkpoint-5")
    with pytest.raises(UserError, match="holds no model .*, but checkpoints: give '.*run/checkpoint-5', the newest"):
        load_model(str(tmp_path / "run"))
    (tmp_path / "names.csv").write_text("domain\na.com\n")
    with pytest.raises(UserError, match="names.csv' is a file; a model is a folder"):
        load_model(str(tmp_path / "names.csv"))
    with pytest.raises(UserError, match="there is no model folder 'no/such/run'"):
        load_model("no/such/run")
    with pytest.raises(UserError, match="No folder here has that name. Of the Hub, check"):
        load_model("no/run")


def test_a_trained_model_is_continued_with_its_head(tmp_path, model):
    model.save_pretrained(tmp_path / "ours")
    again = load_model(str(tmp_path / "ours"))
    assert isinstance(again, DomainCanineForMaskedLM)
    assert torch.equal(again.lm_head.decoder.weight, model.lm_head.decoder.weight)


@pytest.mark.parametrize("objective", ["mlm", "any_order"])
def test_another_objective_than_a_model_had_is_told(tmp_path, model, objective, capsys):
    model.config.objective = "any_order"
    model.save_pretrained(tmp_path)
    assert build_model(ModelArguments(model_name_or_path=str(tmp_path)), objective).config.objective == objective
    told = capsys.readouterr().err
    assert ("was trained with --objective" in told) == (objective == "mlm")
    assert objective == "any_order" or "any_order, not mlm" in told


def test_a_checkpoint_of_bf16_is_trained_in_fp32(tmp_path, model):
    """A rate of 1e-5 moves few weights of bf16, and a GPU's recorded gradients are of fp32."""
    model.bfloat16().save_pretrained(tmp_path)
    asked = ClassifierArguments(model_name_or_path=str(tmp_path))
    data = SimpleNamespace(classes=["bad", "good"])
    for trained in build_model(ModelArguments(model_name_or_path=str(tmp_path))), build_classifier(asked, data):
        assert {each.dtype for each in trained.parameters()} == {torch.float32}
        assert trained.config.dtype == torch.float32
    assert {each.dtype for each in load_model(str(tmp_path)).parameters()} == {torch.bfloat16}


def test_the_mask_of_a_checkpoint_stays_unless_another_is_asked_for(tmp_path, model):
    model.config.mask_code_point = 0xE000
    model.save_pretrained(tmp_path / "ours")
    for asked, expected in ((None, 0xE000), ("U+E003", 0xE003)):
        again = build_model(ModelArguments(model_name_or_path=str(tmp_path / "ours"), mask_code_point=asked))
        assert again.config.mask_code_point == expected
