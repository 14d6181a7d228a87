"""Models and tokenizers to start from, and what makes them load by themselves later."""

import logging
import sys
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import CanineConfig, PreTrainedModel
from transformers.activations import ACT2FN

from . import hub
from .arguments import DEFAULT_MODEL, ModelArguments, code_point
from .checkpoints import whole_checkpoints
from .configuration_domain_canine import AUTO_MAP, PIPELINES, DomainCanineConfig
from .errors import UserError, first_line, speaks
from .layers_domain_canine import HASH_PRIMES
from .modeling_domain_canine import DomainCanineForMaskedLM, DomainCanineForSequenceClassification, DomainCanineModel
from .paths import user_path
from .tokenization_domain_canine import DomainCanineTokenizer

SIZES = {
    "tiny": {
        "hidden_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 512,
        "num_hash_buckets": 2048, "max_position_embeddings": 2048,
    },
    "small": {
        "hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 1024,
        "num_hash_buckets": 2048, "max_position_embeddings": 2048,
    },
    "base": {},
}  # fmt: skip

OVERRIDES = (
    "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "num_hash_functions",
    "num_hash_buckets", "hidden_act", "hidden_dropout_prob", "attention_probs_dropout_prob", "initializer_range",
    "layer_norm_eps", "local_transformer_stride", "vocab_size",
)  # fmt: skip

_HEADS = {
    DomainCanineForMaskedLM: ("masked characters", "run_mlm_domains.py"),
    DomainCanineForSequenceClassification: ("labels", "run_classify_domains.py"),
}

# save_pretrained now writes the shipped files beside the weights, and the config points to them.
DomainCanineConfig.register_for_auto_class()
DomainCanineModel.register_for_auto_class("AutoModel")
DomainCanineForMaskedLM.register_for_auto_class("AutoModelForMaskedLM")
DomainCanineForSequenceClassification.register_for_auto_class("AutoModelForSequenceClassification")
DomainCanineTokenizer.register_for_auto_class("AutoTokenizer")


def build_model(arguments: ModelArguments, objective: str = "mlm") -> DomainCanineForMaskedLM:
    """The model to train: a CANINE checkpoint with a new head, one of ours as it is, or random weights.

    Raises:
        UserError: the checkpoint cannot be found or is no CANINE, or an override is unknown.
    """
    if arguments.model_size:
        overrides = _overrides(arguments.config_overrides)
        try:
            config = DomainCanineConfig(**{**SIZES[arguments.model_size], **overrides})
            _check_shape(config)
            model = DomainCanineForMaskedLM(config)
        except (ValueError, TypeError, RuntimeError, KeyError) as error:
            raise UserError(f"--config_overrides {arguments.config_overrides}: {error}") from error
    else:
        # Steps of 1e-5 are lost in weights of bf16, as some checkpoints have them.
        model = load_model(arguments.model_name_or_path or DEFAULT_MODEL, dtype=torch.float32)
        ours, was = DomainCanineForMaskedLM.__name__ in (model.config.architectures or ()), model.config.objective
        if speaks() and ours and was != objective:
            print(f"warning: {model.name_or_path} was trained with --objective {was}, not {objective}", file=sys.stderr)
    if arguments.mask_code_point is not None:
        model.config.mask_code_point = code_point(arguments.mask_code_point)
    model.config.auto_map, model.config.custom_pipelines = dict(AUTO_MAP), dict(PIPELINES)
    model.config.objective = objective
    model.config.pooling = "mean"  # of a classifier that stands on this: the pooled [CLS] is not trained here
    return model


def load_for_use(
    name: str, kind: type[PreTrainedModel] = DomainCanineForMaskedLM, bf16: bool = False
) -> PreTrainedModel:
    """A trained model, in evaluation mode, on the GPU if there is one; in the precision it has on disk, or bf16.

    Raises:
        UserError: as ``load_model``.
    """
    return _for_use(load_model(name, trained=True, kind=kind), bf16)


def load_encoder_for_use(name: str, bf16: bool = False) -> DomainCanineModel:
    """The encoder of any CANINE checkpoint, whatever its head, without a pooler; otherwise as ``load_for_use``."""
    return _for_use(load_model(name, kind=DomainCanineModel, add_pooling_layer=False), bf16)


def _for_use(model, bf16):
    device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    return model.to(device, torch.bfloat16 if bf16 else None).eval()


def is_classifier(name: str) -> bool:
    """Whether a checkpoint was saved as a classifier; not so if there is none, of which ``load_model`` tells."""
    folder = user_path(name)
    if not folder.is_dir():
        hub.use_cache_if_unreachable()
    try:
        told, _ = DomainCanineConfig.get_config_dict(str(folder) if folder.is_dir() else name)
        return DomainCanineForSequenceClassification.__name__ in (told.get("architectures") or ())
    except (OSError, ValueError, TypeError, AttributeError):
        return False


