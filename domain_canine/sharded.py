"""FSDP: a model whose weights lie in shards on all processes, trained to the same figures and saved as one."""

from dataclasses import replace
from pathlib import Path

import torch
from transformers import PreTrainedModel

from .errors import UserError


def keep_sums_in_fp32(accelerator) -> None:
    """Have gradients added in fp32, and what goes in and out of a module left as it is.

    With bf16 accelerate rounds all of that to 8 bits, the loss and the number of its items as well.
    """
    plugin = accelerator.state.fsdp_plugin
    if plugin.mixed_precision_policy is not None:
        plugin.mixed_precision_policy = replace(
            plugin.mixed_precision_policy, reduce_dtype=torch.float32, output_dtype=None, cast_forward_inputs=False
        )


def gathered(model_class: type[PreTrainedModel], model: PreTrainedModel) -> PreTrainedModel:
    """A model without weights, to be saved with those brought together: FSDP has renamed the class of its own."""
    with torch.device("meta"):
        return model_class(model.config)


def refuse_other_kind(checkpoint: Path, sharded: bool) -> None:
    """
    Raises:
        UserError: FSDP is to go on from a checkpoint of a run without it, or the reverse.
    """
    was_sharded = any(checkpoint.glob("pytorch_model_fsdp*"))
    if was_sharded != sharded:
        begun = "with" if was_sharded else "without"
        raise UserError(
            f"{str(checkpoint)!r}: this run was started {begun} FSDP; go on {begun} accelerate_configs/fsdp.yaml, "
            "or give its weights to --model_name_or_path"
        )
