"""A Trainer that stops in good order, and goes on as if it had never stopped."""

import json
import shutil
import sys
from contextlib import contextmanager, nullcontext
from pathlib import Path
from pickle import UnpicklingError
from signal import SIGTERM

import torch
from safetensors import SafetensorError
from transformers import PrinterCallback, ProgressCallback, Trainer
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import ExportableState, TrainerState
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from . import checkpoints
from .callbacks import CheckpointCallback, EarlyStopping, ProgressBar, Speed, StreamEpoch
from .errors import Stopped, UserError, first_line
from .guards import FP16_IN_A_ROW, FiniteSteps, Late, memory_is_out, out_of_memory
from .loader import BatchLoader
from .memory import fit_batch, join_micro_steps
from .meter import Meter
from .metrics import MaskedFigures
from .rates import AskedRates
from .run_file import asked_anew
from .run_folder import agreed
from .sharded import gathered, keep_sums_in_fp32, refuse_other_kind
from .stopping import StopRequest
from .streams import StreamBatches
from .walks import walked_once

# What a checkpoint keeps beside the Trainer's own: sums of the loss, steps skipped.
PROGRESS = "progress.json"
CANNOT_WRITE = (OSError, RuntimeError, SafetensorError)  # of safetensors, of torch.save


class EvaluationInterrupted(Exception):
    """A signal came while evaluating."""


@contextmanager
def _mistakes_of(what):
    try:
        yield
    except (ValueError, ImportError) as error:
        raise UserError(f"{what}: {first_line(error)}") from error


