"""The Hugging Face Trainer with exact sums, ready-made batches and whole checkpoints."""

import json
import shutil
import sys
from collections import deque
from pathlib import Path

import torch
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainerCallback
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import TrainerState
from transformers.trainer_utils import EvalLoopOutput

from . import checkpoints
from .callbacks import CheckpointCallback, EarlyStopping, ProgressBar
from .errors import UserError, first_line
from .loader import BatchLoader
from .masking import IGNORED
from .memory import fit_batch
from .metrics import SUMS, figures, masked_sums, perplexity, suffix_positions
from .streams import StreamBatches


class Meter:
    """The nats and weights of the latest micro-batches, kept on the device until somebody asks."""

    def __init__(self, batches: int = 100):
        self.latest = deque(maxlen=batches)
        self.since_log = torch.zeros(2)

    def add(self, nats: torch.Tensor, weight: torch.Tensor) -> None:
        both = torch.stack([nats.float(), weight.float()])
        self.latest.append(both)
        self.since_log = self.since_log.to(both.device) + both

    def loss(self) -> float:
        """Nats per masked character over the latest batches of this process."""
        if not self.latest:
            return float("nan")
        nats, weight = torch.stack(tuple(self.latest)).sum(0).tolist()
        return nats / weight if weight else float("nan")


class StreamEpoch(TrainerCallback):
    """The epoch of a stream, None if its length is unknown: the Trainer counts the batches since the start alone."""

    def __init__(self, steps_per_epoch: int | None):
        self.steps_per_epoch = steps_per_epoch

    def on_step_end(self, args, state, control, **kwargs):
        state.epoch = self.steps_per_epoch and state.global_step / self.steps_per_epoch


