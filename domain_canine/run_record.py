"""What a run folder tells of its run: arguments, data, log, figures. Model card and report are made of it."""

import json
import math
import re
from dataclasses import MISSING, dataclass, fields
from functools import cached_property
from pathlib import Path

from safetensors import SafetensorError, safe_open
from transformers.trainer import TRAINER_STATE_NAME

from .arguments import DEFAULT_MODEL, DataArguments, ModelArguments
from .checkpoints import step_of, whole_checkpoints
from .classify_arguments import ClassifierArguments, ClassifyDataArguments, ClassifyTrainingArguments
from .errors import UserError, first_line
from .run_file import in_weights
from .run_folder import LAST_EXIT, RUN_FILE
from .training_arguments import DomainTrainingArguments

FINAL = "model.safetensors"
# Told in any case; the other arguments where they differ from their defaults.
TOLD = (
    "objective", "mlm_probability", "num_train_epochs", "learning_rate", "lr_scheduler_type", "warmup_steps", "optim",
    "weight_decay", "max_grad_norm", "per_device_train_batch_size", "gradient_accumulation_steps", "max_length", "seed",
    "task", "pooling",
)  # fmt: skip
# Where a run computes, writes and reports, and what is told beside the arguments: nothing that makes the weights.
_ELSEWHERE = re.compile(
    r"output_dir|dataset(_column)?|(train|validation)_file|label_column|model_name_or_path|model_size|resume_from_checkpoint|allow_changed_run|run_name"
    r"|use_wandb|use_cpu|no_mixed_precision|no_cuda_graphs|bf16|fp16|tf32|disable_tqdm|greater_is_better|local_rank|debug|project"
    r"|(hub|push|dataloader|ddp|log|logging|save|trackio|do|fsdp|report|accelerator|parallelism)_.*"
    r"|per_device_eval_batch_size|fsdp|ignore_data_skip|names a step|slots a step|content of the names"
)


@dataclass
class RunRecord:
    """The record of weights: those of a run, of a checkpoint, or of a model whose origin is not known.

    Args:
        model: the folder of the weights.
        run: that of the run, or None.
        config: of the model.
        starts: what ``run_arguments.json`` has of each start; empty if the origin is not known.
        state: the Trainer's, empty if there is none.
        metrics: figures of the evaluation of these weights, empty if there was none.
    """

    model: Path
    run: Path | None
    config: dict
    starts: list[dict]
    state: dict
    metrics: dict

    @property
    def history(self) -> list[dict]:
        """The Trainer's log."""
        return self.state.get("log_history", [])

    @property
    def settings(self) -> dict:
        return self.starts[-1]["settings"] if self.starts else {}

    @property
    def training(self) -> dict:
        return self.starts[-1]["training"] if self.starts else {}

    @property
    def data(self) -> dict:
        """As ``data.build_batches`` tells it, and who held which names."""
        return (self.starts[-1].get("data") if self.starts else None) or {}

    @property
    def origin(self) -> str | None:
        """Of the weights that the run began with: random, hub, local; None if it is not known."""
        return self.starts[0].get("origin") if self.starts else None

    @property
    def base(self) -> str | None:
        """The model that the run began with, unless it was random."""
        return None if self.origin in ("random", None) else self.settings["model_name_or_path"] or DEFAULT_MODEL

    @property
    def machine(self) -> dict:
        return self.starts[-1].get("machine", {}) if self.starts else {}

    @property
    def step(self) -> int | None:
        """Of the weights: the best ones may be older than the run."""
        return self.metrics.get("step", self.state.get("global_step"))

    @property
    def resumed_from(self) -> list[int]:
        """Steps that the run went on from."""
        return [start["resumed_from"] for start in self.starts if start.get("resumed_from")]

    @property
    def one_split(self) -> bool:
        """Whether all starts held out the same names; ``--allow_changed_run`` may have changed that."""
        names = "validation_split", "split_seed", "split_by", "validation_file"
        return len({tuple(start["settings"].get(name) for name in names) for start in self.starts}) < 2

    @property
    def last_exit(self) -> dict:
        """How the run ended: empty while it lasts, or after a kill."""
        return (_read(self.run / LAST_EXIT) if self.run else None) or {}

    @property
    def task(self) -> str:
        """As the Hub names it."""
        kind = (self.config.get("architectures") or [""])[0]
        return (
            "text-classification" if "SequenceClassification" in kind
            else "fill-mask" if "MaskedLM" in kind else "feature-extraction"
        )  # fmt: skip

    @cached_property
    def parameters(self) -> int | None:
        """From the headers of the weights' files."""
        count = 0
        for path in self.model.glob("*.safetensors"):
            with safe_open(path, "pt") as weights:
                count += sum(math.prod(weights.get_slice(name).get_shape()) for name in weights.keys())  # noqa: SIM118
        return count or None

    def points(self, figure: str) -> list[tuple[int, float]]:
        """(step, value) of a figure of the log, where it is finite."""
        return [(each["step"], each[figure]) for each in self.history if math.isfinite(each.get(figure, math.nan))]

    def seconds(self) -> float:
        """Spent in logged steps, of all starts, without evaluations and checkpoints."""
        total, before = 0.0, 0
        for entry in self.history:
            if rate := entry.get("names_per_second"):
                total += (entry["step"] - before) * (self.settings.get("names a step") or 0) / rate
                before = entry["step"]
        return total

    def arguments(self) -> list[tuple[str, str, str]]:
        """What makes the weights, of the latest start: the important arguments, and all that differ from their default.

        Returns:
            Name, value, and the default if it is another.
        """
        kinds = DataArguments, ModelArguments, DomainTrainingArguments
        if self.task == "text-classification":
            kinds = ClassifyDataArguments, ClassifierArguments, ClassifyTrainingArguments
        default = {each.name: each.default for kind in kinds for each in fields(kind) if each.default is not MISSING}
        values, rows = self.settings | self.training, []
        if values.get("objective") == "any_order":
            del values["mlm_probability"]  # it draws the number of masks
        for name in sorted(values, key=lambda name: TOLD.index(name) if name in TOLD else len(TOLD)):
            # None, False, "" and [] say the same: not set.
            changed = values[name] != default.get(name) and bool(values[name] or default.get(name))
            if name in TOLD or (changed and not _ELSEWHERE.fullmatch(name)):
                rows.append((name, _told(values[name]), _told(default.get(name)) if changed else ""))
        return rows


