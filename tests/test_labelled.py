"""Names with labels: what is read, left out, and on which side."""

import gzip
from types import SimpleNamespace

import numpy as np
import pyarrow.csv as pc
import pyarrow.parquet as pq
import pytest
import torch

from domain_canine.classifier import class_weights
from domain_canine.classify_arguments import ClassifierArguments, ClassifyDataArguments, ClassifyTrainingArguments
from domain_canine.errors import UserError
from domain_canine.labelled import LabelledBatches, build_batches, load_labelled, positive_index
from domain_canine.sample import sample_names

HEAD = "domain,label\n"


def write(path, text):
    path.write_text(text)
    return path


def load(file, **options):
    return load_labelled(ClassifyDataArguments(train_file=str(file), **options))


def pairs(side, classes=None):
    labels = side.labels.tolist() if classes is None else [classes[label] for label in side.labels]
    return dict(zip(side.names.to_pylist(), labels))


@pytest.fixture
def file(tmp_path):
    rows = [f"{name},{'good' if i % 3 else 'bad'}" for i, name in enumerate(sample_names(300))]
    return write(tmp_path / "names.csv", HEAD + "\n".join(rows) + "\n")


def test_what_is_left_out_is_counted(tmp_path):
    rows = ["Example.COM.,b", "a.com,a", "a.com,a", "both.com,a", "both.com,b", "none.com,", "not a name,a", "c.com,b",
            "1.2.3.4,a", "too,many,cells", ",a", " ,b", '"quoted.com","a"', "# said,a"]  # fmt: skip
    data = load(write(tmp_path / "names.csv", HEAD + "\n".join(rows) + "\n"), validation_split=0.5)
    together = pairs(data.train, data.classes) | pairs(data.validation, data.classes)
    assert together == {"example.com": "b", "a.com": "a", "c.com": "b", "quoted.com": "a"}
    told = dict(data.told)["rows"]
    for part in ("14 rows read", "empty 2", "without a label 1", "bad character 1", "ip address 1", "comment 1", "duplicates 1",
                 "with two labels 2", "malformed rows 1"):  # fmt: skip
        assert part in told, part


def test_all_formats_and_several_files_are_the_same(tmp_path, file):
    expected = load(file)
    table = pc.read_csv(file)
    (tmp_path / "gz").mkdir()
    with gzip.open(tmp_path / "gz" / "names.csv.gz", "wt") as packed:
        packed.write(file.read_text())
    pq.write_table(table, tmp_path / "names.parquet")
    write(tmp_path / "names.tsv", file.read_text().replace(",", "\t"))
    (tmp_path / "parts").mkdir()
    lines = file.read_text().splitlines()[1:]
    for i in range(2):
        write(tmp_path / "parts" / f"{i}.csv", HEAD + "\n".join(lines[i::2]) + "\n")
    for other in ("gz/names.csv.gz", "names.parquet", "names.tsv", "parts", "parts/*.csv"):
        data = load(tmp_path / other)
        assert data.content == expected.content and pairs(data.train) == pairs(expected.train), other


def test_content_tells_names_labels_and_sides_apart(tmp_path, file):
    seen = {load(file).content, load(file, split_seed=1).content}
    first, *rows = file.read_text().splitlines()
    one, other = rows[0].split(","), rows[1].split(",")
    swapped = [f"{one[0]},{other[1]}", f"{other[0]},{one[1]}", *rows[2:]]
    seen.add(load(write(tmp_path / "swapped.csv", HEAD + "\n".join(swapped))).content)
    assert len(seen) == 3
    assert load(write(tmp_path / "reversed.csv", HEAD + "\n".join(reversed(rows)))).content == load(file).content


def test_training_names_of_the_validation_file_are_left_out(tmp_path):
    train = write(tmp_path / "train.csv", HEAD + "a.com,x\nb.com,y\nc.com,x\ne.com,y\nf.com,y\n")
    dev = write(tmp_path / "dev.csv", HEAD + "B.com,x\nd.com,y\nd.com,y\nno name,x\nf.com,x\n")
    data = load(train, validation_file=str(dev))
    assert pairs(data.train, data.classes) == {"a.com": "x", "c.com": "x", "e.com": "y"}
    assert pairs(data.validation, data.classes) == {"b.com": "x", "d.com": "y", "f.com": "x"}
    assert "in validation 2" in dict(data.told)["rows"]
    assert ("", "5 rows read; left out: bad character 1, duplicates 1") in data.told


