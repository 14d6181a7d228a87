"""The model card of a run, and the upload to the Hub."""

import shlex
import sys
from collections.abc import Callable
from pathlib import Path

from huggingface_hub import HfApi, ModelCard, ModelCardData
from huggingface_hub.utils import validate_repo_id

from . import hub
from .arguments import DEFAULT_DATASET
from .errors import UserError, first_line
from .run_folder import LAST_EXIT, RUN_FILE
from .sources import SAMPLE
from .streams import StreamBatches

NOT_UPLOADED = ["checkpoint-*", ".*", RUN_FILE, LAST_EXIT, "not_finite-*"]

_TEXT = """
# {title}

A character-level language model of domain names: [CANINE](https://arxiv.org/abs/2103.06874), trained on names by masked
language modelling. No tokenizer is learned: the input is Unicode code points, the output is a distribution over the
{vocab_size} ASCII characters.

## Use

```python
from transformers import AutoModel, pipeline

fill = pipeline("fill-mask", model="{model}", trust_remote_code=True)
fill("exam[MASK]le.com")

# For embeddings: outputs that do not depend on padding need the model's own code.
encoder = AutoModel.from_pretrained("{model}", trust_remote_code=True)
embed = pipeline("domain-embed", model="{model}", trust_remote_code=True)
```

`AutoModel` loads the encoder without remote code, too, as stock CANINE; its outputs then change with the padding. The
pooler is not trained: take the mean of `last_hidden_state` over the characters, as `domain-embed` does.

## Training

| | |
|---|---|
| started from | {origin} |
| data | {data}: {names} |
| objective | {objective} |
| steps | {steps:,} of {batch:,} names, learning rate {learning_rate:g} |
{evaluation}
## Limits

It knows names as they are registered: lower-case ASCII, Unicode names in their `xn--` form. A likely name is not
a good, free or harmless one.
"""

_EVALUATION = """
## Evaluation

On {validation:,} names that were held out by a hash of the name, 15% of the characters masked:

| figure | value |
|---|---|
{figures}
"""

_FIGURES = {
    "eval_perplexity": "perplexity of a masked character",
    "eval_perplexity_name": "... before the last dot",
    "eval_perplexity_suffix": "... of the last dot and what follows",
    "eval_bits_per_character": "bits per masked character",
    "eval_accuracy": "accuracy",
    "eval_accuracy_top5": "accuracy, top 5",
}


def write_model_card(trainer, metrics: dict[str, float], model_arguments, data_arguments) -> None:
    """README.md of the run folder, from the run's own arguments and the figures of the weights in it."""
    args = trainer.args
    base = None if model_arguments.model_size else trainer.model.name_or_path
    base = "a local checkpoint" if base and Path(base).is_dir() else base
    repository = trainer.hub_model_id or (args.hub_model_id if args.push_to_hub else None)
    on_hub = data_arguments.dataset == DEFAULT_DATASET
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag="fill-mask",
        tags=["canine", "domain-names", "character-level"],
        base_model=None if base == "a local checkpoint" else base,
        datasets=[data_arguments.dataset] if on_hub else None,
    )
    masked = f"{data_arguments.mlm_probability:.0%} of the characters masked"
    streamed = isinstance(trainer.train_dataset, StreamBatches)
    rows = [f"| {told} | {metrics[name]:.4f} |" for name, told in _FIGURES.items() if name in metrics]
    text = _TEXT.format(
        title=(repository or Path(args.output_dir).resolve().name).split("/")[-1],
        model=repository or args.output_dir,
        vocab_size=trainer.model.config.vocab_size,
        origin=f"random weights ({model_arguments.model_size})" if model_arguments.model_size else base,
        data=data_arguments.dataset
        if on_hub
        else "synthetic names"
        if data_arguments.dataset == SAMPLE
        else "local names",
        names="streamed" if streamed else f"{len(trainer.train_dataset):,} to train on",
        objective=f"mlm, {masked}" if data_arguments.objective == "mlm" else "any_order",
        steps=trainer.state.global_step,
        batch=trainer.get_total_train_batch_size(args),
        learning_rate=args.learning_rate,
        evaluation=_EVALUATION.format(validation=len(trainer.eval_dataset), figures="\n".join(rows)) if rows else "",
    )
    ModelCard(f"---\n{data.to_yaml()}\n---\n{text}").save(Path(args.output_dir) / "README.md")


def _asked_name(args) -> str:
    """Of the repository; once it is made, the Trainer knows it with its owner."""
    return args.hub_model_id or Path(args.output_dir).resolve().name


def create_repository(args, create: Callable[[], None]) -> None:
    """Have the Trainer make the repository before the first step, so that a mistake shows; or say that the Hub is away.

    Raises:
        UserError: the Hub refuses.
    """
    try:
        validate_repo_id(_asked_name(args))
        hub.insist(create)
    except hub.Away as error:
        print(
            f"--push_to_hub: the Hub is not reachable ({error}): the run starts, and the upload is tried at its end",
            file=sys.stderr,
        )
    except Exception as error:  # of the Hub client, or of whichever HTTP library it uses
        raise UserError(
            f"--push_to_hub: the Hub does not take a repository from here: {first_line(error)}\n"
            "  Log in with 'hf auth login' or HF_TOKEN, check --hub_model_id, or leave --push_to_hub out."
        ) from error


def push_to_hub(trainer, write_card: Callable[[], None]) -> str:
    """Upload the run folder's model (no checkpoints, no arguments).

    Args:
        write_card: again, for a repository that is made only now.

    Returns:
        The address; or, where the Hub is away, what to do.

    Raises:
        UserError: the Hub refuses; the folder is left as it is.
    """
    args = trainer.args

    def upload():
        if trainer.hub_model_id is None:
            trainer.make_repository()
            write_card()
        return HfApi(token=args.hub_token).upload_folder(
            repo_id=trainer.hub_model_id,
            folder_path=args.output_dir,
            commit_message="Upload the trained model",
            ignore_patterns=NOT_UPLOADED,
            revision=args.hub_revision,
        )

    name = trainer.hub_model_id or _asked_name(args)
    flags = ["--private"] * bool(args.hub_private_repo) + [f"--exclude '{each}'" for each in NOT_UPLOADED]
    later = (
        f"\n  The model is safe in {args.output_dir}; upload it later: "
        f"hf upload {name} {shlex.quote(args.output_dir)} . {' '.join(flags)}"
    )
    try:
        return str(hub.insist(upload))
    except hub.Away as error:
        return f"--push_to_hub: the Hub is not reachable ({error}){later}"
    except Exception as error:  # of the Hub client, or of whichever HTTP library it uses
        raise UserError(f"--push_to_hub: the upload failed: {first_line(error)}{later}") from error
