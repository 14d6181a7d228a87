"""Every flag of the fine-tuning command: those of the training command, with other defaults, and its own."""

from dataclasses import dataclass
from typing import Literal

from .arguments import DEFAULT_MODEL, flag, one_origin, positive, seed, share
from .errors import UserError
from .training_arguments import DomainTrainingArguments

CLASS_METRICS = ("loss", "accuracy", "macro_f1", "auc", "recall_at_fpr_0.01", "recall_at_fpr_0.001")
NUMBER_METRICS = ("loss", "rmse", "mae", "r2", "spearman")
SMALLER_IS_BETTER = ("loss", "rmse", "mae")


@dataclass
class ClassifierArguments:
    """Which encoder is fine-tuned, and how much of it."""

    model_name_or_path: str | None = flag(
        None,
        f"Model trained by run_mlm_domains.py, or any CANINE checkpoint: a folder or a Hub id; {DEFAULT_MODEL} unless "
        "--model_size is given.",
    )
    model_size: Literal["tiny", "small", "base"] | None = flag(
        None, "Start from random weights, in this size: what the pretraining is worth shows beside it."
    )
    pooling: Literal["mean", "cls"] = flag(
        "mean", "What the head stands on: the mean of the characters' states, or the pooled [CLS] as stock CANINE's."
    )
    freeze_encoder: bool = flag(False, "Train the head alone.")
    lora_rank: int | None = flag(
        None, "Train low-rank updates of this rank to all layers, and the head (PEFT); alpha is twice the rank."
    )

    def __post_init__(self):
        positive(self, "lora_rank")
        one_origin(self)
        for name, given in (("freeze_encoder", self.freeze_encoder), ("lora_rank", self.lora_rank)):
            if given and self.model_size:
                raise UserError(f"--{name} keeps weights as they are; with --model_size they are random: leave one out")
        if self.freeze_encoder and self.lora_rank:
            raise UserError("--freeze_encoder and --lora_rank contradict each other; give one of them")


@dataclass
class ClassifyDataArguments:
    """Which names with which labels, and how they are split."""

    train_file: str | None = flag(
        None, "Names with labels: csv, tsv or parquet (gz, zst, bz2 too); a file, a folder, or a quoted glob.",
        aliases=["--dataset"],
    )  # fmt: skip
    validation_file: str | None = flag(None, "Names to validate on; else --validation_split of the others.")
    dataset_column: str | None = flag(None, "Column with the names.", aliases=["--column"])
    label_column: str = flag("label", "Column with the labels.")
    task: Literal["classification", "regression"] = flag("classification", "Whether labels are classes or numbers.")
    positive_label: str | None = flag(
        None, "Of two classes the one that is to be found (recall at few false positives); the last one by default."
    )
    class_weights: str | None = flag(
        None, "Weights of the classes in the loss: 'balanced', or name=weight, separated by commas; others 1."
    )
    validation_split: float = flag(0.1, "Share of the names held out, where there is no --validation_file.")
    split_by: Literal["name", "last_two_labels"] = flag(
        "name", "last_two_labels: names that share them (a registered name, a hoster) stay on one side of the split."
    )
    split_seed: int = flag(0, "Seed of the split; change it to hold out other names.")

    def __post_init__(self):
        if not self.train_file:
            raise UserError("--train_file is missing: names with labels, as csv, tsv or parquet")
        share(self, "validation_split")
        seed(self, "split_seed")
        if self.validation_file and self.split_by != "name":
            raise UserError("--validation_file and --split_by last_two_labels contradict each other; give one of them")
        for name in ("positive_label", "class_weights"):
            if self.task == "regression" and getattr(self, name):
                raise UserError(f"--{name} is for classes; leave it or --task regression out")


@dataclass
class ClassifyTrainingArguments(DomainTrainingArguments):
    """The training command's arguments, with defaults for fine-tuning."""

    output_dir: str | None = flag("./domain-canine-classifier", "Where checkpoints and the final model go.")
    num_train_epochs: float = flag(3, "Epochs.", aliases=["--epochs"])
    per_device_train_batch_size: int = flag(64, "Names a device and micro-step.", aliases=["--batch_size"])
    gradient_accumulation_steps: int = flag(1, "Micro-steps a step.")
    learning_rate: float = flag(1e-4, "Highest learning rate.")
    warmup_steps: float = flag(0.06, "Steps of linear warm-up, or below 1 their share; linear decay to 0 follows.")
    metric_for_best_model: Literal[
        "loss", "accuracy", "macro_f1", "auc", "recall_at_fpr_0.01", "recall_at_fpr_0.001", "rmse", "mae", "r2",
        "spearman",
    ] | None = flag(
        None, "What the best checkpoint and early stopping go by: macro_f1 for classes, loss for numbers by default."
    )  # fmt: skip
    project: str = flag("domain-canine-classify", "Weights & Biases project.")

    def choose_metric(self, task: str) -> None:
        """
        Raises:
            UserError: it is none of this task.
        """
        known = CLASS_METRICS if task == "classification" else NUMBER_METRICS
        if self.metric_for_best_model is None:
            self.metric_for_best_model = "macro_f1" if task == "classification" else "loss"
        if self.metric_for_best_model not in known:
            raise UserError(
                f"--metric_for_best_model {self.metric_for_best_model} is none of a {task}: take {', '.join(known)}"
            )
        self.greater_is_better = self.metric_for_best_model not in SMALLER_IS_BETTER
