"""Training by the Hugging Face Trainer, with exact sums."""

import json
import math
import shutil
from functools import cached_property, partial
from pathlib import Path

import torch
from accelerate.utils import broadcast
from huggingface_hub import HfApi
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import EvalLoopOutput, IntervalStrategy, SaveStrategy

from . import checkpoints
from .errors import UserError, first_line
from .guards import poisoned
from .masking import IGNORED
from .meter import mean
from .recorded import RecordedSteps, cut, largest_pass
from .reporting import make_unfailing
from .resumable import CANNOT_WRITE, EvaluationInterrupted, ResumableTrainer
from .run_folder import agreed
from .sharing import create_repository, refuse_public


class DomainTrainer(ResumableTrainer):
    """The loss and its log entry are total nats over total masked characters, or names, across ranks and accumulation;
    the evaluation adds up; the final folder gets the best weights.
    """

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.recorded: RecordedSteps | None = None
        make_unfailing(self)

    # ---- loss

    def _get_num_items_in_batch(self, batch_samples, device):
        """Summed weights of the targets of a whole step, over micro-batches and ranks."""
        items = sum(target_weight(batch) for batch in batch_samples)
        return self.begin_step(batch_samples, self._prepare_input(items))

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        loss, outputs, nats, weight = losses(model, inputs, num_items_in_batch)
        self.meter.add(nats, weight)
        # Gradients are averaged over the processes, while the loss is divided by the items of all of them.
        loss = loss * self.accelerator.num_processes
        return (loss, outputs) if return_outputs else loss

    def _prepare_for_training(self, *args, **kwargs):
        """As the Trainer's; what is recorded is the model of a call of train()."""
        self.recorded = None
        if not self.args.records_steps:
            return super()._prepare_for_training(*args, **kwargs)
        # Without DDP, which adds up gradients within the backward pass, on the stream that it was made on: that cannot
        # be recorded. Ours are added up after it.
        self.accelerator.prepare_model = partial(self.accelerator.prepare_model, evaluation_mode=True)
        try:
            model, dataloader = super()._prepare_for_training(*args, **kwargs)
        finally:
            del self.accelerator.prepare_model
        if self.args.world_size > 1:
            broadcast([parameter.data for parameter in model.parameters()])
        step = partial(micro_step, self.accelerator, model)
        self.recorded = RecordedSteps(model.parameters(), step, self.args.device, largest_pass(self.args.device))
        return model, dataloader

    def training_step(self, model, inputs, num_items_in_batch=None):
        if self.recorded is None:
            return super().training_step(model, inputs, num_items_in_batch)
        model.train()
        loss, nats, weight = self.recorded({**inputs, "items": num_items_in_batch})
        self.meter.add(nats, weight)
        if self.args.world_size > 1 and self.accelerator.sync_gradients:
            self.recorded.add_up()
        return loss * self.accelerator.num_processes  # as compute_loss's, for the Trainer's own mean

    @cached_property
    def _operations_a_slot(self):
        return super().floating_point_ops({"input_ids": torch.zeros(1)})

    def floating_point_ops(self, inputs):
        """As the Trainer's, which counts the model's parameters for each micro-step."""
        return inputs["input_ids"].numel() * self._operations_a_slot

    def log(self, logs, start_time=None):
        if "loss" in logs:
            # The Trainer's own entry is a mean of the steps' means.
            logs["loss"] = self.meter.close(self.since_log())
            logs |= self.kind.of_loss(logs["loss"])
            logs["names_per_second"] = self.bar.names_per_step / self.speed.seconds_a_step()
        if "train_loss" in logs:
            self.meter.close(self.since_log())
            logs["train_loss"] = mean(self.meter.total)
        super().log(logs, start_time)

    # ---- evaluation

    def evaluation_loop(
        self, dataloader, description, prediction_loss_only=None, ignore_keys=None, metric_key_prefix="eval"
    ):
        """All batches of all ranks, added up by ``kind``; one that is too large for a pass takes several."""
        model = self.model_wrapped if self.is_in_train else self._prepared_for_evaluation()
        model.eval()
        if hasattr(self.optimizer, "eval"):  # schedule-free ones have weights of their own for it
            self.optimizer.eval()
        self.callback_handler.eval_dataloader = dataloader
        self.kind.begin(self.args.device)
        # Of sharded weights all processes need passes at the same time, and so the same number.
        largest = math.inf if self.args.sharded else largest_pass(self.args.device)
        with torch.no_grad():
            for index, batch in enumerate(dataloader):
                if self.is_in_train and self.evaluation_stops(index):
                    raise EvaluationInterrupted
                for part in cut(batch, largest):
                    self.kind.add(model, self._prepare_inputs(part))
                self.control = self.callback_handler.on_prediction_step(self.args, self.state, self.control)
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in self.kind.figures(self.accelerator).items()}
        return EvalLoopOutput(predictions=None, label_ids=None, metrics=metrics, num_samples=len(dataloader.dataset))

    def _prepared_for_evaluation(self):
        if not self.accelerator._models:
            return self.accelerator.prepare_model(self.model, evaluation_mode=True)
        return self.model

    # ---- the model on disk

    def save_final(self) -> tuple[str, dict[str, float]]:
        """Put the best weights into the run folder, with their figures and the log; the last if the best were not kept.

        Returns:
            ``best`` or ``last``, and the figures of these weights' evaluation (empty if there was none).

        Raises:
            UserError: they cannot be written.
        """
        args, run, state = self.args, Path(self.args.output_dir), self.state
        best = run / f"checkpoint-{state.best_global_step}"
        # A best of an earlier start may be there, which what was trained since was never compared with.
        compared = args.save_strategy != SaveStrategy.NO and args.eval_strategy != IntervalStrategy.NO
        which, step, source = "last", state.global_step, run / checkpoints.WRITING / "last"
        if checkpoints.is_whole(best) and (compared or step == state.best_global_step):
            which, step, source = "best", state.best_global_step, best
        evaluations = [entry for entry in state.log_history if "eval_loss" in entry and entry["step"] == step]
        metrics, failure = evaluations[-1] if evaluations else {}, None
        try:
            if which == "last":
                self.save_model(str(source), _internal_call=True)
            if args.should_save:
                checkpoints.copy_model(source, run)
                (run / "eval_results.json").write_text(json.dumps(metrics, indent=1) + "\n")
                state.save_to_json(str(run / f".{TRAINER_STATE_NAME}"))
                (run / f".{TRAINER_STATE_NAME}").replace(run / TRAINER_STATE_NAME)
        except CANNOT_WRITE as error:
            failure = first_line(error)
        if args.should_save:
            shutil.rmtree(run / checkpoints.WRITING, ignore_errors=True)
        if self._any(failure is not None):
            whole = [kept.name for kept in checkpoints.whole_checkpoints(run)]
            remedy, then = (
                "make room and give the command with --resume_from_checkpoint",
                "there is no checkpoint of them",
            )
            if f"checkpoint-{step}" in whole:
                then = f"they are safe in checkpoint-{step}: {remedy}"
            elif whole:
                then += f", but {whole[-1]}: {remedy}"
            raise UserError(f"the {which} weights could not be written to {str(run)!r} ({failure}); {then}")
        return which, metrics

    def make_repository(self) -> None:
        """On the Hub, by the main process; ``hub_model_id`` is its name then.

        Raises:
            UserError: one of this name is there, and public where it is to be private.
        """
        super().init_hf_repo()
        refuse_public(
            HfApi(token=self.args.hub_token), self.hub_model_id, self.args.hub_private_repo, "--no_hub_private_repo"
        )

    def init_hf_repo(self, token=None, private=None):
        """As the Trainer's, at the start; where the Hub is away ``hub_model_id`` stays None.

        Raises:
            UserError: the Hub refuses.
        """
        agreed(self.args, lambda: create_repository(self.args, self.make_repository))


def losses(model, inputs: dict, items: torch.Tensor) -> tuple:
    """What to go back from, the outputs, and what the meter adds up: nats, and the weight of the targets."""
    outputs = model(**inputs, num_items_in_batch=items)
    return poisoned(outputs.loss), outputs, (outputs.loss * items).detach(), target_weight(inputs)


def micro_step(accelerator, model, batch: dict) -> tuple[torch.Tensor, ...]:
    """Forward and backward pass, of which nothing but the loss and the meter's sums is needed any more.

    Of no trainer: it would hold what holds it, and so the device's memory after the run.
    """
    inputs = {name: each for name, each in batch.items() if name != "items"}
    loss, _, nats, weight = losses(model, inputs, batch["items"])
    accelerator.backward(loss)
    return loss.detach(), nats, weight


def target_weight(batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Summed weights of a batch's targets: of masked characters, of all characters for any_order, or of names."""
    labels, weights = batch["labels"], batch.get("loss_weights")
    if labels.ndim == 1:
        return weights.sum()
    targets = (labels != IGNORED).float()
    return (targets if weights is None else targets * weights[:, None]).sum()
