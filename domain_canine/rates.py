"""What a resume takes from the flags instead of the checkpoint: learning rate and weight decay."""

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from .errors import UserError

FROM_FLAGS = ("initial_lr", "weight_decay")


class AskedRates:
    """Those of a new optimiser and schedule, before a checkpoint is loaded into them."""

    def __init__(self, optimizer: Optimizer):
        self.groups = [{name: group[name] for name in FROM_FLAGS if name in group} for group in optimizer.param_groups]
        self.needed = set(optimizer.param_groups[0])

    def restore(self, optimizer: Optimizer, scheduler) -> None:
        """After the load; what is unchanged stays so, to the bit.

        Raises:
            UserError: what was loaded is another optimiser's.
        """
        if missing := self.needed - set(optimizer.param_groups[0]):
            raise UserError(
                f"--optim: the checkpoint is of another optimiser (it has no {', '.join(sorted(missing))}); give the "
                "one that the run began with, or its weights to --model_name_or_path"
            )
        for group, asked in zip(optimizer.param_groups, self.groups):
            group.update(asked)
        if isinstance(scheduler, LambdaLR):
            scheduler.base_lrs = [group["initial_lr"] for group in optimizer.param_groups]
            # As the schedule's own step does; warm-up and length are those of the flags already.
            for group, base, shape in zip(optimizer.param_groups, scheduler.base_lrs, scheduler.lr_lambdas):
                group["lr"] = base * shape(scheduler.last_epoch)
            scheduler._last_lr = [group["lr"] for group in optimizer.param_groups]
