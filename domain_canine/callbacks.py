"""What happens between steps: checkpoints with every evaluation, early stopping, the progress bar."""

import sys
import time

from tqdm import tqdm
from transformers import EarlyStoppingCallback, TrainerCallback
from transformers.trainer_utils import SaveStrategy

from .metrics import told_perplexity


class CheckpointCallback(TrainerCallback):
    """A checkpoint after every evaluation and epoch, beside those every ``save_steps``; never two of one step.

    The last step of an epoch is saved after its evaluation only: saved before, a resume would skip the evaluation.
    """

    def __init__(self, steps_per_epoch: int | None):
        self.steps_per_epoch = steps_per_epoch

    def on_step_end(self, args, state, control, **kwargs):
        ends_epoch = self.steps_per_epoch and state.global_step % self.steps_per_epoch == 0
        if ends_epoch or control.should_training_stop:
            control.should_save = False
        return control

    def on_evaluate(self, args, state, control, **kwargs):
        control.should_save = args.save_strategy != SaveStrategy.NO
        return control

    on_epoch_end = on_evaluate


class StreamEpoch(TrainerCallback):
    """The epoch of a stream, and a checkpoint after each; None if its length is unknown.

    The Trainer counts the batches since the start alone, and knows of no end before that of the run.
    """

    def __init__(self, steps_per_epoch: int | None):
        self.steps_per_epoch = steps_per_epoch

    def on_step_end(self, args, state, control, **kwargs):
        state.epoch = self.steps_per_epoch and state.global_step / self.steps_per_epoch
        if self.steps_per_epoch and state.global_step % self.steps_per_epoch == 0:
            control.should_save = args.save_strategy != SaveStrategy.NO
        return control


class EarlyStopping(EarlyStoppingCallback):
    """Stock early stopping; the best weights are kept by our own checkpoints, so its warning does not apply."""

    def on_train_begin(self, args, state, control, **kwargs):
        pass

    def on_evaluate(self, args, state, control, metrics, **kwargs):
        super().on_evaluate(args, state, control, metrics, **kwargs)
        # The run's last step asks to stop, too.
        if self.early_stopping_patience_counter >= self.early_stopping_patience and state.is_world_process_zero:
            metric = args.metric_for_best_model.replace("_", " ")
            told = f"stopping early: {self.early_stopping_patience} evaluations without a better {metric}"
            tqdm.write(told, file=sys.stderr)  # on a line of its own, above the bar


class Speed(TrainerCallback):
    """Seconds a step since the latest log entry, without evaluations and checkpoints."""

    def __init__(self):
        self.seconds, self.steps, self.began = 0.0, 0, 0.0

    def _begin(self, args, state, control, **kwargs):
        self.began = time.monotonic()

    on_train_begin = on_evaluate = on_save = _begin

    def _count(self):
        now = time.monotonic()
        self.seconds, self.began = self.seconds + now - self.began, now

    def on_step_end(self, args, state, control, **kwargs):
        self._count()
        self.steps += 1

    def seconds_a_step(self) -> float:
        self._count()
        rate, self.seconds, self.steps = self.seconds / max(self.steps, 1), 0.0, 0
        return rate


class ProgressBar(TrainerCallback):
    """A live bar: mean loss of the last 100 batches, perplexity, learning rate, names a second.

    Args:
        meter: the trainer's, which knows the loss.
        names_per_step: the global batch.
        kind: of evaluation.
    """

    def __init__(self, meter, names_per_step: int, kind):
        self.meter, self.names_per_step, self.kind = meter, names_per_step, kind
        # Into a file, a line now and then; on a terminal, twice a second.
        self.interval = 0.5 if sys.stderr.isatty() else 30.0
        self.bar = self.evaluation = None

    def on_train_begin(self, args, state, control, **kwargs):
        if state.is_world_process_zero and not args.disable_tqdm:
            self.bar = tqdm(
                total=state.max_steps, initial=state.global_step, unit=" steps", dynamic_ncols=True, miniters=1
            )
            self.bar.mininterval = self.interval
        self._restart(state)

    def _restart(self, state):
        self.last_time, self.last_step = time.monotonic(), state.global_step

    def on_step_end(self, args, state, control, lr_scheduler=None, **kwargs):
        if self.bar is None:
            return
        elapsed = time.monotonic() - self.last_time
        if elapsed >= self.interval or state.global_step >= state.max_steps:
            loss = self.meter.loss()  # the only place of a step that waits for the device
            rate = (state.global_step - self.last_step) * self.names_per_step / max(elapsed, 1e-9)
            told = f"loss {loss:.3f}, "
            told += "".join(f"{name} {told_perplexity(value)}, " for name, value in self.kind.of_loss(loss).items())
            told += f"lr {lr_scheduler.get_last_lr()[0]:.2e}, {rate:,.0f} names/s"
            self.bar.set_postfix_str(told, refresh=False)
            self.bar.n = state.global_step
            self.bar.refresh()
            self._restart(state)

    def on_prediction_step(self, args, state, control, eval_dataloader=None, **kwargs):
        if self.bar is not None:
            if self.evaluation is None:
                self.evaluation = tqdm(total=len(eval_dataloader), desc="evaluating", leave=False, unit=" batches")
                self.evaluation.mininterval = self.interval
            self.evaluation.update()

    def on_evaluate(self, args, state, control, metrics=None, **kwargs):
        if self.evaluation is not None:
            self.evaluation.close()
            self.evaluation = None
        if self.bar is not None and "eval_loss" in metrics:
            self.bar.n = state.global_step
            self.bar.write(evaluation_line(metrics, state, self.kind), file=sys.stderr)
        self._restart(state)

    def on_save(self, args, state, control, **kwargs):
        self._restart(state)

    def close(self) -> None:
        for bar in (self.evaluation, self.bar):
            if bar is not None:
                bar.close()


def evaluation_line(metrics: dict, state, kind) -> str:
    """The figures of one evaluation in a line."""
    epoch = "" if state.epoch is None else f"epoch {state.epoch:.2f}, "
    return f"{epoch}step {state.global_step:,}: validation loss {metrics['eval_loss']:.4f}, {kind.line(metrics)}"
