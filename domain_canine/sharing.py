"""The model card of a run, and the upload to the Hub."""

from pathlib import Path

from huggingface_hub import HfApi, ModelCard, ModelCardData

from .arguments import DEFAULT_DATASET
from .checkpoints import RUN_FILE

_TEXT = """
# {title}

A character-level language model of domain names: [CANINE](https://arxiv.org/abs/2103.06874), trained on registered
names by masked language modelling. No tokenizer is learned: the input is Unicode code points, the output is a
distribution over the {vocab_size} ASCII characters.

## Use

```python
from transformers import pipeline

fill = pipeline("fill-mask", model="{repo}", trust_remote_code=True)
fill("exam[MASK]le.com")
```

The encoder loads without remote code: `AutoModel.from_pretrained("{repo}")`.

## Training

| | |
|---|---|
| started from | {origin} |
| data | {dataset} |
| objective | {objective}, {fraction:.0%} of the characters masked |
| steps | {steps:,} of {batch:,} names, learning rate {learning_rate:g} |

## Evaluation

On {validation:,} names that were held out by a hash of the name, all chosen characters masked:

| figure | value |
|---|---|
{figures}

## Limits

It knows names as they are registered: lower-case ASCII, Unicode names in their `xn--` form. A likely name is not
a good, free or harmless one.
"""

_FIGURES = {
    "eval_perplexity": "perplexity of a masked character",
    "eval_perplexity_name": "... before the last dot",
    "eval_perplexity_suffix": "... of the last dot and what follows",
    "eval_bits_per_character": "bits per masked character",
    "eval_accuracy": "accuracy",
    "eval_accuracy_top5": "accuracy, top 5",
}


def write_model_card(trainer, model_arguments, data_arguments, repo: str | None = None) -> None:
    """README.md of the run folder, from the run's own arguments and figures."""
    args = trainer.args
    metrics = trainer.best_metrics()
    on_hub = data_arguments.dataset == DEFAULT_DATASET
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag="fill-mask",
        tags=["canine", "domain-names", "character-level"],
        base_model=None if model_arguments.model_size else trainer.model.name_or_path,
        datasets=[data_arguments.dataset] if on_hub else None,
    )
    rows = [f"| {told} | {metrics[name]:.4f} |" for name, told in _FIGURES.items() if name in metrics]
    folder = Path(args.output_dir)
    text = _TEXT.format(
        title=(repo or folder.resolve().name).split("/")[-1],
        repo=repo or folder.resolve().name,
        vocab_size=trainer.model.config.vocab_size,
        origin=f"random weights ({model_arguments.model_size})" if model_arguments.model_size else data.base_model,
        dataset=data_arguments.dataset if on_hub else "local names",
        objective=data_arguments.objective,
        fraction=data_arguments.mlm_probability,
        steps=trainer.state.global_step,
        batch=trainer.get_total_train_batch_size(args),
        learning_rate=args.learning_rate,
        validation=len(trainer.eval_dataset),
        figures="\n".join(rows) or "| none | |",
    )
    ModelCard(f"---\n{data.to_yaml()}\n---\n{text}").save(folder / "README.md")


def push_to_hub(trainer) -> str:
    """Upload the run folder's model (no checkpoints, no arguments); returns the address."""
    commit = HfApi(token=trainer.args.hub_token).upload_folder(
        repo_id=trainer.hub_model_id,
        folder_path=trainer.args.output_dir,
        commit_message="Upload the trained model",
        ignore_patterns=["checkpoint-*", ".*", RUN_FILE],
        revision=trainer.args.hub_revision,
    )
    return str(commit)
