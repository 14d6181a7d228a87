"""The classifier to fine-tune: an encoder with a new head, all of it or some of its weights to be trained."""

import copy
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from .arguments import DEFAULT_MODEL
from .classify_arguments import ClassifierArguments, ClassifyDataArguments
from .configuration_domain_canine import AUTO_MAP, PIPELINES, DomainCanineConfig
from .errors import UserError
from .labelled import LabelledNames
from .modeling_domain_canine import DomainCanineForSequenceClassification
from .pretrained import SIZES, load_model
from .trainer import DomainTrainer
from .training_arguments import launcher_says

# Linear layers of Transformer layers, all of them (Dettmers et al. 2023, arXiv:2305.14314).
_ADAPTED = r"canine\..*\.layer\.\d+\..*(query|key|value|dense)"
# Those that [CLS] passes through: the others would have no gradient, which several processes wait for.
_ADAPTED_FOR_CLS = _ADAPTED.replace(".*", ".*(?<!final_char_encoder)", 1)
_ADAPTER = "lora"  # its folder in a checkpoint


def build_classifier(arguments: ClassifierArguments, data: LabelledNames) -> torch.nn.Module:
    """DomainCanineForSequenceClassification with a head for the classes or numbers of ``data``.

    Raises:
        UserError: as ``load_model``; PEFT is not installed, or the run is sharded.
    """
    changes = {"pooling": arguments.pooling, "num_labels": len(data.classes or [0])}
    if data.classes is None:
        mean, spread = float(data.train.labels.mean()), float(data.train.labels.std())
        changes |= {"problem_type": "regression", "label_mean": mean, "label_std": spread}
    else:
        names = dict(enumerate(data.classes))
        changes |= {
            "problem_type": "single_label_classification",
            "id2label": names,
            "label2id": {name: index for index, name in names.items()},
        }
    if arguments.model_size:
        model = DomainCanineForSequenceClassification(DomainCanineConfig(**{**SIZES[arguments.model_size], **changes}))
    else:
        name = arguments.model_name_or_path or DEFAULT_MODEL
        model = load_model(name, kind=DomainCanineForSequenceClassification, dtype=torch.float32, **changes)
    embed = {"domain-embed": PIPELINES["domain-embed"] | {"pt": ["AutoModelForSequenceClassification"]}}
    model.config.auto_map, model.config.custom_pipelines = dict(AUTO_MAP), embed
    # What the head does not stand on has no gradient, which several processes would wait for.
    encoder = model.canine
    unused = [encoder.pooler] if arguments.pooling == "mean" else [encoder.projection, encoder.final_char_encoder]
    if arguments.freeze_encoder:
        unused.append(encoder)
    for module in unused:
        module.requires_grad_(False)
    if arguments.freeze_encoder and arguments.pooling == "cls":
        encoder.pooler.requires_grad_(True)  # it is new, and part of the head
    return _with_adapter(model, arguments.lora_rank) if arguments.lora_rank else model


def _with_adapter(model, rank):
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise UserError("--lora_rank needs PEFT: pip install peft") from error
    if launcher_says("FSDP"):
        raise UserError("--lora_rank does not go with FSDP: it has little to shard; leave one of them out")
    head, layers = ["classifier"], _ADAPTED
    if model.config.pooling == "cls":
        head, layers = [*head, "pooler.dense"], _ADAPTED_FOR_CLS
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=layers, modules_to_save=head, task_type="SEQ_CLS")
    adapted = get_peft_model(model, config, adapter_name=_ADAPTER)
    if Path(model.name_or_path).is_dir():
        config.base_model_name_or_path = ""  # PEFT would tell whoever gets the adapter where it lies here
    return adapted


def class_weights(arguments: ClassifyDataArguments, data: LabelledNames) -> np.ndarray | None:
    """(C,) of the classes in the loss; balanced: each class as a whole weighs the same.

    Raises:
        UserError: one is no positive number, or of no class.
    """
    if arguments.class_weights is None:
        return None
    if arguments.class_weights == "balanced":
        counts = np.bincount(data.train.labels, minlength=len(data.classes))  # validation may have one more
        return len(data.train.labels) / len(data.classes) / np.maximum(1, counts)
    weights = np.ones(len(data.classes))
    for part in arguments.class_weights.split(","):
        name, _, value = part.rpartition("=")
        if name not in data.classes:
            raise UserError(f"--class_weights: {part!r} is not name=weight with one of {', '.join(data.classes)}")
        try:
            weights[data.classes.index(name)] = float(value)
        except ValueError:
            raise UserError(f"--class_weights: {value!r} of {name!r} is no number") from None
    if not (np.isfinite(weights) & (weights > 0)).all():
        raise UserError(f"--class_weights {arguments.class_weights}: weights must be above 0")
    return weights


class ClassifierTrainer(DomainTrainer):
    """Checkpoints of low-rank updates hold them in a folder of their own, beside a model that has them added."""

    def _save(self, output_dir=None, state_dict=None):
        if not hasattr(self.model, "peft_config"):
            return super()._save(output_dir, state_dict)
        if self.args.should_save:
            model = self.accelerator.unwrap_model(self.model)
            model.save_pretrained(output_dir)
            (Path(output_dir) / "README.md").unlink(missing_ok=True)  # PEFT's empty card would pass for a user's own
            copy.deepcopy(model).merge_and_unload().save_pretrained(output_dir)
            self.processing_class.save_pretrained(output_dir)
        return None

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        if not hasattr(self.model, "peft_config"):
            return super()._load_from_checkpoint(resume_from_checkpoint, model)
        from peft import set_peft_model_state_dict

        weights = load_file(Path(resume_from_checkpoint) / _ADAPTER / "adapter_model.safetensors")
        set_peft_model_state_dict(self.model, weights, adapter_name=_ADAPTER)
        return None
