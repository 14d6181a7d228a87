"""The upload to the Hub: the repository, and what of a folder belongs there."""

import shlex
import sys
from collections.abc import Callable
from fnmatch import fnmatch
from glob import escape
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.utils import validate_repo_id

from . import hub
from .errors import UserError, first_line

# What a model is, what says how good it is, and its card. Nothing else: arguments have paths of the machine, pickled
# ones of stock Trainers the token in clear, and what else lies in a folder may be names that are somebody's own.
UPLOADED = [
    "*.safetensors", "pytorch_model.bin", "pytorch_model-*-of-*.bin", "adapter_model.bin", "*.index.json", "*.onnx",
    "*.onnx.data", "*config.json", "config_sentence_transformers.json", "modules.json",
    "tokenizer.json", "added_tokens.json", "special_tokens_map.json", "vocab.json",
    "*_domain_canine.py", "modeling_*.py", "configuration_*.py", "tokenization_*.py",
    "eval_results.json", "trainer_state.json", "README.md", "LICENSE*", "NOTICE*", "*.png",
]  # fmt: skip
# Folders that belong to a model; the numbered ones are modules of sentence-transformers.
_FOLDERS = ["onnx", "lora", "[0-9]_*"]


def to_upload(folder: Path) -> list[str]:
    """The files of a folder with a model that belong in its repository, relative to it."""
    return sorted(
        path.relative_to(folder).as_posix()
        for path in [*folder.iterdir(), *(path for name in _FOLDERS for path in folder.glob(f"{name}/*"))]
        if path.is_file() and any(fnmatch(path.name, pattern) for pattern in UPLOADED)
    )


def upload_folder(folder: Path, repository: str, token: str | None = None, revision: str | None = None) -> str:
    """What belongs in the repository, of a folder with a model; the address of the commit."""
    return HfApi(token=token).upload_folder(
        repo_id=repository,
        folder_path=folder,
        commit_message="Upload the trained model",
        allow_patterns=[escape(name) for name in to_upload(Path(folder))],
        revision=revision,
    )


def upload_command(folder: str, repository: str, private: bool = True) -> str:
    """What uploads it later."""
    words = ["python", "-m", "domain_canine", "export", "hub", str(folder), "--repo_id", repository]
    return shlex.join(words + ["--public"] * (not private))


def _asked_name(args) -> str:
    """Of the repository; once it is made, the Trainer knows it with its owner."""
    return args.hub_model_id or Path(args.output_dir).resolve().name


def refuse_public(api: HfApi, repository: str, private: bool, flag: str) -> bool:
    """Whether a repository is private, which it is to be if ``private``; ``flag`` says that it need not.

    Raises:
        UserError: it is not: the Hub takes a wish for privacy only for one that it makes.
    """
    is_private = bool(api.repo_info(repository).private)
    if private and not is_private:
        raise UserError(f"{repository!r} is there already, and public: add {flag}, or give another name")
    return is_private


def create_repository(args, create: Callable[[], None]) -> None:
    """Have the Trainer make the repository before the first step, so that a mistake shows; or say that the Hub is away.

    Raises:
        UserError: the Hub refuses.
    """
    try:
        validate_repo_id(_asked_name(args))
        hub.insist(create)
    except UserError:
        raise
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
        return upload_folder(args.output_dir, trainer.hub_model_id, args.hub_token, args.hub_revision)

    name = trainer.hub_model_id or _asked_name(args)
    command = upload_command(args.output_dir, name, args.hub_private_repo)
    later = f"\n  The model is safe in {args.output_dir}; upload it later: {command}"
    try:
        return str(hub.insist(upload))
    except hub.Away as error:
        return f"--push_to_hub: the Hub is not reachable ({error}){later}"
    except Exception as error:  # of the Hub client, or of whichever HTTP library it uses
        raise UserError(f"--push_to_hub: the upload failed: {first_line(error)}{later}") from error