def test_split_by_last_two_labels_keeps_them_together(tmp_path):
    rows = [f"{host}{i}.{name},{i % 2}" for i, name in enumerate(sample_names(80)) for host in "abc"]
    file = write(tmp_path / "names.csv", HEAD + "\n".join(rows) + "\n")

    def last_two(side):
        return {tuple(name.split(".")[-2:]) for name in side.names.to_pylist()}

    apart = load(file, split_by="last_two_labels", validation_split=0.3)
    assert not last_two(apart.train) & last_two(apart.validation) and len(apart.validation.labels) > 20
    assert {name[-1:] for name in last_two(apart.train)} & {name[-1:] for name in last_two(apart.validation)}
    mixed = load(file, validation_split=0.3)
    assert last_two(mixed.train) & last_two(mixed.validation)


def test_classes_are_in_order_and_weighted(tmp_path):
    rows = [f"{name},{10 if i % 4 else 9}" for i, name in enumerate(sample_names(200))]
    file = write(tmp_path / "names.csv", HEAD + "\n".join(rows) + "\n")
    data = load(file)
    assert data.classes == ["9", "10"] and positive_index(ClassifyDataArguments(train_file="x"), data) == 1
    assert positive_index(ClassifyDataArguments(train_file="x", positive_label="9"), data) == 0
    balanced = class_weights(ClassifyDataArguments(train_file="x", class_weights="balanced"), data)
    times = np.bincount(data.train.labels)
    assert balanced * times == pytest.approx([len(data.train.labels) / 2] * 2)
    # A rank's own names, and the loss of validation weighted as that of training.
    args = SimpleNamespace(per_device_train_batch_size=4, per_device_eval_batch_size=400, seed=0, data_seed=None,
                           torch_compile=False, world_size=2, gradient_accumulation_steps=1)  # fmt: skip
    sides = []
    for args.process_index in range(2):
        train, validation = build_batches(data, args, balanced)
        sides.append({tuple(row) for row in validation[0, 0]["input_ids"].tolist() + train[0, 0]["input_ids"].tolist()})
        batch = validation[0, 0]
        assert batch["loss_weights"].tolist() == pytest.approx(balanced[batch["labels"]].tolist())
    assert not sides[0] & sides[1]
    assert class_weights(ClassifyDataArguments(train_file="x", class_weights="9=5"), data).tolist() == [5, 1]


@pytest.mark.parametrize("evaluation", [False, True])
def test_batches_hold_each_name_once_with_its_label(file, evaluation):
    data = load(file, validation_split=0.09)
    side = data.validation if evaluation else data.train
    expected, seen, empty = pairs(side), {}, 0
    how = {"evaluation": True} if evaluation else {"micro_steps": 2}
    for rank in range(4):
        batches = LabelledBatches(side, 5, np.array([3.0, 1.0]), rank=rank, ranks=4, **how)
        for step in range(batches.plan.steps * batches.plan.micro_steps):
            batch = batches[0, step]
            for ids, real, label, weight in zip(*(batch[name] for name in (
                "input_ids", "attention_mask", "labels", "loss_weights"
            ))):  # fmt: skip
                name = "".join(map(chr, ids[1 : int(real.sum()) - 1]))
                if not name:
                    assert weight == 0 and label == -100
                    empty += 1
                    continue
                assert name not in seen and weight == (1 if label else 3)
                seen[name] = int(label)
    assert seen == expected and bool(empty) == evaluation, (len(expected), empty)


def test_the_order_of_the_rows_does_not_matter(tmp_path):
    rows = [f"{name},{i % 2}" for i, name in enumerate(sample_names(99))]
    one, other = (
        load(write(tmp_path / f"{order}.csv", HEAD + "\n".join(rows[::order]) + "\n")).train for order in (1, -1)
    )
    assert one.names.to_pylist() == other.names.to_pylist() and one.labels.tolist() == other.labels.tolist()
    assert one.names.to_pylist() != [
        row.split(",")[0] for row in rows if row.split(",")[0] in set(one.names.to_pylist())
    ]


