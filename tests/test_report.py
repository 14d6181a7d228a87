"""The report: its figures are those of a plain loop, its page is whole in itself, and any run gets one or one message."""

import json
import math
import re
import shutil
from collections import defaultdict
from html.parser import HTMLParser

import numpy as np
import pyarrow as pa
import pytest
import torch
from test_scoring import alone

from domain_canine import cli, report_page
from domain_canine.cleaning import hash_array, on_validation_side
from domain_canine.errors import UserError
from domain_canine.report import choose_names
from domain_canine.report_charts import HEIGHT, WIDTH, line_chart, ticks
from domain_canine.report_figures import look_at
from domain_canine.run_record import newest_weights, read_record
from domain_canine.sample import sample_names


@pytest.fixture
def folder(short_run, tmp_path):
    return shutil.copytree(short_run, tmp_path / "run")


def report(folder, *flags) -> str:
    assert cli.main(["report", str(folder), "--num_samples", "40", *map(str, flags)]) == 0
    return (folder / "report.html").read_text()


def cells(page: str) -> list[str]:
    return [re.sub("<[^>]*>", "", cell) for cell in re.findall(r"<td[^>]*>(.*?)</td>", page)]


def test_the_figures_are_those_of_a_plain_loop(model):
    names = [*sample_names(12), "a.b", "xn--bcher-kva.co.uk"]
    found = look_at(model, names)
    by = {kind: defaultdict(list) for kind in ("from_start", "from_end", "by_character", "by_part")}
    bits = {}
    for name in names:
        each = []
        for at, letter in enumerate(name):
            ids = torch.tensor([[0xE000, *map(ord, name), 0xE001]])
            ids[0, at + 1] = model.config.mask_code_point
            with torch.no_grad():
                best = model(input_ids=ids).logits[0, at + 1].topk(5).indices.tolist()
            nats = -alone(model, name, [at]).item()
            told = (best[0] == ord(letter), ord(letter) in best, nats / math.log(2))
            part = "suffix" if at >= name.rindex(".") else "name"
            for kind, key in zip(by, (at + 1, len(name) - at, letter, part)):
                by[kind][key].append(told)
            by["by_part"]["both"].append(told)
            each.append(told[2])
        bits[name] = each
    for kind, expected in by.items():
        rows = {row.key: row for row in getattr(found, kind)()}
        assert rows.keys() == expected.keys()
        for key, told in expected.items():
            row = rows[key]
            assert row.count == len(told)
            assert [row.accuracy, row.top5, row.bits] == pytest.approx(np.mean(told, axis=0).tolist(), abs=1e-4), key
            assert row.perplexity == pytest.approx(2 ** np.mean(told, axis=0)[2], rel=1e-3)
    assert [row.count for row in found.by_character()] == sorted(len(told) for told in by["by_character"].values())[
        ::-1
    ]
    order = found.of_names()
    assert [each.name for each in order] == sorted(names, key=lambda name: -np.mean(bits[name]))
    assert all(each.bits == pytest.approx(bits[each.name], abs=1e-3) for each in order)
    hardest, easiest = (
        [float(mean) for mean in re.findall(r">(\d+\.\d\d)<", part)]
        for part in report_page._names(found).split("Easiest names")
    )
    assert len(hardest) == len(easiest) > 1 and hardest[0] > easiest[0]
    assert hardest == sorted(hardest, reverse=True) and easiest == sorted(easiest)