def load_model(
    name: str, trained: bool = False, kind: type[PreTrainedModel] = DomainCanineForMaskedLM, **changes
) -> PreTrainedModel:
    """Any CANINE checkpoint, from the Hub or a folder, as a masked language model or another ``kind``.

    Args:
        trained: the head must be there, too; else a new one is made where it is not, or has another shape.
        kind: its class.
        changes: of the configuration, or further arguments of the class.

    Raises:
        UserError: nothing is there, or it is no CANINE, or weights are missing.
    """
    folder = user_path(name)
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            kept = whole_checkpoints(folder)
            then = f", but checkpoints: give {str(kept[-1])!r}, the newest" if kept else ""
            raise UserError(f"the folder {name!r} holds no model (no config.json){then}")
        name = str(folder)
    elif folder.exists():
        raise UserError(f"{name!r} is a file; a model is a folder with a config.json and a model.safetensors")
    elif name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise UserError(f"there is no model folder {name!r}; check the path")
    else:
        hub.use_cache_if_unreachable()
    try:
        told, _ = DomainCanineConfig.get_config_dict(name)
        if told.get("model_type") != CanineConfig.model_type:
            raise UserError(f"{name!r} is no CANINE but of the type {told.get('model_type')}; try {DEFAULT_MODEL}")
        _check_shape(DomainCanineConfig.from_dict(told))
    except (AttributeError, TypeError, KeyError, ValueError, StrictDataclassError) as error:
        why = " ".join(str(error).split())
        raise UserError(f"the config.json of {name!r} describes no model: {why}") from error
    except OSError as error:
        raise _cannot_load(name, error) from error
    try:
        with _quiet_loading():
            # Not what the configuration may ask for: attention can be code of the Hub.
            model, loaded = kind.from_pretrained(
                name, output_loading_info=True, attn_implementation="sdpa",
                ignore_mismatched_sizes=kind is DomainCanineForSequenceClassification and not trained,
                **changes,
            )  # fmt: skip
    except UnpicklingError as error:
        raise UserError(
            f"the weights of {name!r} are pickled (pytorch_model.bin) with more than tensors, which could be code of "
            "anyone's: they are not loaded; have them saved as model.safetensors by someone you trust"
        ) from error
    except (OSError, ValueError, RuntimeError, ImportError, SafetensorError) as error:
        raise _cannot_load(name, error) from error
    missing = sorted(loaded["missing_keys"])
    # The pooler is no part of a masked language model. Another number of labels takes another head.
    missing += [key for key, *_ in loaded["mismatched_keys"] if not key.startswith("classifier.")]
    within = "" if kind is DomainCanineModel else "canine."
    encoder = [key for key in missing if key.startswith(within) and not key.startswith(f"{within}pooler.")]
    if encoder:
        raise UserError(f"{name!r} lacks {len(encoder)} weights of the encoder, {encoder[0]} among them")
    if trained and missing:
        head, script = _HEADS[kind]
        raise UserError(f"{name!r} has no head for {head}; train one with {script}")
    return model


def _cannot_load(name, error):
    if (Path(name) / "model.onnx").is_file():
        then = "It is an ONNX export: give the folder that it was made of."
    elif Path(name).is_dir():
        then = "The folder is damaged, or not the whole of it: copy it once more, or take another checkpoint."
    else:
        then = (
            "No folder here has that name. Of the Hub, check the name and the network (and HF_HUB_OFFLINE). A training "
            "can start from random weights, too: --model_size."
        )
    return UserError(f"cannot load the model {name!r}: {first_line(error)}\n  {then}")


def build_tokenizer(model: DomainCanineForMaskedLM, max_length: int) -> DomainCanineTokenizer:
    config = model.config
    return DomainCanineTokenizer(
        vocab_size=config.vocab_size, mask_code_point=config.mask_code_point, model_max_length=max_length
    )


def _overrides(text: str | None) -> dict:
    """``name=value,name=value`` with the types of the configuration's fields."""
    overrides = {}
    for part in filter(None, (text or "").split(",")):
        name, equals, value = part.partition("=")
        if not equals or name not in OVERRIDES:
            raise UserError(f"--config_overrides: {part!r} is not name=value with one of {', '.join(OVERRIDES)}")
        kind = type(getattr(DomainCanineConfig(), name))
        try:
            # Dropout and the like are floats whose default may be a whole number.
            overrides[name] = value if kind is str else int(value) if kind is int else float(value)
        except ValueError:
            raise UserError(
                f"--config_overrides: {name} takes a{'n integer' if kind is int else ' number'}, not {value!r}"
            ) from None
    return overrides


def _check_shape(config: DomainCanineConfig) -> None:
    usual = DomainCanineConfig()
    for name in (*OVERRIDES, "mask_code_point", "max_position_embeddings", "type_vocab_size"):
        value, kind = getattr(config, name), type(getattr(usual, name))
        if not isinstance(value, (int, float) if kind is float else kind):
            raise ValueError(f"{name} is {value!r}, not a value of the type {kind.__name__}")
        if kind is int and value < 1:
            raise ValueError(f"{name} must be at least 1, not {value}")
    if config.hidden_act not in ACT2FN:
        raise ValueError(f"there is no hidden_act {config.hidden_act!r}; one of {', '.join(ACT2FN)}")
    for part in ("num_attention_heads", "num_hash_functions"):
        if config.hidden_size % getattr(config, part):
            raise ValueError(f"hidden_size {config.hidden_size} is no multiple of {part} {getattr(config, part)}")
    for name, least, why in (("vocab_size", 128, "the ASCII names"), ("num_hash_buckets", 512, "a position each")):
        if getattr(config, name) < least:
            raise ValueError(f"{name} {getattr(config, name)} is below {least} ({why})")
    if config.num_hash_functions > len(HASH_PRIMES):
        raise ValueError(f"num_hash_functions {config.num_hash_functions} is above {len(HASH_PRIMES)}")


@contextmanager
def _quiet_loading():
    """The loading report lists the new head and the unused pooler, which is as it should be; we check it ourselves."""
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