def test_a_quote_that_is_not_closed_is_told(tmp_path):
    rows = [f"{name},{i % 2}" for i, name in enumerate(sample_names(300))]
    rows[98] = '"' + rows[98]
    with pytest.raises(UserError, match="a quote in line 100 is not closed"):
        load(write(tmp_path / "names.csv", HEAD + "\n".join(rows) + "\n"))


def test_labels_stay_beside_their_names_over_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr("domain_canine.readers.ROW_BLOCK", 7)
    names = sample_names(60)
    rows = [f"{i},{name if i % 5 else 'no name'},{'ä' * (i % 3)}" for i, name in enumerate(names)]
    file = write(tmp_path / "names.csv", "number,domain,label\n" + "\n".join(rows) + "\n")
    pq.write_table(pc.read_csv(file), tmp_path / "names.parquet")
    expected = {name: "ä" * (i % 3) for i, name in enumerate(names) if i % 5 and i % 3}
    for each in (file, tmp_path / "names.parquet"):
        data = load(each, validation_split=0.3)
        assert pairs(data.train, data.classes) | pairs(data.validation, data.classes) == expected


def test_numbers_are_labels_as_they_are(tmp_path):
    rows = [f"{name},{i * 0.5}" for i, name in enumerate(sample_names(50))]
    data = load(write(tmp_path / "n.csv", HEAD + "\n".join(rows) + "\n"), task="regression")
    assert data.classes is None and data.train.labels.dtype == np.float64
    twice = load(
        write(
            tmp_path / "t.csv",
            HEAD + "\n".join([*rows, f"{sample_names(50)[0]},-0", f"{sample_names(50)[1]},9"]) + "\n",
        ),
        task="regression",
    )
    assert "duplicates 1, with two labels 2" in dict(twice.told)["rows"]
    odd = write(tmp_path / "odd.csv", HEAD + "\n".join([*rows, "a.com,n/a", "b.com,inf"]) + "\n")
    some = load(odd, task="regression")
    assert "without a finite number 2" in dict(some.told)["rows"]
    assert len(some.train.labels) + len(some.validation.labels) == 50
    assert any("--task regression" in told for _, told in load(tmp_path / "n.csv").told)  # 50 classes
    batch = LabelledBatches(data.train, 8)[0, 0]
    assert batch["labels"].dtype == torch.float32 and set(batch["labels"].tolist()) <= {i * 0.5 for i in range(50)}


@pytest.mark.parametrize(
    ("text", "options", "told"),
    [
        (HEAD + "a.com,x\nb.com,x\n", {}, "every name has the label 'x'"),
        (HEAD, {}, "holds no name with a label"),
        ("domain,label\n", {"label_column": "class"}, "has no column 'class'; it has domain, label"),
        ("one,two,label\n1,2,3\n", {}, "has the columns one, two; name one with --dataset_column"),
        (HEAD + "a.com,few\nb.com,many\n", {"task": "regression"}, "the label 'few' is no number"),
        (
            HEAD + "a.com,0.1\nb.com,0.1\nc.com,0.1\n",
            {"task": "regression"},
            "every name to train on has the number 0.1",
        ),
        (HEAD + "a.com,nan\nb.com,inf\n", {"task": "regression"}, "the label 'nan' is no number"),
        (HEAD + "a.com,--5\nb.com," + 5000 * "9" + "\n", {"validation_split": 0.001}, "leaves no name to validate on"),
        (HEAD + "a.com,x\nb.com,y\n", {"validation_split": 0.001}, "leaves no name to validate on"),
    ],
)
def test_what_will_not_do_is_one_message(tmp_path, text, options, told):
    with pytest.raises(UserError, match=told):
        load(write(tmp_path / "names.csv", text), **options)