class Page(HTMLParser):
    """What a browser would fetch of a page, and whether its tags are closed."""

    def __init__(self, text):
        super().__init__()
        self.open, self.fetches = [], []
        self.feed(text)

    def handle_startendtag(self, tag, attributes):
        self.fetches += [value for name, value in attributes if name in ("src", "href", "srcset", "data", "action")]
        self.fetches += [tag] * (tag in ("script", "link", "iframe", "img"))

    def handle_starttag(self, tag, attributes):
        self.handle_startendtag(tag, attributes)
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_is_whole_in_itself_and_says_what_the_run_says(folder):
    text = report(folder)
    page = Page(text)
    assert not page.fetches and not page.open
    assert not re.search(r"https?:|//|url\(|@import", text)
    found = json.loads((folder / "eval_results.json").read_text())
    state = json.loads((folder / "trainer_state.json").read_text())
    shown = cells(text)
    for value in ("311", "300", "7", "0.005", "1e-05", f"{found['eval_perplexity']:.4f}"):
        assert value in shown, value
    assert f"<b>{found['eval_perplexity']:.3f}</b>" in text and f"<b>{state['global_step']}</b>" in text
    assert "Finished." in text and text.count(">resumed<") == 4
    lines = re.findall(r'<polyline class="(\w+)" points="([^"]*)"', text)
    assert [(name, len(points.split())) for name, points in lines] == [
        ("training", 12), ("validation", 2), ("training", 12), ("validation", 2), ("training", 12), ("training", 12),
    ]  # fmt: skip
    assert "40 validation names of the run" in text or "28 validation names of the run" in text


def test_the_names_are_those_held_out_and_else_it_says_so(folder, tmp_path, monkeypatch, capsys):
    record = read_record(newest_weights(folder))
    names, told = choose_names(record, None, None, 1000)
    assert len(names) == record.data["validation"] == 28 and told.startswith("validation names of the run")
    of_the_file = np.array(sample_names(300))
    assert set(names) == set(of_the_file[on_validation_side(hash_array(pa.array(of_the_file)), 0.1, 0)])
    # The cache has gone, or has other names at that place.
    for change in ({"content of the names": "another"}, {}):
        record.starts[-1]["settings"] |= change
        record.starts[-1]["data"] |= {} if change else {"folder": str(tmp_path / "gone")}
        names, told = choose_names(record, None, None, 30)
        assert names == sample_names(30) and told.startswith(
            "synthetic names, since the run's validation names are not"
        )
    starts = json.loads((folder / "run_arguments.json").read_text())
    starts[-1]["data"]["folder"] = str(tmp_path / "gone")
    (folder / "run_arguments.json").write_text(json.dumps(starts))
    text = report(folder)
    assert 'class="card warning">40 synthetic names, since' in text
    assert "40 synthetic names, since" in capsys.readouterr().err


def test_names_of_a_file_are_chosen_whatever_its_order(folder, tmp_path):
    record, names = read_record(folder), sample_names(200)
    chosen = []
    for order in (names, sorted(names), [*names[::-1], *names, "nodot"]):
        (tmp_path / "names.txt").write_text("\n".join(order))
        chosen.append(choose_names(record, str(tmp_path / "names.txt"), None, 50)[0])
    assert len(set(chosen[0])) == 50 and chosen[0] == chosen[1] == chosen[2]
    assert set(chosen[0]) != set(names[:50])
    (tmp_path / "names.csv").write_text("id,host\n1,a.com\n2,b.com\n")
    text = report(folder, "--names", tmp_path / "names.csv", "--column", "host")
    assert f"2 names of {tmp_path}/names.csv" in text and ">a</s>" in text


def test_a_run_that_has_not_ended_is_shown_by_its_newest_checkpoint(short_run, tmp_path):
    folder = shutil.copytree(short_run.parent / "stopped", tmp_path / "<b>stopped&")
    text = report(folder)
    assert "Stopped" in text and "weights of checkpoint-5" in text and text.count(">stopped<") == 4
    assert "<h1>&lt;b&gt;stopped&amp;</h1>" in text and not Page(text).open
    # Gone on with, and killed before a word could be said.
    (folder / "last_exit.json").unlink()
    shutil.copytree(short_run / "checkpoint-6", folder / "checkpoint-6")
    text = report(folder, "--overwrite")
    assert "the run lasts, or was killed" in text and "weights of checkpoint-6" in text
    assert f"<b>{read_record(folder / 'checkpoint-6').metrics['eval_perplexity']:.3f}</b>" in text
    # A run that had ended, and goes on: its final weights are the older ones.
    shutil.copy(short_run / "model.safetensors", folder)
    assert newest_weights(folder) == folder / "checkpoint-6"
    shutil.copy(short_run / "trainer_state.json", folder)
    assert newest_weights(folder) == folder
    (folder / "trainer_state.json").unlink()
    (folder / "last_exit.json").write_text('{"status": "finished"}')
    assert newest_weights(folder) == folder