class ResumableTrainer(Trainer):
    """``Trainer`` over ``NameBatches`` or ``StreamBatches``.

    Overridden: the loaders (batches are made in the workers and not sharded again); the writing of checkpoints (beside,
    then renamed; no pickled arguments, which would hold the Hub's token); what a resume restores; and what happens
    between two steps: a signal is heeded, a step that was not finite is told.

    Args:
        stop: whether somebody wants training to end.
        kind: what evaluations add up, and how losses and figures are told: MaskedFigures, or what is made like it.
    """

    def __init__(self, stop: StopRequest | None = None, kind=None, **kwargs):
        with _mistakes_of("the Trainer does not take these flags"):
            super().__init__(**kwargs)
        self.kind = kind or MaskedFigures()
        self.model_class = type(self.model)
        if self.is_fsdp_enabled:
            keep_sums_in_fp32(self.accelerator)
        self.meter = Meter()
        self.stop, self.anyone_stops = stop or StopRequest(), None
        self.finite = FiniteSteps(
            Path(self.args.output_dir), self.args.max_skipped_steps, self.args.process_index,
            FP16_IN_A_ROW if self.args.fp16 else 0,
        )  # fmt: skip
        self.evaluation_missing = False
        # Ours is found before the first step; the Trainer's would start again in mid-run.
        self.finds_batch, self.args.auto_find_batch_size = self.args.auto_find_batch_size, False
        self.saved_step, self.since = None, 0
        self.streamed = isinstance(self.train_dataset, StreamBatches)
        for stock in (ProgressCallback, PrinterCallback):
            self.remove_callback(stock)
        if self.streamed:
            # A stream goes on where it was by itself; the Trainer would read it again from the start.
            self.args.ignore_data_skip = True
            self.add_callback(StreamEpoch(self.train_dataset.steps_per_epoch))
        self.add_callback(CheckpointCallback(None if self.streamed else self.train_dataset.plan.steps))
        self.bar = ProgressBar(self.meter, self.get_total_train_batch_size(self.args), self.kind)
        self.add_callback(self.bar)
        self.speed = Speed()
        self.add_callback(self.speed)
        if self.args.early_stopping_patience:
            self.add_callback(EarlyStopping(self.args.early_stopping_patience))

    # ---- data

    def get_train_dataloader(self):
        return BatchLoader(self.train_dataset, self.args)

    def get_eval_dataloader(self, eval_dataset=None):
        return BatchLoader(self.eval_dataset if eval_dataset is None else eval_dataset, self.args)

    def _prepare_input(self, data):
        """On the device. Copies to CUDA, from pinned memory, are not waited for; MPS's would read what is gone."""
        if isinstance(data, torch.Tensor):
            return data.to(self.args.device, non_blocking=self.args.device.type == "cuda")
        return super()._prepare_input(data)

    # ---- steps

    def create_optimizer(self, *args, **kwargs):
        """As the Trainer's.

        Raises:
            UserError: it needs what is not installed, or other numbers.
        """
        with _mistakes_of("--optim, or its numbers"):
            return super().create_optimizer(*args, **kwargs)

    def create_scheduler(self, *args, **kwargs):
        """As ``create_optimizer``."""
        with _mistakes_of("--lr_scheduler_type, or its numbers"):
            return super().create_scheduler(*args, **kwargs)

    def begin_step(self, batches: list[dict], items: torch.Tensor) -> torch.Tensor:
        """Told of a step's batches on the host, and how many items they hold; returns how many all processes have."""
        self.finite.begin(self.state.global_step + 1, batches)
        if self.args.world_size == 1:
            return items
        # Whether a process is to stop travels with it: all of them then know before the step's end.
        asked = torch.full((), float(self.stop.asked()), device=items.device)  # a fill: a copy would be waited for
        items, stops = self.accelerator.reduce(torch.stack([items, asked]), "sum")
        self.anyone_stops = Late(stops)
        return items

    def _clip_grad_norm(self, model):
        return super()._clip_grad_norm(self.walked)

    def _get_grad_norm(self, model, grad_norm=None):
        norm = super()._get_grad_norm(self.walked, grad_norm)
        rate = self._get_learning_rate()
        self.finite.observe(self.state.global_step + 1, rate, norm, self.walked, self.optimizer.optimizer)
        return norm

    def since_log(self) -> torch.Tensor:
        """Nats and weight (2,) since the latest log entry, of all processes."""
        return self.accelerator.reduce(self.meter.since_log.to(self.args.device), "sum")

    def _maybe_log_save_evaluate(self, *args, **kwargs):
        """As the Trainer's; a stop that was asked for comes here, after a checkpoint and without an evaluation."""
        control, stopping = self.control, self._stopping()
        # What is written must not hold a step that nobody has looked at.
        asked = control.should_save or control.should_evaluate or control.should_training_stop
        self.finite.settle(all_of_them=stopping or asked)
        if not stopping:
            try:
                return super()._maybe_log_save_evaluate(*args, **kwargs)
            except EvaluationInterrupted:
                pass
        saves = self.args.save_strategy != SaveStrategy.NO
        self.control.should_evaluate, self.control.should_save = False, saves
        super()._maybe_log_save_evaluate(*args, **kwargs)
        raise self._stopped()

    def _stopping(self):
        """Whether training ends here: on every process after the same step."""
        return self.stop.asked() if self.args.world_size == 1 else bool(self.anyone_stops.read())

    def evaluation_stops(self, index: int) -> bool:
        """Whether an evaluation is to end before this batch; the same on every process."""
        if self.args.world_size == 1:
            return self.stop.asked()
        return index % 16 == 0 and self._any(self.stop.asked())

    def _stopped(self):
        step = self.state.global_step
        kept = "is written" if self.saved_step == step else "is NOT written"
        why = self.stop.why or "stopped with another process"
        then = "--resume_from_checkpoint goes on"
        return Stopped(self.stop.signal or SIGTERM, f"{why} after step {step:,}: checkpoint-{step} {kept}; {then}")

    # ---- resume

    def train(self, resume_from_checkpoint=None, **kwargs):
        """As ``Trainer.train``; a run that had ended, by its steps or early, stays as it is.

        Raises:
            Stopped: by a signal, after a step and its checkpoint.
            UserError: the memory is out, a step was not finite, a file of the checkpoint would have run code, or it is
                of FSDP and this run is not.
        """
        if resume_from_checkpoint is not None:
            refuse_other_kind(Path(resume_from_checkpoint), self.is_fsdp_enabled)
            # By one process: a network file system may show another the file as it was.
            self.since = agreed(self.args, lambda: asked_anew(Path(self.args.output_dir)))
        try:
            if resume_from_checkpoint is not None and self._had_ended(resume_from_checkpoint):
                return None
            with self.stop.after_a_step():
                return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)
        except RuntimeError as error:
            if not memory_is_out(error):
                raise
            raise out_of_memory(error, self.args) from error
        except UnpicklingError as error:
            name = checkpoints.pickled_code(Path(resume_from_checkpoint))
            raise UserError(
                f"{name} of {str(resume_from_checkpoint)!r} is pickled with more than tensors, which could be code of "
                "anyone's: it is not loaded; go on from a checkpoint that you know, or give the weights alone to "
                "--model_name_or_path"
            ) from error
        finally:
            self.bar.close()

    def _had_ended(self, checkpoint):
        """Whether nothing is left to train; the state and the weights are then those of the checkpoint."""
        state = TrainerState.load_from_json(str(Path(checkpoint) / TRAINER_STATE_NAME))
        _, steps_per_epoch, _, _, _, _, planned = self.set_initial_training_values(
            self.args, self.get_train_dataloader()
        )
        stopping = state.stateful_callbacks.get(EarlyStopping.__name__, {}).get("attributes", {})
        patience = stopping.get("early_stopping_patience_counter", 0)
        early = self.args.early_stopping_patience and patience >= self.args.early_stopping_patience
        early = early and not self._asks_anew(state.global_step)
        if state.global_step < planned and not early:
            return False
        if self.is_world_process_zero():
            why = "it stopped early" if early else f"of {planned:,}"
            print(f"this run had ended at step {state.global_step:,} ({why}): nothing to train", file=sys.stderr)
        self.state = state
        self._find_best(0)  # whatever would be asked now, nothing was trained for it
        self._load_from_checkpoint(checkpoint)
        if self._lacks_evaluation(steps_per_epoch, planned):
            self._determine_best_metric(self.evaluate(), trial=None)
        return True

    def _inner_training_loop(self, *args, **kwargs):
        if self.finds_batch:
            fit_batch(self)
        elif self.args.records_steps and not self.streamed:  # a stream's steps are made of its batches
            join_micro_steps(self)
        if self.streamed and kwargs["resume_from_checkpoint"] is not None:
            self.train_dataset.resume(Path(kwargs["resume_from_checkpoint"]))
        return super()._inner_training_loop(*args, **kwargs)

    def _init_training_state(self, max_steps, steps_per_epoch, num_train_epochs, checkpoint, trial):
        progress = super()._init_training_state(max_steps, steps_per_epoch, num_train_epochs, checkpoint, trial)
        # The Trainer takes the intervals from the checkpoint; what is asked for now holds.
        self.state.compute_steps(self.args, max_steps)
        for callback in self.callback_handler.callbacks:
            if isinstance(callback, EarlyStopping):
                callback.early_stopping_patience = self.args.early_stopping_patience
        if self._asks_anew(self.state.global_step) and self.is_world_process_zero():
            told = "evaluations ask something else from here on: the best weights and the patience are counted anew"
            print(told, file=sys.stderr)
        if checkpoint is not None:
            self._find_best(self.since)
            self.saved_step = self.state.global_step
            self.evaluation_missing = self._lacks_evaluation(steps_per_epoch, max_steps)
            told = json.loads((Path(checkpoint) / PROGRESS).read_text())
            self.finite.skipped, self.finite.row = told["skipped"], told["row"]
            if self.is_world_process_zero():
                self.meter.load(told["meter"], self.args.device)
        return progress

    def _load_scaler(self, checkpoint):
        if self.accelerator.scaler is not None:  # a run in fp16 may go on in another precision
            super()._load_scaler(checkpoint)

    def _load_optimizer_and_scheduler(self, checkpoint):
        asked = AskedRates(self.optimizer)
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            asked.restore(self.optimizer, self.lr_scheduler)

    def _asks_anew(self, step):
        """Whether the start that goes on from this step has changed the question."""
        return self.since == step > 0

    def _find_best(self, since: int):
        """By the figure that is asked for now, among the checkpoints in this folder of which it was told ``since``."""
        comparable = [entry for entry in self.state.log_history if entry["step"] > since]
        self.state.best_metric, self.state.best_global_step = checkpoints.best_evaluation(
            Path(self.args.output_dir), comparable, f"eval_{self.args.metric_for_best_model}",
            self.args.greater_is_better,
        )  # fmt: skip

    def _lacks_evaluation(self, steps_per_epoch, planned):
        """Whether the checkpoint was written by a signal, before the evaluation that its step ends with."""
        args, state, by_epoch = self.args, self.state, self.args.eval_strategy == IntervalStrategy.EPOCH
        step, every = state.global_step, steps_per_epoch if by_epoch else state.eval_steps
        if args.eval_strategy == IntervalStrategy.NO or args.eval_delay > (state.epoch if by_epoch else step):
            return False
        due = step > 0 and (step % every == 0 or step >= planned)
        return due and not any("eval_loss" in entry and entry["step"] == step for entry in state.log_history)

    def _run_epoch(self, **kwargs):
        if self.evaluation_missing:
            self.evaluation_missing = False
            try:
                self._determine_best_metric(self._evaluate(None, None), trial=None)
            except EvaluationInterrupted:
                raise self._stopped() from None
            if self.control.should_training_stop:  # early
                return
        model = kwargs["model"]
        # FSDP puts other parameters in a module's place while it is brought together.
        with nullcontext(model) if self.is_fsdp_enabled else walked_once(model) as self.walked:
            super()._run_epoch(**kwargs)

    # ---- checkpoints

    def _save_checkpoint(self, model, trial):
        run, name = Path(self.args.output_dir), f"checkpoint-{self.state.global_step}"
        if self.saved_step == self.state.global_step:  # by an evaluation that falls on the end of an epoch
            return
        writing = run / checkpoints.WRITING
        if self.args.should_save:
            shutil.rmtree(writing, ignore_errors=True)  # what a killed process left
        self.accelerator.wait_for_everyone()
        failure = self._write_checkpoint(writing / name)
        failed = self._any(failure is not None)
        if self.args.should_save and not failed:
            try:
                checkpoints.seal(writing / name)
                checkpoints.move_in(writing / name, run / name)
                checkpoints.prune(run, self.args.save_total_limit, self.state.best_global_step)
            except OSError as error:
                failure = error
        failed = failed or self._any(failure is not None)
        if not failed:
            self.saved_step = self.state.global_step
        elif self.state.best_global_step == self.state.global_step:
            self._find_best(self.since)  # the one before is still there
        if failure is not None:
            print(
                f"warning: {name} could not be written: {first_line(failure)}; the run goes on, older checkpoints are "
                "kept, and the next one is tried when it is due",
                file=sys.stderr,
            )
        if self.args.should_save:
            shutil.rmtree(writing, ignore_errors=True)
        self.accelerator.wait_for_everyone()

    def _any(self, flag: bool) -> bool:
        """Whether it is so on any process."""
        return bool(self.accelerator.reduce(torch.tensor(float(flag), device=self.args.device), "sum").item())

    def _write_checkpoint(self, folder: Path) -> Exception | None:
        """All files of a checkpoint; each part is tried, since other ranks wait in it for this one.

        The Trainer's own also waits for all ranks in between, and rotates by time.
        """
        self.store_flos()
        since_log = self.since_log()
        failure = None
        for write in (
            lambda: self.save_model(str(folder), _internal_call=True),
            lambda: self._save_optimizer_and_scheduler(str(folder)),
            lambda: self._save_scaler(str(folder)),
            lambda: self._save_rng_state(str(folder)),
            lambda: self._save_state(folder, since_log),
            lambda: self.train_dataset.save(folder) if self.streamed else None,
        ):
            try:
                write()
            except CANNOT_WRITE as error:
                failure = failure or error
        return failure

    def _save_state(self, folder, since_log):
        if self.args.should_save:
            kept = [*self.callback_handler.callbacks, self.control]
            self.state.stateful_callbacks = {
                type(each).__name__: each.state() for each in kept if isinstance(each, ExportableState)
            }
            self.state.save_to_json(str(folder / TRAINER_STATE_NAME))
            told = {"meter": self.meter.state(since_log), "skipped": self.finite.skipped, "row": self.finite.row}
            (folder / PROGRESS).write_text(json.dumps(told))

    def _save(self, output_dir=None, state_dict=None):
        if self.args.should_save:
            model = self.accelerator.unwrap_model(self.model)
            if state_dict is not None:
                model = gathered(self.model_class, model)
            model.save_pretrained(output_dir, state_dict=state_dict)
            self.processing_class.save_pretrained(output_dir)