def read_record(model: Path) -> RunRecord:
    """Of a model's folder: a run folder, one of its checkpoints, or any model.

    Raises:
        UserError: there is no such folder, it holds no model, or a file of it is damaged.
    """
    if not model.is_dir():
        raise UserError(f"there is no folder {str(model)!r}; check the path")
    run = next((folder for folder in (model, model.resolve().parent) if (folder / RUN_FILE).is_file()), None)
    if not (model / "config.json").is_file():
        raise UserError(f"the folder {str(model)!r} holds no model (no config.json)")
    state, metrics = _read(model / TRAINER_STATE_NAME), _read(model / "eval_results.json")
    if state is None and run is not None and (kept := whole_checkpoints(run)):
        state = _read(kept[-1] / TRAINER_STATE_NAME)
    state = state or {}
    if state and not {"global_step", "max_steps"} <= state.keys():
        raise _strange(model / TRAINER_STATE_NAME)
    if metrics is None:
        entries = [entry for entry in state.get("log_history", []) if "eval_loss" in entry]
        metrics = next((entry for entry in entries if entry["step"] == state["global_step"]), {})
    starts = (_read(run / RUN_FILE, list) if run else None) or []
    if any(not isinstance(start, dict) or not {"started", "settings", "training"} <= start.keys() for start in starts):
        raise _strange(run / RUN_FILE)
    starts = in_weights(starts, state.get("global_step", math.inf))
    record = RunRecord(model, run, _read(model / "config.json"), starts, state, metrics)
    try:
        record.parameters  # noqa: B018
    except SafetensorError as error:
        raise UserError(f"the weights in {str(model)!r} are damaged: {first_line(error)}") from error
    return record


def newest_weights(folder: Path) -> Path:
    """Where a run's weights are: in its folder once it has ended, else in its newest whole checkpoint.

    Of any other folder itself.

    Raises:
        UserError: the run has neither yet.
    """
    if not (folder / RUN_FILE).is_file():
        return folder
    kept, final = whole_checkpoints(folder), (folder / FINAL).is_file()
    step = (_read(folder / TRAINER_STATE_NAME) or {}).get("global_step", -1)
    ended = (_read(folder / LAST_EXIT) or {}).get("status") == "finished"
    if final and (ended or not kept or step >= step_of(kept[-1])):
        return folder
    if not kept:
        raise UserError(f"the run in {str(folder)!r} has no checkpoint yet; wait for its first one, after --save_steps")
    return kept[-1]


def _told(value):
    return f"{value:g}" if isinstance(value, float) else "not set" if value is None else str(value)


def _read(path, kind=dict):
    """A JSON file's content, None if there is none."""
    try:
        found = json.loads(path.read_text()) if path.is_file() else None
    except (OSError, ValueError) as error:
        raise UserError(f"{str(path)!r} cannot be read: {first_line(error)}") from error
    if found is not None and not isinstance(found, kind):
        raise _strange(path)
    return found


def _strange(path):
    return UserError(f"{str(path)!r} is not what a run writes there; move it away if it is another program's")
