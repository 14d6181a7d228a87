"""Names that a model makes: are they valid, new, and like real ones?

    python -m benchmarks.generation runs/mlm runs/any_order --dataset names.txt --validation_split 0.05 --json

For each of ``--count`` held-out names a new one of the same length and suffix is drawn from nothing, so that neither
tells them apart, and one with half of the characters hidden and drawn anew. A classifier (logistic regression on the
TF-IDF of 1 to 4 characters, five folds) is asked which names are real: an accuracy of 50% is guessing. ``--write``
makes files for ``run_classify_domains.py``, a stronger one. A real name and its counterpart are never on both sides:
with half of their characters in common a classifier would learn which is not real by heart.

``--patterns`` of the half-hidden names are completed by the beam, too: do completions fit, and is the name among them?
"""

import argparse
import json
import random
import sys
from pathlib import Path

import numpy as np

from benchmarks.classification import tfidf_model
from domain_canine.completion_domain_canine import complete, sample
from domain_canine.corpus import load_corpus
from domain_canine.errors import run
from domain_canine.normalization_domain_canine import is_domain
from domain_canine.prepare import Settings
from domain_canine.pretrained import load_for_use

SHARES = {"from nothing": 1.0, "half hidden": 0.5}
COMPLETIONS = 3  # of a pattern


def hidden(name: str, share: float, chance: random.Random) -> str:
    """A name with ``?`` for a share of its characters before the last dot; dots stay."""
    at = [index for index in range(name.rindex(".")) if name[index] != "."]
    chosen = set(chance.sample(at, max(1, round(share * len(at)))))
    return "".join("?" if index in chosen else character for index, character in enumerate(name))


def fits(name: str, form: str) -> bool:
    """Whether a name is a valid one and of this form."""
    return (
        is_domain(name)
        and len(name) == len(form)
        and all(wanted in (character, "?") for character, wanted in zip(name, form))
        and all(
            not (label[2:4] == "--" and "?" in wanted[2:4]) for label, wanted in zip(name.split("."), form.split("."))
        )
    )


def told_apart(real: list[str], made: list[str]) -> dict[str, float]:
    """Accuracy and AUC of a classifier over five folds, which hold a real name and its counterpart together."""
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import GroupKFold, cross_val_predict

    labels = np.repeat([1, 0], [len(real), len(made)])
    groups = np.tile(np.arange(len(real)), 2)
    shares = cross_val_predict(
        tfidf_model(), real + made, labels, groups=groups, cv=GroupKFold(5), method="predict_proba"
    )[:, 1]
    return {"accuracy": float(((shares > 0.5) == labels).mean()), "auc": float(roc_auc_score(labels, shares))}


def figures(model, real: list[str], known: set[str], order: str, share: float, seed: int) -> tuple[dict, list[str]]:
    """Of names drawn with the surest character first, or any; and the names."""
    chance = random.Random(seed)
    forms = [hidden(name, share, chance) for name in real]
    made = sample(model, forms, order, 1.0, None, [chance] * len(forms))
    told = {
        "valid": float(np.mean([fits(name, form) for name, form in zip(made, forms)])),
        "different": len(set(made)) / len(made),
        "known": float(np.mean([name in known for name in made])),
    }
    return told | told_apart(real, made), made


def completions(model, real: list[str], seed: int) -> dict[str, float]:
    """Of names with half of their characters hidden: completions, the share that is valid, and names found again."""
    chance = random.Random(seed)
    forms = [hidden(name, SHARES["half hidden"], chance) for name in real]
    found = [[each.name for each in names] for names in complete(model, forms, COMPLETIONS)]
    return {
        "completions": sum(map(len, found)),
        "valid": float(np.mean([fits(name, form) for form, names in zip(forms, found) for name in names])),
        "found_again": float(np.mean([name in names for name, names in zip(real, found)])),
    }


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+", help="trained models")
    parser.add_argument("--dataset", required=True, help="the names that they were trained on, and held-out ones")
    parser.add_argument("--validation_split", type=float, default=0.1, help="as in training (default: %(default)s)")
    parser.add_argument("--count", type=int, default=1000, help="names of each kind (default: %(default)s)")
    parser.add_argument("--patterns", type=int, default=1000, help="names to find again (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write", type=Path, help="folder for csv files of names, real and made")
    parser.add_argument("--json", action="store_true", help="one JSON object, last on stdout")
    arguments = parser.parse_args(arguments)
    corpus = load_corpus(arguments.dataset, Settings(arguments.validation_split), quiet=True)
    real = corpus.validation.table.names(np.arange(min(arguments.count, len(corpus.validation.lengths))))
    known = set(corpus.train.table.names(np.arange(len(corpus.train.lengths))))
    found = {}
    for path in arguments.models:
        model = load_for_use(path)
        for kind, share in SHARES.items():
            for order in ("confidence", "random"):
                told, made = figures(model, real, known, order, share, arguments.seed)
                name = f"{path} ({model.config.objective}), {kind}, {order}"
                found[name] = told | {"examples": made[:10]}
                print(f"{name}: " + ", ".join(f"{each} {value:.1%}" for each, value in told.items()), file=sys.stderr)
                if arguments.write:
                    arguments.write.mkdir(parents=True, exist_ok=True)
                    rows = [f"{one},real\n{other},made\n" for one, other in zip(real, made)]
                    train = round(0.8 * len(rows))
                    for side, part in (("train", rows[:train]), ("validation", rows[train:])):
                        file = arguments.write / f"{Path(path).name}-{kind.replace(' ', '_')}-{order}-{side}.csv"
                        file.write_text("domain,label\n" + "".join(part))
        name = f"{path} ({model.config.objective}), completed"
        found[name] = completions(model, real[: arguments.patterns], arguments.seed)
        print(f"{name}: {found[name]}", file=sys.stderr)
    if arguments.json:
        print(json.dumps(found))
    return 0


if __name__ == "__main__":
    run(main)
