"""README and docs say what the code does: commands parse, defaults are the code's, files exist."""

import re
import shlex

import pytest
from conftest import ROOT

from domain_canine import cli
from domain_canine.arguments import DataArguments, ModelArguments
from domain_canine.classify_arguments import ClassifierArguments, ClassifyDataArguments, ClassifyTrainingArguments
from domain_canine.parser import Parser
from domain_canine.training_arguments import DomainTrainingArguments

DOCUMENTS = [ROOT / "README.md", ROOT / "CLAUDE.md", *sorted((ROOT / "docs").glob("*.md"))]


def commands() -> list[list[str]]:
    """Every command line in a bash block of the documents, continuation lines joined, comments dropped."""
    found = []
    for document in DOCUMENTS:
        for block in re.findall(r"```bash\n(.*?)```", document.read_text(), re.S):
            for line in block.replace("\\\n", " ").splitlines():
                if words := shlex.split(line, comments=True):
                    found.append(words)
    return found


def parser(script="run_mlm_domains.py") -> Parser:
    if script == "run_mlm_domains.py":
        return Parser((ModelArguments, DataArguments, DomainTrainingArguments))
    return Parser((ClassifierArguments, ClassifyDataArguments, ClassifyTrainingArguments))


@pytest.mark.parametrize(("script", "least"), [("run_mlm_domains.py", 6), ("run_classify_domains.py", 3)])
def test_training_commands_parse(script, least):
    lines = [words for words in commands() if script in words]
    assert len(lines) >= least
    for words in lines:
        at = words.index(script)
        for config in [words[i + 1] for i, word in enumerate(words[:at]) if word == "--config_file"]:
            assert (ROOT / config).is_file(), words
        arguments = words[at + 1 :]
        if not arguments or not arguments[0].endswith(".yaml"):
            parser(script).parse(arguments)


def test_other_commands_parse():
    modules = [words[words.index("-m") + 1 :] for words in commands() if "-m" in words]
    ours = [words for words in modules if words[0] == "domain_canine"]
    assert {words[1] for words in ours} == {
        "check", "prepare", "fill", "score", "complete", "classify", "embed", "export", "report",
    }  # fmt: skip
    for words in ours:
        cli.build_parser().parse_args(words[1:])
    for words in modules:
        if words[0].startswith("benchmarks."):
            assert (ROOT / (words[0].replace(".", "/") + ".py")).is_file()
    targets = {words[1] for words in commands() if words[0] == "make"}
    assert targets <= set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.M))


@pytest.mark.parametrize(
    ("document", "script", "flags"),
    [
        ("README.md", "run_mlm_domains.py", []),
        ("docs/fine_tuning.md", "run_classify_domains.py", ["--train_file", "x"]),
    ],
)
def test_quoted_defaults_are_the_codes(document, script, flags):
    rows = re.findall(r"^\| `--(\w+)`.*? \| (.*?) \|", (ROOT / document).read_text(), re.M)
    assert len(rows) >= 15
    owners = parser(script).parse(flags)
    for flag, quoted in rows:
        owner = next(each for each in owners if hasattr(each, flag))
        value = getattr(owner, flag)
        value = getattr(value, "value", value)
        if flag == "model_name_or_path":
            from domain_canine.arguments import DEFAULT_MODEL as value
        if flag == "train_file":
            value = None
        if quoted.strip("`") in ("", "off", "all"):
            assert value in (None, False), flag
        else:
            assert quoted.strip("`") == f"{value:g}" if isinstance(value, float) else str(value), (flag, quoted, value)


def test_links_and_files_exist():
    for document in DOCUMENTS:
        text = document.read_text()
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
            assert (document.parent / target).exists(), (document, target)
    for name in re.findall(r"^\| (?:[^|]*)`(\w+\.py)`", (ROOT / "CLAUDE.md").read_text(), re.M):
        assert (ROOT / name).exists() or (ROOT / "domain_canine" / name).exists(), name


def test_python_examples_name_what_exists():
    import transformers

    for block in re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S):
        for name in re.findall(r"^from transformers import (.*)$", block, re.M):
            assert all(hasattr(transformers, each.strip()) for each in name.split(","))
        compile(block, "README.md", "exec")


def test_no_file_is_over_400_lines():
    for path in [*ROOT.glob("*.py"), *(ROOT / "domain_canine").glob("*.py"), *(ROOT / "benchmarks").glob("*.py")]:
        assert len(path.read_text().splitlines()) <= 400, path


@pytest.mark.parametrize("name", ["cpu", "multi_cpu", "single_gpu", "multi_gpu", "multi_node", "fsdp"])
def test_accelerate_configs_load_and_hold_hardware_only(name):
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(ROOT / "accelerate_configs" / f"{name}.yaml"))
    assert config.mixed_precision == "no"  # the training command chooses
    if name == "fsdp":
        from domain_canine import DomainCanineModel

        assert config.fsdp_config["fsdp_transformer_layer_cls_to_wrap"] in DomainCanineModel._no_split_modules
