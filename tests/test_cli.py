"""``python -m domain_canine check``, ``prepare`` and ``fill``."""

import json
import subprocess
import sys
import tomllib

import pytest
import torch
from conftest import ROOT

from domain_canine import DomainCanineModel, check, cli, normalize_domain
from domain_canine.errors import UserError
from domain_canine.fill import CHARACTERS, fill, parse_pattern
from domain_canine.pretrained import build_tokenizer


@pytest.fixture
def folder(model, tmp_path):
    model.save_pretrained(tmp_path / "model")
    build_tokenizer(model, 128).save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


@pytest.mark.parametrize(
    ("pattern", "name", "positions"),
    [
        ("exam?le.com", "examxle.com", [4]),
        ("EXAM[MASK]LE.com", "examxle.com", [4]),
        ("?[MASK]?.de", "xxx.de", [0, 1, 2]),
        (" a?.?? ", "ax.xx", [1, 3, 4]),
        ("exampl?.?om.", "examplx.xom", [6, 8]),
    ],
)
def test_patterns(pattern, name, positions):
    assert parse_pattern(pattern) == (name, positions)


@pytest.mark.parametrize(
    ("pattern", "told"),
    [
        ("example.com", "nothing to fill"),
        ("exam?le", "one label"),
        ("exam ?le.com", "bad character"),
        ("-?.com", "bad label"),
        ("m?nchün.de", "xn-- form"),
        ("exampl?.c..", "bad label"),
        ("", "nothing to fill"),
    ],
)
def test_patterns_that_cannot_become_names(pattern, told):
    with pytest.raises(UserError, match=told):
        parse_pattern(pattern)


def test_masks_are_revealed_one_by_one_in_order_of_confidence(model):
    filled = fill(model, "e?am??e.com", top_k=3)
    assert len(filled.name) == 11 and filled.name[0] == "e" and filled.name.endswith("e.com")
    assert sorted(position for position, _ in filled.steps) == [1, 4, 5]
    # By hand: the surest position first, then again with it revealed.
    ids = torch.tensor([[0xE000, *map(ord, "e"), 0xE003, *map(ord, "am"), 0xE003, 0xE003, *map(ord, "e.com"), 0xE001]])
    allowed = [ord(letter) for letter in CHARACTERS]
    left = [2, 5, 6]
    with torch.no_grad():
        for position, candidates in filled.steps:
            probabilities = model(ids).logits[0].softmax(-1)[:, allowed]
            surest = max(left, key=lambda p: probabilities[p].max().item())
            assert surest == position + 1
            best = probabilities[surest].topk(3)
            assert [CHARACTERS[i] for i in best.indices.tolist()] == [character for character, _ in candidates]
            assert candidates[0][1] == pytest.approx(best.values[0].item(), abs=1e-5)
            ids[0, surest] = ord(candidates[0][0])
            left.remove(surest)
    assert filled.name == "".join(map(chr, ids[0, 1:-1].tolist()))


def test_only_valid_names_come_out(model):
    with torch.no_grad():
        model.lm_head.decoder.bias[ord("-")] = 100.0
        model.lm_head.decoder.bias[ord(".")] = 90.0
    for pattern in ("?ab?.com", "a?b", "a??b.de", "ab.?", "??.??"):
        if "." not in pattern:
            with pytest.raises(UserError):
                fill(model, pattern)
            continue
        name = fill(model, pattern).name
        assert normalize_domain(name) == name
    assert fill(model, "a??b.de").name == "a--b.de"


def test_fill_prints_a_table_or_json(folder, capsys):
    assert cli.main(["fill", folder, "exam?le.com", "a?.de", "--top_k", "2"]) == 0
    said = capsys.readouterr().out
    assert said.count(" -> ") == 2 and "character  5:" in said and "%" in said
    assert cli.main(["fill", folder, "exam?le.com", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["pattern"] == "exam?le.com" and len(told["steps"][0]["candidates"]) == 5


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["fill"], "required: model"),
        (["fil"], "invalid choice: 'fil'"),
        (["fill", "{folder}", "a?.de", "--top_k", "0"], "--top_k must be at least 1"),
        (["fill", "{folder}", "example.com"], "nothing to fill"),
        (["fill", "./missing", "a?.de"], "no model folder"),
        ([], "required: command"),
    ],
)
def test_mistakes(folder, arguments, told):
    with pytest.raises(UserError, match=told):
        cli.main([argument.format(folder=folder) for argument in arguments])


