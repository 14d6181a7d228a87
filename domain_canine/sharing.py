"""The model card of a run, and the upload to the Hub."""

from pathlib import Path

from huggingface_hub import HfApi, ModelCard, ModelCardData

from .arguments import DEFAULT_DATASET
from .errors import UserError, first_line
from .run_folder import LAST_EXIT, RUN_FILE
from .sources import SAMPLE
from .streams import StreamBatches

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
```

`AutoModel` loads the encoder without remote code, too, as stock CANINE; its outputs then change with the padding. The
pooler is not trained: take the mean of `last_hidden_state`.

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
        title=(trainer.hub_model_id or Path(args.output_dir).resolve().name).split("/")[-1],
        model=trainer.hub_model_id or args.output_dir,
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


def push_to_hub(trainer) -> str:
    """Upload the run folder's model (no checkpoints, no arguments); returns the address.

    Raises:
        UserError: the Hub does not take it; the folder is left as it is.
    """
    args = trainer.args
    try:
        commit = HfApi(token=args.hub_token).upload_folder(
            repo_id=trainer.hub_model_id,
            folder_path=args.output_dir,
            commit_message="Upload the trained model",
            ignore_patterns=["checkpoint-*", ".*", RUN_FILE, LAST_EXIT, "not_finite-*"],
            revision=args.hub_revision,
        )
    except Exception as error:  # of the Hub client, or of whichever HTTP library it uses
        raise UserError(
            f"--push_to_hub: the upload failed: {first_line(error)}\n  The model is safe in {args.output_dir}; "
            f"upload it later: hf upload {trainer.hub_model_id} {args.output_dir} --exclude 'checkpoint-*/*'"
        ) from error
    return str(commit)
