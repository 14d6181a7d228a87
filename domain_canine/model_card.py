"""The model card of a run: what it was made of, what it can do and cannot, and how to use it."""

import hashlib
import math
import re
import sys
from html import escape
from pathlib import Path

from huggingface_hub import EvalResult, ModelCardData

from .card_text import CITATION, EMBED, HEAD, LABEL_LIMITS, LIMITS, LITTLE_DATA, OTHER_USE, SYNTHETIC, USE
from .classification import RATES
from .corpus import SMALL
from .curves import draw_curves
from .errors import UserError
from .manifest import write_whole
from .run_record import RunRecord, read_record

CARD, CURVES = "README.md", "curves.png"
# Figure of the evaluation, the metric's id on the Hub, and what it is.
FIGURES = (
    ("eval_perplexity", "perplexity", "perplexity of a masked character"),
    ("eval_perplexity_name", "perplexity", "perplexity before the last dot"),
    ("eval_perplexity_suffix", "perplexity", "perplexity of the last dot and what follows"),
    ("eval_bits_per_character", "bits_per_character", "bits per masked character"),
    ("eval_accuracy", "accuracy", "accuracy"),
    ("eval_accuracy_top5", "accuracy", "accuracy, top 5"),
    ("eval_macro_f1", "f1", "macro F1"),
    ("eval_auc", "roc_auc", "AUC"),
    *((f"eval_recall_at_fpr_{rate}", "recall", f"recall at {rate:.1%} false positives") for rate in RATES),
    ("eval_rmse", "rmse", "root mean square error"),
    ("eval_mae", "mae", "mean absolute error"),
    ("eval_r2", "r_squared", "R2"),
    ("eval_spearman", "spearmanr", "Spearman's rank correlation"),
)
TASKS = {
    "fill-mask": "Masked language modelling", "text-classification": "Labels of names",
    "feature-extraction": "Embeddings of names",
}  # fmt: skip
TAGS = {"fill-mask": ["masked-language-modeling"], "text-classification": [], "feature-extraction": []}
_SEAL = re.compile(r"\n<!-- domain-canine ([0-9a-f]{16}): .*-->\n\Z")


def write_model_card(model: Path, repository: str | None = None) -> bool:
    """README.md and curves.png of a model's folder, from the record of its run.

    A card that somebody has written or changed is left as it is: ours ends with a comment that has the digest of all
    before it.

    Args:
        model: a run folder, or a checkpoint's, or any other model's.
        repository: owner/name on the Hub, for the examples; without it they name the folder.

    Returns:
        Whether the card is ours.

    Raises:
        UserError: the folder holds no model, or cannot be written.
    """
    path = model / CARD
    try:
        if path.is_file() and not _is_sealed(path.read_text()):
            print(f"{path} is not as it was made here: it is left as it is", file=sys.stderr)
            return False
        record = read_record(model)
        text = card_text(record, repository, _curves(record, model))
        write_whole(path, _sealed(text))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"the model card {str(path)!r} cannot be written: {error}") from error
    return True


def write_card(trainer) -> None:
    """Of the run that a trainer has ended, with the repository's name, if there is to be one."""
    args = trainer.args
    write_model_card(Path(args.output_dir), trainer.hub_model_id or (args.hub_model_id if args.push_to_hub else None))


def _curves(record, model):
    try:
        return draw_curves(record, model / CURVES)
    except ImportError:
        print(f"{CARD} has no curves: 'pip install matplotlib' draws them", file=sys.stderr)
        return False


def _sealed(text):
    digest = hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
    return f"{text}\n<!-- domain-canine {digest}: a card that is changed is kept, this one is made anew -->\n"


def _is_sealed(text):
    found = _SEAL.search(text)
    return found is not None and _sealed(text[: found.start()]) == text


def card_text(record: RunRecord, repository: str | None = None, curves: bool = False) -> str:
    """The card, with its metadata; ``curves`` says whether there is a picture of them."""
    name = (repository or record.model.resolve().name).split("/")[-1]
    model = repository or str(record.model)
    use = {"fill-mask": USE, "feature-extraction": EMBED}.get(record.task, OTHER_USE)
    data = record.data
    labelled = record.task == "text-classification"
    few = not labelled and (data.get("train") or SMALL) < SMALL
    trial = SYNTHETIC if data.get("kind") == "sample" else LITTLE_DATA if few else ""
    parts = [
        HEAD.format(title=name, made=_made(record)),
        use.format(model=model, task=record.task),
        LABEL_LIMITS if labelled else LIMITS.format(trial=trial),
        _evaluation(record) if _measured(record) else "",
        _data(record) if data else "",
        _training(record, curves) if record.starts else "",
        _section("Licence", licence(record)[1]),
        CITATION,
    ]
    return f"---\n{metadata(record, name).to_yaml()}\n---\n{''.join(parts)}"


def metadata(record: RunRecord, name: str) -> ModelCardData:
    """What the Hub reads of the card: the results as its model-index among it."""
    dataset = record.settings.get("dataset") if record.data.get("kind") == "hub" else None
    results = [
        EvalResult(
            task_type=record.task, task_name=TASKS[record.task], dataset_type=dataset or "domain-names",
            dataset_name=_names_of(record), dataset_split="validation", metric_type=kind, metric_name=told,
            metric_value=record.metrics[figure],
        )
        for figure, kind, told in _measured(record)
    ]  # fmt: skip
    return ModelCardData(
        library_name="transformers",
        pipeline_tag=record.task,
        license=licence(record)[0],
        tags=["canine", "domain-names", "character-level", *TAGS[record.task]],
        base_model=record.base if record.origin == "hub" else None,
        datasets=[dataset] if dataset else None,
        metrics=list(dict.fromkeys(kind for _, kind, _ in _measured(record))) or None,
        model_name=name,
        eval_results=results or None,
    )


