"""The Trainer's flags, and what they mean on the device at hand."""

import os
from dataclasses import dataclass
from typing import Literal

import torch
from transformers import TrainingArguments
from transformers.training_args import OptimizerNames

from .arguments import flag, positive, seed
from .errors import UserError
from .paths import user_path

EVALUATED, EVALUATED_ON_A_GPU = 256, 4096  # names a batch
# Flags of the Trainer that would be ignored, or break what is promised.
REFUSED = {
    "save_on_each_node": "several machines share --output_dir",
    "load_best_model_at_end": "the output folder always gets the best weights",
    "save_only_model": "a checkpoint is there to resume from",
    "ignore_data_skip": "a resume jumps to its step at no cost",
    "dataloader_drop_last": "every name is used once an epoch",
    "label_smoothing_factor": "the loss is the exact one",
    "fp16_full_eval": "evaluation runs in the precision of the training",
    "bf16_full_eval": "evaluation runs in the precision of the training",
    "eval_on_start": "a resume would make that evaluation again",
}
OWN_GRAPHS = ("reduce-overhead", "max-autotune")  # modes of torch.compile


@dataclass
class DomainTrainingArguments(TrainingArguments):
    """The Trainer's arguments, with the published run as defaults."""

    output_dir: str | None = flag("./domain-canine-model", "Where checkpoints and the final model go.")
    num_train_epochs: float = flag(5, "Epochs.", aliases=["--epochs"])
    per_device_train_batch_size: int = flag(256, "Names a device and micro-step.", aliases=["--batch_size"])
    per_device_eval_batch_size: int | None = flag(
        None, f"Names a device in evaluation; by default {EVALUATED}, on a GPU {EVALUATED_ON_A_GPU}."
    )
    gradient_accumulation_steps: int = flag(2, "Micro-steps a step; 256 x 2 are 512 names a step on one device.")
    learning_rate: float = flag(1e-5, "Highest learning rate.")
    weight_decay: float = flag(0.01, "Weight decay of AdamW.")
    warmup_steps: float = flag(500, "Steps of linear warm-up; linear decay to 0 follows.")
    max_grad_norm: float = flag(1.0, "Gradients are clipped at this norm.")
    early_stopping_patience: int = flag(3, "Stop after this many evaluations without a better loss; 0 never stops.")
    eval_strategy: Literal["epoch", "steps", "no"] = flag(
        "epoch", "When to evaluate: epoch, steps (see --eval_steps) or no."
    )
    save_strategy: Literal["steps", "no"] = flag(
        "steps", "steps: every --save_steps and after each evaluation; no: the final model only."
    )
    save_steps: float = flag(10_000, "Steps between checkpoints.")
    save_total_limit: int | None = flag(3, "How many of the newest checkpoints are kept, beside the best one.")
    metric_for_best_model: Literal[
        "loss", "perplexity", "perplexity_name", "perplexity_suffix", "accuracy", "accuracy_top5"
    ] = flag("loss", "What the best checkpoint and early stopping go by.")
    logging_steps: float = flag(100, "Steps between log entries.")
    # The filter hides NaN and waits for the device in every micro-step.
    logging_nan_inf_filter: bool = flag(False, "Show the last finite loss instead of NaN.")
    dataloader_num_workers: int = flag(-1, "Worker processes that make batches; -1 finds the number from the machine.")
    dataloader_persistent_workers: bool = flag(True, "Keep the workers between epochs.")
    dataloader_prefetch_factor: int | None = flag(2, "Batches each worker makes ahead.")
    ddp_find_unused_parameters: bool | None = flag(False, "Search for parameters without gradient (there are none).")
    prediction_loss_only: bool = flag(True, "Evaluation keeps sums, never logits.")
    remove_unused_columns: bool = flag(False, "Batches hold what the model takes and nothing else.")
    restore_callback_states_from_checkpoint: bool = flag(True, "A resumed run keeps its early-stopping patience.")
    # Uploads of single checkpoints would carry the optimizer's state and the pickled arguments with the token.
    hub_strategy: Literal["end"] = flag("end", "When --push_to_hub uploads.")
    # One process a machine cleans the names while the others wait: 255 million take up to an hour.
    ddp_timeout: int = flag(3 * 3600, "Seconds that processes wait for each other.")
    hub_private_repo: bool | None = flag(True, "Whether the repository that --push_to_hub makes is private.")
    project: str = flag("domain-canine-pretrain", "Weights & Biases project.")
    use_wandb: bool = flag(False, "Log to Weights & Biases; offline where there is no login.")
    no_mixed_precision: bool = flag(False, "Compute in fp32 even where the device could do bf16 or fp16.")
    no_cuda_graphs: bool = flag(False, "Start each kernel of a step anew, where a recorded step could be replayed.")
    resume_from_checkpoint: str | None = flag(
        None, "Go on from this checkpoint; without a path, from the newest in --output_dir.",
        aliases=["--resume_from"], nargs="?", const="newest",
    )  # fmt: skip

    max_skipped_steps: int = flag(
        0, "Steps that may fail, their loss or gradient not finite, before the run stops; their updates are skipped."
    )
    allow_changed_run: bool = flag(False, "Resume although data, split, model, seed or batch differ from the run's.")

    def __post_init__(self):
        positive(
            self, "num_train_epochs", "per_device_train_batch_size", "per_device_eval_batch_size", "learning_rate",
            "gradient_accumulation_steps", "save_steps", "logging_steps", "save_total_limit", "eval_steps",
            "dataloader_prefetch_factor",
        )  # fmt: skip
        seed(self, "seed", 32)  # NumPy's
        seed(self, "data_seed")
        for name in (
            "early_stopping_patience", "weight_decay", "warmup_steps", "max_grad_norm", "max_skipped_steps",
        ):  # fmt: skip
            if not getattr(self, name) >= 0:
                raise UserError(f"--{name} must not be negative, but is {getattr(self, name)}")
        if self.max_steps != -1:
            positive(self, "max_steps")
        user_path(self.output_dir)  # which raises
        self.greater_is_better = (self.metric_for_best_model or "loss").startswith("accuracy")
        for name, why in REFUSED.items():
            if getattr(self, name):
                raise UserError(f"--{name} is not for this program: {why}")
        if (backend := os.environ.get("ACCELERATE_DYNAMO_BACKEND", "no").lower()) != "no":
            # As the launcher was told; what holds of --torch_compile holds of it.
            self.torch_compile, self.torch_compile_backend = True, self.torch_compile_backend or backend
            self.torch_compile_mode = self.torch_compile_mode or os.environ.get("ACCELERATE_DYNAMO_MODE")
        if self.torch_compile_mode in OWN_GRAPHS:
            raise UserError(
                f"--torch_compile_mode {self.torch_compile_mode} is not for this program: its CUDA graphs overwrite "
                "the gradients of the micro-step before; a GPU replays recorded steps without --torch_compile"
            )
        if self.early_stopping_patience and self.eval_strategy == "no":
            self.early_stopping_patience = 0
        self.use_cpu = self.use_cpu or launcher_says("CPU")  # which the Trainer does not look at
        self._choose_precision()
        if "ACCELERATE_MIXED_PRECISION" in os.environ:  # the launcher's, which may be another
            os.environ["ACCELERATE_MIXED_PRECISION"] = "no" if self.precision == "fp32" else self.precision
        self._choose_workers()
        if self.use_wandb:
            others = [self.report_to] if isinstance(self.report_to, str) else self.report_to or []
            self.report_to = ["wandb", *(each for each in others if each not in ("wandb", "none", "all"))]
        if int(os.environ.get("WORLD_SIZE", 1)) > 1 and not torch.cuda.is_available():
            # Processes that see no GPU would be a run of its own each, all in the same folder.
            self.use_cpu = True
        try:
            super().__post_init__()
        except (ValueError, ImportError) as error:
            raise UserError(str(error)) from error
        if self.torch_compile:
            # For each of a few shapes: with changing ones inductor of torch 2.13 fails (ValueRangeError).
            os.environ["ACCELERATE_DYNAMO_USE_DYNAMIC"] = "false"
            torch._dynamo.config.recompile_limit = 64
        if self.per_device_eval_batch_size is None:
            # A processor starts the kernels of 256 names in more time than a GPU takes for them.
            at_once = self.device.type == "cuda" and not (self.torch_compile or self.sharded)
            self.per_device_eval_batch_size = EVALUATED_ON_A_GPU if at_once else EVALUATED
        # Several GPUs take several processes (accelerate launch --multi_gpu); DataParallel would split ready batches.
        self._n_gpu = min(self._n_gpu, 1)

    def _choose_precision(self):
        """bf16 where the device computes in it, else fp16 on CUDA, else fp32.

        CPUs stay at fp32: most emulate bf16, at half the speed.
        """
        if self.no_mixed_precision and (self.bf16 or self.fp16):
            raise UserError("--no_mixed_precision and --bf16 or --fp16 contradict each other; give one of them")
        if self.use_cpu or not torch.cuda.is_available():
            if self.fp16:
                raise UserError("--fp16 is for CUDA, and this run is on a CPU, or a GPU of another kind; leave it out")
            return
        if not (self.no_mixed_precision or self.bf16 or self.fp16):
            self.bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
            self.fp16 = not self.bf16
        if self.tf32 is None and torch.cuda.get_device_capability() >= (8, 0):
            self.tf32 = True

    def _choose_workers(self):
        if self.dataloader_num_workers < 0:
            # One worker makes several hundred thousand names a second: four feed any GPU.
            cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
            self.dataloader_num_workers = min(4, max(0, cores // int(os.environ.get("LOCAL_WORLD_SIZE", 1)) - 1))
        if self.dataloader_num_workers == 0:
            self.dataloader_prefetch_factor = None
            self.dataloader_persistent_workers = False

    @property
    def records_steps(self) -> bool:
        """Whether micro-steps are replayed as CUDA graphs.

        Not where PyTorch looks at the host within a step: the scale of fp16, the random state of checkpointing; nor in
        what torch.compile makes, nor with optimisers that have a part in it; nor where weights travel meanwhile.
        Between processes that have all weights each, gradients can travel after it.
        """
        if self.device.type != "cuda" or self.no_cuda_graphs:
            return False
        # The former is the latter's old name, which transformers 5.18 does not know yet.
        checkpointing = self.gradient_checkpointing or getattr(self, "activation_checkpointing", None)
        optimiser = OptimizerNames(self.optim).value
        takes_part = any(word in optimiser for word in ("lomo", "layerwise", "schedule_free"))
        unfit = self.fp16 or checkpointing or self.torch_compile or self.full_determinism
        return not (unfit or takes_part or self.sharded)

    @property
    def sharded(self) -> bool:
        """Whether a process has a part of the weights, and needs the others for a pass."""
        kinds = ("FSDP", "DEEPSPEED", "MEGATRON_LM", "PARALLELISM_CONFIG")
        return bool(self.fsdp or self.deepspeed or any(map(launcher_says, kinds)))

    @property
    def precision(self) -> str:
        return "bf16" if self.bf16 else "fp16" if self.fp16 else "fp32"


def launcher_says(name: str) -> bool:
    """Whether ``accelerate launch`` was told to use it."""
    return os.environ.get(f"ACCELERATE_USE_{name}", "").lower() in ("true", "1", "yes")