def test_a_model_without_a_trained_head_is_refused(tmp_path, config):
    DomainCanineModel(config).save_pretrained(tmp_path / "encoder")
    with pytest.raises(UserError, match="has no head for masked characters"):
        cli.main(["fill", str(tmp_path / "encoder"), "a?.de"])
    (tmp_path / "nothing").mkdir()
    with pytest.raises(UserError, match="holds no model"):
        cli.main(["fill", str(tmp_path / "nothing"), "a?.de"])


def test_check_names_a_folder_that_a_run_would_refuse(tmp_path, folder, names_file, capsys):
    arguments = ["check", "--dataset", str(names_file), "--model", folder, "--output_dir", str(names_file.parent)]
    assert cli.main(arguments) == 1
    assert "is not empty and not a run of this program" in capsys.readouterr().out
    assert cli.main([*arguments[:-1], "x" * 300]) == 1
    said = capsys.readouterr().out
    assert "is no path" in said and "-> give another --output_dir" in said


def test_check_passes_here(folder, names_file, tmp_path, capsys):
    status = cli.main(["check", "--dataset", str(names_file), "--model", folder, "--output_dir", str(tmp_path / "new")])
    said = capsys.readouterr().out
    assert status == 0 and "FAIL" not in said
    for row in ("python", "torch", "numpy", "device", "precision", "output", "data", "model"):
        assert f" {row} " in said
    assert not (tmp_path / "new").exists()


def test_check_names_the_remedy_of_each_failure(monkeypatch, capsys, tmp_path):
    versions = {"numpy": "2.1.0", "torch": None, "pyarrow": "26.0.0", "transformers": "5.23.0", "accelerate": "1.15.0"}
    monkeypatch.setattr(check, "_version", lambda name: versions.get(name, "99"))
    status = cli.main(["check", "--dataset", "missing.txt", "--model", "./missing", "--output_dir", str(tmp_path)])
    said = capsys.readouterr().out
    assert status == 1
    for part in ("numpy            2.1.0", "pip install 'numpy<2.0,>=1.26'", "torch            not installed",
                 "pip install 'pyarrow<26,>=15'", "no file or folder 'missing.txt'",
                 "no model folder './missing'"):  # fmt: skip
        assert part in said, (part, said)
    assert "  ok  transformers" in said


# A process that has none of these modules; prints what of PyTorch and transformers it has loaded in the end.
WITHOUT = """
import sys
for name in sys.argv.pop(1).split(","):
    sys.modules[name] = None
from domain_canine import cli
try:
    status = cli.main(sys.argv[1:])
except cli.UserError as error:
    status = f"error: {error}"
loaded = {"numpy", "torch", "transformers"} & {name for name, module in sys.modules.items() if module}
print(status, *sorted(loaded))
"""


def ask_without(modules, *arguments):
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, modules, *arguments], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_check_tells_what_is_missing_where_next_to_nothing_is_there(tmp_path):
    modules = "torch,transformers,numpy,pyarrow,huggingface_hub,accelerate,requests,psutil,yaml,tqdm,filelock,idna"
    said = ask_without(modules, "check", "--dataset", "sample", "--output_dir", str(tmp_path / "new"))
    for row in ("device", "output", "data", "model"):
        assert any(line.startswith(f"FAIL  {row} ") and "not seen: import of" in line for line in said), said
    assert said[-1] == "1"


def test_a_command_names_the_module_that_is_missing(tmp_path):
    [told] = ask_without("numpy", "prepare", "sample", "--output", str(tmp_path / "out"))
    assert told.startswith("error: numpy is not installed in ") and "pip install -r requirements.txt" in told


@pytest.mark.parametrize(
    ("name", "kind"), [("idna", UserError), (None, ModuleNotFoundError), ("domain_canine.x", ModuleNotFoundError)]
)
def test_what_is_broken_is_not_told_to_be_missing(monkeypatch, name, kind):
    def broken(*given):
        raise ModuleNotFoundError("no module", name=name)

    monkeypatch.setattr(cli, "check_command", broken)
    with pytest.raises(kind):
        cli.main(["check"])


def test_a_command_does_its_work_where_standard_error_is_closed(tmp_path):
    command = f"{sys.executable} -m domain_canine prepare sample --num_samples 100 --output {tmp_path / 'out'} 2>&-"
    assert subprocess.run(command, shell=True, cwd=ROOT).returncode == 0
    assert (tmp_path / "out" / "manifest.json").is_file()


