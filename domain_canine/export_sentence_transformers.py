"""``python -m domain_canine export sentence-transformers``: a folder that ``SentenceTransformer`` opens.

The encoder as stock ``Transformer`` module, ``CharacterPooling`` of the shipped files behind it, stock ``Normalize`` on
request. The names of stock modules and of their settings are those that sentence-transformers has read since version 2.
"""

import json
import sys
from pathlib import Path

from .embed import add_pooling_arguments
from .export_folder import made_whole, refuse_other_folder
from .normalization_domain_canine import MAX_NAME
from .paths import user_path

POOLING = "1_CharacterPooling"  # folder of this module's settings
FILES = ("model.safetensors", "modules.json", "sentence_bert_config.json", "config_sentence_transformers.json")


def add_parser(formats) -> None:
    parser = formats.add_parser("sentence-transformers", help="a folder for SentenceTransformer(FOLDER)")
    parser.add_argument("model", help="a trained model: folder or Hub id")
    parser.add_argument("--output", required=True, help="folder to make")
    add_pooling_arguments(parser)
    parser.add_argument("--overwrite", action="store_true", help="replace --output if it is an earlier export")
    parser.set_defaults(call=command)


def command(arguments) -> int:
    from .pretrained import load_encoder_for_use

    folder = user_path(arguments.output)
    refuse_other_folder(folder, f"{POOLING}/config.json", FILES, arguments.overwrite)
    model = load_encoder_for_use(arguments.model)
    with made_whole(folder) as whole:
        write(model, whole, arguments.pooling, arguments.normalize)
    print(f"{folder}: SentenceTransformer({str(folder)!r}, trust_remote_code=True) opens it", file=sys.stderr)
    return 0


def write(model, folder: Path, pooling: str = "mean", normalize: bool = False) -> None:
    """Save an encoder as a folder of sentence-transformers.

    Args:
        model: DomainCanineModel without a pooler.
        folder: empty, to be filled.
        pooling, normalize: as of ``embed_names``.
    """
    from .configuration_domain_canine import AUTO_MAP
    from .embedding_domain_canine import CharacterPooling
    from .pretrained import build_tokenizer

    # Without its head the folder is no model for fill-mask or for the other pipelines.
    model.config.auto_map = {name: AUTO_MAP[name] for name in ("AutoConfig", "AutoModel")}
    model.config.custom_pipelines = {}
    model.save_pretrained(folder)
    build_tokenizer(model, MAX_NAME + 2).save_pretrained(folder)  # no name is cut, whatever was trained on
    kinds = {
        "": "sentence_transformers.models.Transformer",
        POOLING: "embedding_domain_canine.CharacterPooling",
        "2_Normalize": "sentence_transformers.models.Normalize",
    }
    if not normalize:
        del kinds["2_Normalize"]
    modules = [{"idx": i, "name": str(i), "path": path, "type": kind} for i, (path, kind) in enumerate(kinds.items())]
    for path in kinds:
        (folder / path).mkdir(exist_ok=True)
    CharacterPooling(pooling).save(folder / POOLING)
    settings = {
        "modules.json": modules,
        "sentence_bert_config.json": {"do_lower_case": False, "model_args": {"add_pooling_layer": False}},
        "config_sentence_transformers.json": {"model_type": "SentenceTransformer", "similarity_fn_name": "cosine"},
    }
    for name, content in settings.items():
        (folder / name).write_text(json.dumps(content, indent=2) + "\n")
