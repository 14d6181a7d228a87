"""``python -m domain_canine export hub``: a model's folder onto the Hub, with its card."""

import sys
from pathlib import Path

from .errors import UserError, first_line
from .paths import user_path

WEIGHTS = (
    "model.safetensors", "pytorch_model.bin", "model-*-of-*.safetensors", "pytorch_model-*-of-*.bin",
    "adapter_model.safetensors", "adapter_model.bin", "**/*.onnx",
)  # fmt: skip


def add_parser(targets) -> None:
    parser = targets.add_parser("hub", help="upload a finished run, or any model's folder, with its model card")
    parser.add_argument("model", help="the run's folder, or a checkpoint's, or that of a classifier or another model")
    parser.add_argument("--repo_id", required=True, metavar="OWNER/NAME", help="the repository; it is made if need be")
    parser.add_argument("--public", action="store_true", help="for everybody to see; private without it")
    parser.set_defaults(call=command)


def command(arguments) -> int:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError
    from huggingface_hub.utils import validate_repo_id

    from . import hub
    from .model_card import card_text, write_model_card
    from .run_record import read_record
    from .sharing import refuse_public, to_upload, upload_command, upload_folder

    folder, name = user_path(arguments.model), arguments.repo_id
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise UserError(f"--repo_id {name!r} is no name of a repository; write owner/name ({error})") from error
    check_model(folder)
    card_text(read_record(folder), name)  # what is wrong with it shows before a repository is made

    api = HfApi()

    def create():
        made = api.create_repo(name, private=not arguments.public, exist_ok=True).repo_id
        return made, refuse_public(api, made, not arguments.public, "--public")

    later = f"\n  Later: {upload_command(arguments.model, name, not arguments.public)}"
    try:
        repository, private = hub.insist(create)
        write_model_card(folder, repository)  # of which the owner may be left to the Hub
        told = ", ".join(to_upload(folder))
        print(f"to the {'private' if private else 'public'} repository {repository}: {told}", file=sys.stderr)
        print(hub.insist(lambda: upload_folder(folder, repository)))
    except UserError:
        raise
    except hub.Away as error:
        raise UserError(f"the Hub is not reachable ({error}): nothing is uploaded{later}") from error
    except Exception as error:  # of the Hub client, or of whichever HTTP library it uses
        # What the Hub finds wrong with a card, which the client shows it first, takes several lines.
        card = isinstance(error, ValueError) and not isinstance(error, HfHubHTTPError)
        raise UserError(
            f"the Hub does not take {str(folder)!r} as {name!r}: {error if card else first_line(error)}\n"
            f"  Log in with 'hf auth login' or HF_TOKEN as somebody who may write there, and check --repo_id"
            f"{' and README.md' * card}.{later}"
        ) from error
    return 0


def check_model(folder: Path) -> None:
    """
    Raises:
        UserError: it is no folder with a model, or that of a run that has not ended.
    """
    from .run_record import newest_weights

    if not folder.is_dir():
        raise UserError(f"there is no folder {str(folder)!r}; check the path")
    if (newest := newest_weights(folder)) != folder:
        raise UserError(
            f"the run in {str(folder)!r} has not ended: go on with it (--resume_from_checkpoint), or upload its newest "
            f"checkpoint, {str(newest)!r}"
        )
    if not any(path for name in WEIGHTS for path in folder.glob(name)):
        raise UserError(f"the folder {str(folder)!r} holds no weights of a model ({', '.join(WEIGHTS[:2])}, ...)")