def test_libraries_that_are_imported_later_are_quiet_too():
    code = (
        "import logging, os\nos.environ.pop('HF_HUB_VERBOSITY', 0)\n"
        "from domain_canine.quiet import silence_libraries\nsilence_libraries()\n"
        "import datasets, huggingface_hub.utils.logging, transformers\n"
        "for name in 'huggingface_hub', 'datasets', 'httpx', 'accelerate', 'transformers.trainer_utils':\n"
        "    assert logging.getLogger(name).getEffectiveLevel() == logging.ERROR, name\n"
        "assert not transformers.utils.logging.is_progress_bar_enabled()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_names_are_prepared_without_pytorch(tmp_path):
    """It takes seconds to import, and 0.3 GB of what --memory leaves, with CUDA 0.5."""
    *_, loaded = ask_without("", "prepare", "sample", "--num_samples", "100", "--output", str(tmp_path / "out"))
    assert loaded == "0 numpy"


def test_the_ranges_are_those_of_the_package():
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    assert sorted(wanted) == sorted(check.RANGES)


def test_prepare_says_what_became_of_the_lines_and_what_to_do_next(tmp_path, names_file, capsys):
    (tmp_path / "more.csv").write_text("rank,host\n1,example.com\n2,no name\n3,EXAMPLE.com\n")
    out = str(tmp_path / "out")
    inputs = ["prepare", str(names_file), str(tmp_path / "more.csv"), "--output", out]
    with pytest.raises(UserError, match="columns rank, host; name one with --dataset_column"):
        cli.main(inputs)
    assert sorted(path.name for path in tmp_path.glob("out*")) == []
    arguments = [*inputs, "--column", "host", "--validation_split", "0.2", "--memory", "1"]
    assert cli.main(arguments) == 0
    said = capsys.readouterr()
    assert "203 lines read: kept 201, duplicate 1, bad character 1" in said.err
    assert "not used: more.csv, line 3: 'no name' (bad character)" in said.err
    assert f"for validation; train with --dataset {out}" in said.out
    assert cli.main(arguments) == 0 and "nothing to do" in capsys.readouterr().err
    assert cli.main(["check", "--dataset", out, "--model", "./missing", "--output_dir", str(tmp_path)]) == 1
    assert "prepared, 201 names" in capsys.readouterr().out
    assert (
        cli.main(["prepare", "sample", "--output", str(tmp_path / "few"), "--num_samples", "300", "--seed", "3"]) == 0
    )
    assert "300 lines read: kept 300" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--memory", "0.5"], "--memory must be at least 1 \\(GB\\), not 0.5"),
        (["--validation_split", "1.5"], "--validation_split must lie between 0 and 1"),
        (["--num_samples", "0"], "--num_samples must be above 0"),
        (["--max_length", "3"], "--max_length must lie between"),
        (["--memory", "lots"], "invalid float value: 'lots'"),
        (["--columns", "x"], "unrecognized arguments"),
    ],
)
def test_prepare_refuses_wrong_flags(tmp_path, flags, told):
    with pytest.raises(UserError, match=told):
        cli.main(["prepare", "sample", "--output", str(tmp_path / "out"), *flags])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--output", ""], "--output is empty"),
        (["--output", "x", "--seed", "-1"], "--seed must be from 0 on"),
        (["--output", "x", "--seed", str(2**64)], "--seed must be from 0 on"),
        (["--output", "x", "--split_seed", str(2**64)], "--split_seed must be from 0 on"),
        (["--output", "x", "--memory", "0.5"], "--memory must be at least 1"),
        (["--output", "/proc/x"], "cannot write the names to '/proc/x': .*; give another folder"),
    ],
)
def test_mistakes_of_prepare_are_told(tmp_path, monkeypatch, flags, told):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=told):
        cli.main(["prepare", "sample", *flags])
    assert not list(tmp_path.iterdir())


def test_a_damaged_folder_is_told_when_it_is_prepared_again(tmp_path, names_file):
    arguments = ["prepare", str(names_file), "--output", str(tmp_path / "out"), "--validation_split", "0.2"]
    assert cli.main(arguments) == 0
    shard = tmp_path / "out" / "train" / "data-00000-of-00001.arrow"
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    with pytest.raises(UserError, match="data-00000-of-00001.arrow' is damaged"):
        cli.main(arguments)