class DomainTrainer(Trainer):
    """``Trainer`` over ``NameBatches`` or ``StreamBatches``.

    Overridden: the loaders (batches are made in the workers and not sharded again), the loss and its log entry (total
    nats over total masked characters, across ranks and accumulation), the evaluation loop (sums, no logits kept) and
    the writing of checkpoints (beside, then renamed; no pickled arguments, which would hold the Hub's token).
    """

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.meter = Meter()
        # Ours is found before the first step; the Trainer's would start again in mid-run.
        self.finds_batch, self.args.auto_find_batch_size = self.args.auto_find_batch_size, False
        self.saved_step = None
        self.streamed = isinstance(self.train_dataset, StreamBatches)
        for stock in (ProgressCallback, PrinterCallback):
            self.remove_callback(stock)
        if self.streamed:
            # A stream goes on where it was by itself; the Trainer would read it again from the start.
            self.args.ignore_data_skip = True
            self.add_callback(StreamEpoch(self.train_dataset.steps_per_epoch))
        self.add_callback(CheckpointCallback(None if self.streamed else self.train_dataset.plan.steps))
        self.add_callback(ProgressBar(self.meter, self.get_total_train_batch_size(self.args)))
        if self.args.early_stopping_patience:
            self.add_callback(EarlyStopping(self.args.early_stopping_patience))

    # ---- data

    def get_train_dataloader(self):
        return BatchLoader(self.train_dataset, self.args)

    def get_eval_dataloader(self, eval_dataset=None):
        return BatchLoader(self.eval_dataset if eval_dataset is None else eval_dataset, self.args)

    def _prepare_input(self, data):
        if isinstance(data, torch.Tensor):
            return data.to(self.args.device, non_blocking=True)
        return super()._prepare_input(data)

    # ---- loss

    def _get_num_items_in_batch(self, batch_samples, device):
        """Summed weights of the targets of a whole step, over micro-batches and ranks."""
        items = sum(target_weight(batch) for batch in batch_samples).to(device)
        return self.accelerator.reduce(items, "sum") if self.args.world_size > 1 else items

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        items = num_items_in_batch.clamp(min=1)
        outputs = model(**inputs, num_items_in_batch=items)
        self.meter.add((outputs.loss * items).detach(), target_weight(inputs))
        # Gradients are averaged over the processes, while the loss is divided by the items of all of them.
        loss = outputs.loss * self.accelerator.num_processes
        return (loss, outputs) if return_outputs else loss

    def log(self, logs, start_time=None):
        if "loss" in logs:
            # The Trainer's own entry is a mean of the steps' means.
            since = self.accelerator.reduce(self.meter.since_log.to(self.args.device), "sum")
            nats, weight = since.tolist()
            logs["loss"] = nats / weight if weight else float("nan")
            logs["perplexity"] = perplexity(logs["loss"])
            self.meter.since_log = torch.zeros(2)
        super().log(logs, start_time)

    # ---- evaluation

    def evaluation_loop(
        self, dataloader, description, prediction_loss_only=None, ignore_keys=None, metric_key_prefix="eval"
    ):
        """Sums over all batches and ranks, then the figures of ``metrics.figures``."""
        model = self.model_wrapped if self.is_in_train else self._prepared_for_evaluation()
        model.eval()
        self.callback_handler.eval_dataloader = dataloader
        sums = torch.zeros(len(SUMS), dtype=torch.float32 if self.args.device.type == "mps" else torch.float64)
        sums = sums.to(self.args.device)
        with torch.no_grad():
            for batch in dataloader:
                batch = self._prepare_inputs(batch)
                weights = batch.pop("loss_weights", None)
                suffix = suffix_positions(batch)
                labels = batch.pop("labels")
                sums += masked_sums(model(**batch).logits, labels, suffix, weights)
                self.control = self.callback_handler.on_prediction_step(self.args, self.state, self.control)
        told = figures(self.accelerator.reduce(sums, "sum"))
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in told.items()}
        return EvalLoopOutput(predictions=None, label_ids=None, metrics=metrics, num_samples=len(dataloader.dataset))

    def _prepared_for_evaluation(self):
        if not self.accelerator._models:
            return self.accelerator.prepare_model(self.model, evaluation_mode=True)
        return self.model

    # ---- resume

    def train(self, resume_from_checkpoint=None, **kwargs):
        """As ``Trainer.train``; a run that had ended, by its steps or early, stays as it is."""
        if resume_from_checkpoint is not None:
            state = TrainerState.load_from_json(str(Path(resume_from_checkpoint) / TRAINER_STATE_NAME))
            planned = self.set_initial_training_values(self.args, self.get_train_dataloader())[6]
            stopping = state.stateful_callbacks.get(EarlyStopping.__name__, {}).get("attributes", {})
            patience = stopping.get("early_stopping_patience_counter", 0)
            early = self.args.early_stopping_patience and patience >= self.args.early_stopping_patience
            if state.global_step >= planned or early:
                if self.is_world_process_zero():
                    why = "it stopped early" if early else f"of {planned:,}"
                    print(
                        f"this run had ended at step {state.global_step:,} ({why}): nothing to train", file=sys.stderr
                    )
                self.state = state
                # The weights of the checkpoint, should they be the ones to save.
                self._load_from_checkpoint(resume_from_checkpoint)
                return None
        return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)

    def _inner_training_loop(self, *args, **kwargs):
        if self.finds_batch:
            fit_batch(self)
        if self.streamed and kwargs["resume_from_checkpoint"] is not None:
            self.train_dataset.resume(Path(kwargs["resume_from_checkpoint"]))
        return super()._inner_training_loop(*args, **kwargs)

    def _init_training_state(self, *args):
        progress = super()._init_training_state(*args)
        best = Path(self.args.output_dir) / f"checkpoint-{self.state.best_global_step}"
        if self.state.best_global_step and not checkpoints.is_whole(best):
            # A best that is not in this folder, of another run perhaps, is none of ours.
            self.state.best_metric = self.state.best_global_step = self.state.best_model_checkpoint = None
        return progress

    # ---- checkpoints

    def _get_output_dir(self, trial):
        return str(Path(self.args.output_dir) / checkpoints.WRITING)

    def _save_checkpoint(self, model, trial):
        run, name = Path(self.args.output_dir), f"checkpoint-{self.state.global_step}"
        best = self.state.best_global_step
        if self.saved_step == self.state.global_step:  # by an evaluation that falls on the end of an epoch
            return
        self.saved_step = self.state.global_step
        if self.args.should_save:
            shutil.rmtree(run / checkpoints.WRITING, ignore_errors=True)  # what a killed process left
        self.accelerator.wait_for_everyone()
        super()._save_checkpoint(model, trial)
        written = run / checkpoints.WRITING / name
        if self.streamed:
            self.train_dataset.save(written)
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            self.state.best_model_checkpoint = str(run / f"checkpoint-{best}") if best else None
            self.state.save_to_json(str(written / TRAINER_STATE_NAME))
            checkpoints.move_in(written, run / name)
            checkpoints.prune(run, self.args.save_total_limit, best)
            (run / checkpoints.WRITING).rmdir()
        self.accelerator.wait_for_everyone()

    def _save(self, output_dir=None, state_dict=None):
        if self.args.should_save:
            self.accelerator.unwrap_model(self.model).save_pretrained(output_dir, state_dict=state_dict)
            self.processing_class.save_pretrained(output_dir)

    def save_final(self) -> tuple[str, dict[str, float]]:
        """Put the best weights and their figures into the run folder; the last ones if the best were not kept.

        Returns:
            ``best`` or ``last``, and the figures of these weights' evaluation (empty if there was none).
        """
        run, state = Path(self.args.output_dir), self.state
        best = run / f"checkpoint-{state.best_global_step}"
        which, step = ("best", state.best_global_step) if checkpoints.is_whole(best) else ("last", state.global_step)
        evaluations = [entry for entry in state.log_history if "eval_loss" in entry and entry["step"] == step]
        metrics = evaluations[-1] if evaluations else {}
        if which == "last":
            self.save_model(str(run), _internal_call=True)
        elif self.args.should_save:
            checkpoints.copy_model(best, run)
        if self.args.should_save:
            (run / "eval_results.json").write_text(json.dumps(metrics, indent=1) + "\n")
        self.accelerator.wait_for_everyone()
        return which, metrics

    def init_hf_repo(self, token=None, private=None):
        try:
            super().init_hf_repo(token, private)
        except Exception as error:  # of the Hub client, or of whichever HTTP library it uses
            raise UserError(
                f"--push_to_hub: the Hub does not take a repository from here: {first_line(error)}\n"
                "  Log in with 'hf auth login' or HF_TOKEN, check --hub_model_id, or leave --push_to_hub out."
            ) from error


def target_weight(batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Summed weights of a batch's targets: their number, or the characters of its names for any_order."""
    targets = (batch["labels"] != IGNORED).float()
    if "loss_weights" in batch:
        targets = targets * batch["loss_weights"][:, None]
    return targets.sum()