def test_classes_that_an_earlier_split_has_parted_are_told(tmp_path, file):
    """The names that pretraining held out, against others, are all held out once more."""
    data = load(file)
    rows = [f"{name},old" for name in data.validation.names.to_pylist()]
    rows += [f"{name},new" for name in data.train.names.to_pylist()]
    parted = write(tmp_path / "parted.csv", HEAD + "\n".join(rows) + "\n")
    with pytest.raises(UserError, match="every name to train on has the label 'new'.*--split_seed"):
        load(parted)
    assert set(load(parted, split_seed=1).train.labels) == {0, 1}


def test_a_label_of_contradicted_names_alone_is_no_class(tmp_path):
    names = sample_names(60)
    rows = [f"{name},{'xz'[i % 2]}" for i, name in enumerate(names)]
    data = load(write(tmp_path / "odd.csv", HEAD + "\n".join([*rows, f"{names[0]},a", f"{names[1]},y"]) + "\n"))
    assert data.classes == ["x", "z"]
    expected = dict(row.split(",") for row in rows[2:])
    assert pairs(data.train, data.classes) | pairs(data.validation, data.classes) == expected


def test_other_mistakes(tmp_path, file):
    with pytest.raises(UserError, match="there is no file or folder 'nofile.csv'"):
        load("nofile.csv")
    with pytest.raises(UserError, match="has no columns"):
        load(write(tmp_path / "names.txt", "a.com\n"))
    with pytest.raises(UserError, match="cannot read"):
        load(write(tmp_path / "names.parquet", "no parquet"))
    with pytest.raises(UserError, match="the label 'odd', which no training name has"):
        load(file, validation_file=str(write(tmp_path / "dev.csv", HEAD + "q.com,odd\n")))
    data = load(file)
    for weights, told in (("worse=2", "is not name=weight with one of bad, good"), ("bad=x", "is no number"),
                          ("bad=0", "must be above 0")):  # fmt: skip
        with pytest.raises(UserError, match=told):
            class_weights(ClassifyDataArguments(train_file="x", class_weights=weights), data)
    with pytest.raises(UserError, match="--positive_label 'evil' is none of bad, good"):
        positive_index(ClassifyDataArguments(train_file="x", positive_label="evil"), data)
    many = write(tmp_path / "many.csv", HEAD + "\n".join(f"{name},{i % 3}" for i, name in enumerate(sample_names(60))))
    with pytest.raises(UserError, match="--positive_label is for two classes, not for 3"):
        positive_index(ClassifyDataArguments(train_file="x", positive_label="1"), load(many))
    dev = write(tmp_path / "dev2.csv", HEAD + f"{sample_names(1)[0]},0\nq.com,1\n")
    lone = write(tmp_path / "lone.csv", HEAD + f"{sample_names(1)[0]},0\na.com,1\nb.com,2\n")
    assert ("warning", "no name to train on has the label 0") in load(lone, validation_file=str(dev)).told
    last = write(tmp_path / "last.csv", HEAD + f"{sample_names(1)[0]},2\na.com,0\nb.com,1\n")
    dev = write(tmp_path / "dev3.csv", HEAD + f"{sample_names(1)[0]},2\nq.com,1\n")
    balanced = ClassifyDataArguments(train_file="x", class_weights="balanced")
    assert class_weights(balanced, load(last, validation_file=str(dev))).shape == (3,)
    for kind, options, told in (
        (ClassifyDataArguments, {}, "--train_file is missing"),
        (
            ClassifyDataArguments,
            {"train_file": "x", "validation_file": "y", "split_by": "last_two_labels"},
            "contradict",
        ),
        (
            ClassifyDataArguments,
            {"train_file": "x", "task": "regression", "class_weights": "balanced"},
            "is for classes",
        ),
        (ClassifierArguments, {"freeze_encoder": True, "lora_rank": 4}, "contradict"),
        (ClassifierArguments, {"model_size": "tiny", "lora_rank": 4}, "are random"),
        (ClassifierArguments, {"lora_rank": 0}, "--lora_rank must be above 0"),
    ):
        with pytest.raises(UserError, match=told):
            kind(**options)
    with pytest.raises(UserError, match="--metric_for_best_model auc is none of a regression"):
        ClassifyTrainingArguments(metric_for_best_model="auc").choose_metric("regression")