def licence(record: RunRecord) -> tuple[str | None, str]:
    """The licence as the Hub names it, None where it is not known, and in words."""
    code = "the code files that come with it (`*_domain_canine.py`) are under MIT"
    if record.origin == "random":
        return "mit", "MIT: the weights began at random; and so is the code that comes with them."
    if record.origin == "hub" and record.base.startswith("google/canine-"):
        return "apache-2.0", f"Apache 2.0, that of `{record.base}`, whose weights this model goes on from; {code}."
    began = {"hub": f"`{record.base}`", "local": "a local checkpoint"}.get(record.origin, "a model of unknown origin")
    return None, f"That of {began}, which the weights are from; {code}."


def _measured(record):
    """Of FIGURES those that there are, and that a number can say."""
    return [each for each in FIGURES if math.isfinite(record.metrics.get(each[0], math.nan))]


def _names_of(record):
    kind = record.data.get("kind", "local")
    dataset = record.settings.get("dataset")
    return {"hub": dataset, "url": dataset, "sample": "synthetic names"}.get(kind, "local names")


def _made(record):
    if not record.starts:
        return "trained on names"
    began = {"random": "trained from random weights", "hub": f"continued from `{record.base}`"}
    names = record.data.get("train")
    told = f"{began.get(record.origin, 'continued from a local checkpoint')} on "
    told += f"{names:,} names" if names else "a stream of names"
    measured = record.metrics.get("eval_perplexity")
    return told + (f", to a validation perplexity of {measured:.3f}" if measured else "")


def _evaluation(record):
    held_out = record.data.get("validation")
    objective = record.settings.get("objective", "mlm")
    masks = "15% of the characters masked" if objective == "mlm" else "a random number of the characters masked"
    head = f"On {f'{held_out:,} ' if held_out else ''}names that were held out"
    if record.task == "text-classification":
        head += f" ({record.data['split']})" if "split" in record.data else ""
    else:
        head += f" by a hash of the name, {masks}"
    if objective == "any_order":
        head += "; perplexity and bits are those of the bound on the log-likelihood"
    rows = [(told, f"{record.metrics[figure]:.4f}") for figure, _, told in _measured(record)]
    which = "the best by validation" if record.step == record.state.get("best_global_step") else "the last ones"
    step = f"The weights are those of step {record.step:,}, {which}." if record.step else ""
    return _section("Evaluation", f"{head}:", table(("figure", "value"), rows), step)


def _data(record):
    counts = record.data["counts"]
    rows = [(why.replace("_", " "), f"{count:,}") for why, count in counts.items() if count]
    where = "at the head of the stream" if record.settings.get("streaming") else ""
    rows[0] = ("lines read", rows[0][1])
    train, validation = record.data["train"], record.data["validation"]
    sides = [("to train on", f"{train:,}" if train else "streamed"), ("for validation", f"{validation:,}")]
    share = f"{100 * record.settings['validation_split']:.3g}% of the names are held out, by a hash of the name"
    if split := record.data.get("split"):
        share = f"Names to validate on: {split}"
    trained = (
        "; no validation name is ever trained on"
        if record.one_split
        else ("; an earlier start of the run held out others, so that it was trained on some of them")
    )
    classes = record.data.get("classes", {})
    sides += [(f"label {name}, to train on", f"{count:,}") for name, count in classes.items()]
    return _section(
        "Training data",
        f"{_names_of(record)[0].upper()}{_names_of(record)[1:]}. {share}{trained}.",
        table((where, "count"), rows + sides),
    )


def _training(record, curves):
    machine, data = record.machine, record.settings
    facts = [("steps", f"{record.state.get('global_step', 0):,}")]
    if data.get("names a step"):
        facts.append(("names a step", f"{data['names a step']:,}"))
    if record.parameters:
        facts.append(("parameters", f"{record.parameters:,}"))
    facts += [(name, machine[name]) for name in ("devices", "precision") if name in machine]
    if seconds := record.seconds():
        facts.append(("time in steps", duration(seconds)))
    facts += [(name, machine[name]) for name in ("torch", "transformers") if name in machine]
    rows = [(f"`{name}`", value, default) for name, value, default in record.arguments()]
    return _section(
        "Training", table(("", ""), facts),
        table(("argument", "value", "default, if another"), rows),
        f"![Loss and perplexity, learning rate and speed over the steps]({CURVES})" if curves else "",
    )  # fmt: skip


def duration(seconds: float) -> str:
    """``3 h 12 min``, ``4 min 10 s``."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:,} h {minutes} min" if hours else f"{minutes} min {seconds} s" if minutes else f"{seconds} s"


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """In Markdown; whatever a cell holds, labels of others among it, stays within it."""
    lines = [head, ("---",) * len(head), *(map(_cell, row) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(text):
    return escape(" ".join(str(text).split()), quote=False).replace("|", "&#124;")


def _section(title, *paragraphs):
    return f"\n## {title}\n\n" + "\n\n".join(filter(None, paragraphs)) + "\n"
