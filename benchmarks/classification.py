"""What pretraining is worth: fine-tuned classifiers against the same model from random weights and against TF-IDF.

    python -m benchmarks.classification --model runs/small --size small --json \\
      --train_file train.csv.gz --validation_file dev.csv.gz --column input --positive_label malicious
    python -m benchmarks.classification --model runs/small --size small --json \\
      --train_file 'all_*.csv.gz' --split_by last_two_labels --validation_split 0.25 --column input
    python -m benchmarks.classification --corpus names.txt.gz --cleaned clean.txt \\
      --train_file 'all_*.csv.gz' --column input

Every side sees the same names on the same split; further flags are those of run_classify_domains.py. TF-IDF is of 1 to
4 characters, with a logistic regression on it (scikit-learn). The last form writes the names of a corpus that do not
share their last two labels with a labelled one, to pretrain on: an encoder recognises what it has seen.
"""

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.launched import Launched
from domain_canine.classification import class_figures
from domain_canine.classify_arguments import ClassifierArguments, ClassifyDataArguments, ClassifyTrainingArguments
from domain_canine.cleaning import normalize_lines
from domain_canine.errors import run
from domain_canine.labelled import LabelledNames, groups, load_labelled, positive_index
from domain_canine.normalization_domain_canine import MAX_NAME
from domain_canine.parser import Parser
from domain_canine.readers import read

FIGURES = ("macro_f1", "auc", "recall_at_fpr_0.01", "recall_at_fpr_0.001", "accuracy")


def tfidf_model():
    """A logistic regression on the TF-IDF of 1 to 4 characters."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    return make_pipeline(
        TfidfVectorizer(analyzer="char", ngram_range=(1, 4), sublinear_tf=True, min_df=2),
        LogisticRegression(C=10, max_iter=2000),
    )


def tfidf(data: LabelledNames, positive: int) -> dict[str, float]:
    """Its figures."""
    model = tfidf_model()
    model.fit(data.train.names.to_pylist(), data.train.labels)
    logits = np.full((len(data.validation.labels), len(data.classes)), -1e3)
    logits[:, model.classes_] = model.predict_log_proba(data.validation.names.to_pylist())
    return class_figures(logits, data.validation.labels, positive)


def fine_tuned(flags: list[str], folder: Path) -> dict[str, float]:
    """The figures of the best weights of a fine-tuning into a new folder."""
    with Launched(
        [*flags, "--output_dir", folder], folder.with_suffix(".txt"), script="run_classify_domains.py"
    ) as launched:
        launched.wait()
    told = json.loads((folder / "eval_results.json").read_text())
    return {name: told[f"eval_{name}"] for name in FIGURES if f"eval_{name}" in told}


def write_cleaned(corpus: str, data: LabelledNames, path: Path) -> int:
    """The names of a corpus without those of labelled ones' last two labels; returns how many."""
    known = np.concatenate([groups(side.names, "last_two_labels") for side in (data.train, data.validation)])
    kept = 0
    with path.open("w") as file:
        for block in read(corpus):
            names, valid = normalize_lines(block.lines, MAX_NAME, lambda *line: None)
            names = names.filter(valid)
            left = names.filter(~np.isin(groups(names, "last_two_labels"), known)).to_pylist()
            file.writelines(f"{name}\n" for name in left)
            kept += len(left)
    return kept


def summary(found: list[dict[str, float]]) -> dict[str, list[float]]:
    """Mean, least and most over the seeds."""
    return {
        name: [statistics.mean(values), min(values), max(values)]
        for name in FIGURES
        if (values := [each[name] for each in found if name in each])
    }


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--model", help="a pretrained model; its side is left out without")
    parser.add_argument("--size", help="of the same model from random weights; its side is left out without")
    parser.add_argument("--random_learning_rate", type=float, default=1e-3, help="of that one (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=3, help="fine-tunings of each (default: %(default)s)")
    parser.add_argument("--corpus", help="names to be cleaned into --cleaned")
    parser.add_argument("--cleaned", type=Path, help="write the cleaned corpus here, and do nothing else")
    parser.add_argument("--json", action="store_true", help="one JSON object, last on stdout")
    arguments, flags = parser.parse_known_args(arguments)
    kinds = (ClassifierArguments, ClassifyDataArguments, ClassifyTrainingArguments)
    data_arguments = Parser(kinds).parse(flags)[1]
    data = load_labelled(data_arguments)
    for name, value in data.told:
        print(f"{name:>10}  {value}", file=sys.stderr)
    if arguments.cleaned:
        print(f"{write_cleaned(arguments.corpus, data, arguments.cleaned):,} names left", file=sys.stderr)
        return 0
    sides = {}
    if arguments.model:
        sides["pretrained"] = [*flags, "--model_name_or_path", arguments.model]
    if arguments.size:
        sides["random"] = [*flags, "--model_size", arguments.size, "--learning_rate", arguments.random_learning_rate]
    found = {"tfidf": summary([tfidf(data, positive_index(data_arguments, data))])}
    _show("tfidf", found["tfidf"])
    with tempfile.TemporaryDirectory() as folder:
        for name, command in sides.items():
            runs = []
            for seed in range(arguments.seeds):
                runs.append(fine_tuned([*command, "--seed", seed], Path(folder) / f"{name}-{seed}"))
                _show(f"{name}, seed {seed}", summary(runs[-1:]))
            found[name] = summary(runs)
            _show(name, found[name])
    if arguments.json:
        print(json.dumps(found))
    return 0


def _show(name, figures):
    told = ", ".join(
        f"{figure} {mean:.4f} ({least:.4f} to {most:.4f})" for figure, (mean, least, most) in figures.items()
    )
    print(f"{name:>18}: {told}", file=sys.stderr)


if __name__ == "__main__":
    run(main)
