"""The flags of the training command for model and data; ``training_arguments`` has the Trainer's. The defaults are the
published run; hardware has its own files.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

from .errors import UserError
from .sample import SAMPLE

DEFAULT_MODEL = "google/canine-c"
DEFAULT_DATASET = "humbleworth/registered-domains"
LONGEST_INPUT = 255  # 253 characters of a name, [CLS] and [SEP]
SHORTEST_INPUT = 8  # the shortest names (a.co) and their frame, with a little room


def flag(default: Any, help: str, **metadata) -> Any:
    return field(default=default, metadata={"help": help, **metadata})


def positive(owner: Any, *names: str) -> None:
    for name in names:
        if (value := getattr(owner, name)) is not None and not 0 < value < float("inf"):
            raise UserError(f"--{name} must be above 0, not {value}")


def share(owner: Any, *names: str) -> None:
    for name in names:
        if not 0 < getattr(owner, name) < 1:
            raise UserError(f"--{name} must lie between 0 and 1, not {getattr(owner, name)}")


def seed(owner: Any, name: str, bits: int = 63) -> None:
    if (value := getattr(owner, name)) is not None and not 0 <= value < 2**bits:
        raise UserError(f"--{name} must be from 0 on and below 2**{bits}, not {value}")


def one_origin(owner: Any) -> None:
    if owner.model_size and owner.model_name_or_path:
        raise UserError(
            f"--model_size {owner.model_size} (random weights) and --model_name_or_path {owner.model_name_or_path} "
            "contradict each other; give one of them"
        )


def code_point(text: str) -> int:
    """``U+E003``, ``0xE003`` or ``57347`` -> 57347; a private-use code point, which no text contains.

    Raises:
        UserError: it is no number, or a code point that can occur in a name.
    """
    try:
        value = int(text.upper().replace("U+", "0X"), 0)
    except ValueError:
        raise UserError(f"--mask_code_point {text!r} is no code point; write it as U+E003") from None
    if not 0xE000 <= value <= 0xF8FF:
        raise UserError(
            f"--mask_code_point {text} is not a private-use code point (U+E000 to U+F8FF): a mask must never "
            "occur in a name; CANINE's own is U+E003"
        )
    if value == 0xE001:
        raise UserError("--mask_code_point U+E001 is CANINE's [SEP]; its mask is U+E003")
    return value


@dataclass
class ModelArguments:
    """Which model the training starts from."""

    model_name_or_path: str | None = flag(
        None,
        f"CANINE checkpoint to continue: a Hub id or a local folder; {DEFAULT_MODEL} unless --model_size is given.",
    )
    model_size: Literal["tiny", "small", "base"] | None = flag(
        None, "Start from random weights, in this size (1.7 M, 6.6 M, 132 M parameters), instead of a checkpoint."
    )
    config_overrides: str | None = flag(
        None, "Changes to the configuration of a --model_size: name=value, separated by commas."
    )
    mask_code_point: str | None = flag(
        None,
        "Stands for a masked character; the checkpoint's own by default, which is U+E003, CANINE's [MASK], unless it "
        "was trained here with another. U+E000 (CANINE's [CLS]) reproduces an earlier program.",
    )

    def __post_init__(self):
        one_origin(self)
        if self.config_overrides and not self.model_size:
            raise UserError("--config_overrides changes a model from random weights; it needs --model_size")
        if self.mask_code_point is not None:
            code_point(self.mask_code_point)


@dataclass
class DataArguments:
    """Which names, and how they are split and masked."""

    dataset: str = flag(
        DEFAULT_DATASET,
        "Hub id, local file, folder or glob (txt, csv, tsv, parquet; gz, zst, bz2), URL, prepared folder, or 'sample'.",
        aliases=["--dataset_name", "--train_file"],
    )
    dataset_column: str | None = flag(
        None, "Column with the names, for csv, tsv, parquet and Hub data.", aliases=["--column"]
    )
    streaming: bool = flag(False, "Read names while training instead of first; they are not de-duplicated then.")
    num_samples: int | None = flag(None, "Use the first so many valid names only (before the split), for a quick test.")
    max_length: int = flag(128, "Longest input in code points, [CLS] and [SEP] included; longer names are left out.")
    validation_split: float = flag(0.1, "Share of the names held out for validation, by a hash of the name.")
    split_seed: int = flag(0, "Seed of the split; change it to hold out other names.")
    objective: Literal["mlm", "any_order"] = flag(
        "mlm",
        "mlm: predict masked characters at once. any_order: train the autoregressive form, to score and generate.",
    )
    mlm_probability: float = flag(0.15, "Share of a name's characters that is masked (objective mlm).")
    mask_replace_prob: float = flag(0.8, "Share of the masked characters that becomes the mask.")
    random_replace_prob: float = flag(0.1, "Share of the masked characters that becomes a random character.")
    span_length: int = flag(1, "Mask runs of this many characters; 1 masks single characters.")
    fixed_shapes: bool = flag(False, "Pad batches to 11 shapes at most, for compiled kernels; 1%% more slots.")
    slots_per_batch: int | None = flag(
        None,
        "Batches of about so many character slots a device and micro-step (--batch_size is not used then): more short "
        "names, or fewer long ones.",
    )

    def __post_init__(self):
        positive(self, "num_samples", "span_length", "slots_per_batch")
        seed(self, "split_seed")
        if not SHORTEST_INPUT <= self.max_length <= LONGEST_INPUT:
            raise UserError(
                f"--max_length must lie between {SHORTEST_INPUT} and {LONGEST_INPUT} (a name has at most 253 "
                f"characters), not {self.max_length}"
            )
        share(self, "validation_split", "mlm_probability")
        replaced = self.mask_replace_prob + self.random_replace_prob
        if not (self.mask_replace_prob >= 0 and self.random_replace_prob >= 0 and replaced <= 1 + 1e-9):
            raise UserError(
                f"--mask_replace_prob {self.mask_replace_prob} and --random_replace_prob {self.random_replace_prob} "
                "must be at least 0 and at most 1 together"
            )
        if self.objective == "any_order" and (self.span_length > 1 or self.mlm_probability != 0.15):
            raise UserError(
                "--objective any_order draws how many characters are masked, and which; leave --mlm_probability and "
                "--span_length out"
            )
        if self.streaming and self.dataset == SAMPLE:
            raise UserError("--dataset sample is made in memory; leave --streaming out")
        for name in ("fixed_shapes", "slots_per_batch"):
            if self.streaming and getattr(self, name):
                raise UserError(f"--{name} needs names that are prepared; leave it or --streaming out")
        if self.slots_per_batch:
            self._check_slots()
        if self.fixed_shapes and self.slots_per_batch:
            raise UserError("--fixed_shapes and --slots_per_batch contradict each other; give one of them")

    def _check_slots(self):
        from .cleaning import SPECIAL
        from .scoring_domain_canine import slots  # and PyTorch with it

        if self.slots_per_batch < (least := slots(self.max_length - SPECIAL)):
            raise UserError(
                f"--slots_per_batch {self.slots_per_batch} is less than one name of --max_length {self.max_length} "
                f"takes, {least}; a few thousand suit"
            )
