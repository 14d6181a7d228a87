"""The commands of the pages in docs/ run as they are written, on a tiny model."""

import gzip
import os
import re
import shlex
import subprocess
import sys

import pytest
from conftest import ROOT

from domain_canine import cli, onnx_graphs
from domain_canine.sample import sample_names

PAGES = ["using.md", "fine_tuning.md", "embedding.md", "export.md", "sharing.md"]
TINY = "num_hidden_layers=1,hidden_size=32,num_attention_heads=2,intermediate_size=64,num_hash_buckets=512"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a finished run and the files that the pages speak of."""
    folder = tmp_path_factory.mktemp("place")
    names = sample_names(300)
    (folder / "names.txt").write_text("\n".join(names[:40]) + "\nno name\n")
    (folder / "registered.txt").write_text("\n".join(names[:10]))
    for name, column, value in (("names", "rank", str), ("labelled", "label", lambda i: "ab"[i % 2]),
                                ("priced", "price", lambda i: f"{i / 7:.3f}")):  # fmt: skip
        with gzip.open(folder / f"{name}.csv.gz", "wt") as file:
            file.write(f"domain,{column}\n" + "".join(f"{each},{value(i)}\n" for i, each in enumerate(names)))
    _run(
        folder, sys.executable, ROOT / "run_mlm_domains.py", "--use_cpu", "--model_size", "tiny", "--config_overrides",
        TINY, "--dataset", "names.csv.gz", "--column", "domain", "--output_dir", "runs/quickstart", "--epochs", "1",
        "--batch_size", "16", "--logging_steps", "2",
    )  # fmt: skip
    return folder


def _run(folder, *command):
    shown = shlex.join(map(str, command))
    done = subprocess.run(
        command if len(command) > 1 else ["bash", "-ec", *command], cwd=folder, capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT), "PATH": f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}"},
    )  # fmt: skip
    assert done.returncode == 0 and "Traceback" not in done.stderr, (shown, done.stdout, done.stderr)


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / "docs" / page).read_text(), re.S)


def lines(page: str) -> list[str]:
    """A page's commands, each in a line; but those that ask the Hub, which test_export_hub.py and others start."""
    joined = "\n".join(blocks(page, "bash")).replace("\\\n", " ")
    return [line for line in joined.splitlines() if line.strip() and "hub" not in line]


@pytest.mark.parametrize("page", PAGES)
def test_the_commands_of_a_page_run(place, page, monkeypatch):
    monkeypatch.chdir(place)
    monkeypatch.setattr(onnx_graphs, "LENGTHS", (5, 130))  # a graph's whole check is test_onnx.py's
    for line in lines(page):
        words = shlex.split(line)
        if words[:3] == ["python", "-m", "domain_canine"] and not {"|", ">"} & set(words):
            assert cli.main(words[3:]) == 0, line  # to start a process takes seconds
            continue
        line = line.replace("accelerate_configs/", f"{ROOT}/accelerate_configs/")
        _run(place, re.sub(r"\b(run_\w+\.py)", rf"{ROOT}/\1", line))


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")])
def test_the_python_of_a_page_runs(place, page):
    _run(place, sys.executable, "-c", "\n".join(blocks(page, "python")))