def test_a_model_without_a_run_has_a_page_too(model, tmp_path):
    model.save_pretrained(tmp_path / "model")
    text = report(tmp_path / "model")
    assert "without the record of a run" in text and "synthetic names" in text and "<h2>Curves" not in text


@pytest.mark.parametrize(
    ("break_it", "flags", "told"),
    [
        (lambda run: shutil.rmtree(run), [], "there is no folder"),
        (lambda run: [shutil.rmtree(each) for each in run.glob("checkpoint-*")], [], "has no checkpoint yet"),
        (lambda run: (run / "checkpoint-5" / "config.json").unlink(), [], "has no checkpoint yet"),
        (lambda run: (run / "run_arguments.json").unlink(), [], "holds no model"),
        (lambda run: (run / "run_arguments.json").write_text("[{"), [], "run_arguments.json' cannot be read"),
        (lambda run: (run / "run_arguments.json").write_text('[{"a": 1}]'), [], "run_arguments.json' is not what a run"),
        (lambda run: (run / "checkpoint-5" / "trainer_state.json").write_text("[]"), [], "checkpoint"),
        (lambda run: (run / "last_exit.json").write_text("[]"), [], "last_exit.json' is not what a run writes"),
        (lambda run: (run / "last_exit.json").write_text(""), [], "last_exit.json' cannot be read"),
        (lambda run: [each.write_bytes(b"x" * each.stat().st_size) for each in run.glob("*5/model.safetensors")], [],
         "are damaged"),
        (lambda run: (run / "report.html").write_text("mine"), [], "exists; add --overwrite"),
        (lambda run: None, ["--output", "{run}/no/page.html"], "there is no folder '.*/no'; make it first"),
        (lambda run: (run / "notes.txt").write_text("mine"), ["--output", "{run}/notes.txt", "--overwrite"],
         "is no page: give a name that ends in .html"),
        (shutil.rmtree, [], "there is no folder .*; check the path"),
        (lambda run: None, ["--names", "{run}/none.txt"], "there is no file or folder"),
        (lambda run: (run / "none.txt").write_text("nodot\n"), ["--names", "{run}/none.txt"], "no valid domain name"),
        (lambda run: None, ["--num_samples", "0"], "--num_samples must be at least 1"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_message(short_run, tmp_path, break_it, flags, told):
    run = shutil.copytree(short_run.parent / "stopped", tmp_path / "run")
    break_it(run)
    with pytest.raises(UserError, match=told):
        cli.main(["report", str(run), *(flag.format(run=run) for flag in flags)])
    page = run / "report.html"
    assert not page.exists() or page.read_text() == "mine"


def test_charts_hold_their_lines_and_ticks_their_values():
    for low, high in ((0, 1), (0, 212), (1.9, 4.6), (0, 1e-5), (3, 3), (0, 2.5e6), (0.99, 1)):
        found = ticks(low, high, 5, around=True)
        assert found[0] <= low and found[-1] >= high - 1e-12 and 2 <= len(found) <= 8
        assert np.ptp(np.diff(found)) < 1e-9
    points = [(step, 100 / (step + 1) + 1e-4) for step in range(20_000)]
    for log in (False, True):
        chart = line_chart(
            "loss", {"training": points, "validation": [(0, math.e), (19_999, 0.5)]}, log, {9: "resumed"}
        )
        where = [pair.split(",") for line in re.findall(r'points="([^"]+)"', chart) for pair in line.split()]
        assert 300 < len(where) <= 402
        assert all(0 <= float(x) <= WIDTH and 0 <= float(y) <= HEIGHT for x, y in where)
    assert line_chart("loss", {"training": []}) == ""
