"""Does this machine have what a training run needs? Each row: what was found, and ok or what to do about it."""

import importlib.metadata
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from packaging.requirements import Requirement
from packaging.version import Version

from .errors import UserError, first_line
from .paths import user_path

# What the code is tested with, at least and at most; the same ranges as in pyproject.toml (a test holds them together).
RANGES = (
    "torch>=2.11",
    "transformers>=5.18,<6",
    "accelerate>=1.12",
    "numpy>=1.26,<2.0",
    "pyarrow>=15,<26",
    "packaging>=21",
    "datasets>=4",
    "duckdb>=1.1",
    "filelock>=3.12",
    "huggingface_hub>=1.3",
    "safetensors>=0.5",
    "idna>=3.7",
    "psutil>=5.9",
    "PyYAML>=6",
    "tqdm>=4.66",
    "requests>=2.31",
    "urllib3>=2",
)
OPTIONAL = {"wandb": "--use_wandb", "evaluate": "the metric module"}
MISSING = "not installed"
BROKEN = "mend what fails above; if nothing does, install again what this names"
FREE_GB = 9  # of the base size: three checkpoints, the best, and one that is written, 1.6 GB each; the final model


@dataclass
class Row:
    """One finding; ``remedy`` is empty where all is well, and a warning where ``fatal`` is not set."""

    what: str
    found: str
    remedy: str = ""
    fatal: bool = True


def rows(dataset: str, model: str, output_dir: str) -> Iterator[Row]:
    """All checks, in the order in which a run would meet them."""
    version = platform.python_version()
    good = (3, 11) <= sys.version_info[:2] < (3, 13)
    yield Row(
        "python", version, "" if good else "install Python 3.11 or 3.12 (NumPy below 2.0 has no wheels for others)"
    )
    for line in RANGES:
        yield package(Requirement(line))
    for name, needed_for in OPTIONAL.items():
        found = _version(name)
        yield Row(name, found or MISSING, "" if found else f"only for {needed_for}: pip install {name}", False)
    looks = {
        "device": _device,
        "output": lambda: [_disk(output_dir)],
        "data": lambda: [_tried("data", "dataset", dataset, lambda: _first_name(dataset))],
        "model": lambda: [_tried("model", "model", model, lambda: _model(model))],
    }
    for what, look in looks.items():
        try:
            yield from look()
        except Exception as error:  # imports of what is missing or broken raise all kinds
            kind = "" if isinstance(error, ImportError | OSError) else f"{type(error).__name__}: "
            yield Row(what, f"not seen: {kind}{first_line(error)}", BROKEN)


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def package(requirement: Requirement) -> Row:
    """Whether it is installed in a version that will do."""
    found = _version(requirement.name)
    wanted = f"pip install '{requirement}'"
    if found is None:
        return Row(requirement.name, MISSING, wanted)
    # A local part such as +cpu, and a pre-release, do not matter here.
    good = requirement.specifier.contains(Version(found).base_version)
    return Row(requirement.name, found, "" if good else wanted)


def _device() -> Iterator[Row]:
    import torch

    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(i)
            yield Row("device", f"cuda:{i} {properties.name}, {properties.total_memory / 2**30:.0f} GiB")
        bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        yield Row("precision", "bf16" if bf16 else "fp16")
        return
    if torch.backends.mps.is_available():
        yield Row("device", "mps (Apple)")
    else:
        remedy = "no GPU is seen: fine for a trial; the full run takes months on a CPU"
        if shutil.which("nvidia-smi"):
            remedy = (
                f"an NVIDIA driver is here, but torch {torch.__version__} (CUDA {torch.version.cuda}) does not see the "
                "GPU: install the torch build for the driver's CUDA version, see pytorch.org"
            )
        yield Row("device", f"cpu, {os.cpu_count()} cores", remedy, fatal=False)
    yield Row("precision", "fp32")


def _disk(output_dir: str) -> Row:
    from .run_folder import refuse_foreign_folder

    try:
        folder = user_path(output_dir)
        existing = next(parent for parent in (folder.resolve(), *folder.resolve().parents) if parent.exists())
        refuse_foreign_folder(folder, resuming=True)
        tempfile.TemporaryFile(dir=existing).close()
    except (UserError, OSError) as error:
        return Row("output", str(error), "give another --output_dir")
    free = shutil.disk_usage(existing).free / 2**30
    remedy = "" if free >= FREE_GB else f"less than {FREE_GB} GiB: checkpoints of the base size take 1.6 GiB each"
    return Row("output", f"{existing}, {free:.0f} GiB free", remedy, fatal=False)


def _tried(what: str, flag: str, name: str, look: Callable[[], str]) -> Row:
    try:
        return Row(what, f"{name}: {look()}")
    except UserError as error:
        first, *rest = str(error).splitlines()
        return Row(what, first, " ".join(rest).strip() or f"give another with --{flag}")


def _first_name(dataset: str) -> str:
    from .cleaning import Cleaner
    from .manifest import is_prepared, read_manifest
    from .remote import open_stream
    from .sample import SAMPLE
    from .sources import open_source

    if is_prepared(folder := user_path(dataset)):
        return f"prepared, {read_manifest(folder)['counts']['kept']:,} names"
    # As a stream nothing is downloaded but the beginning.
    for block in (open_source if dataset == SAMPLE else open_stream)(dataset).blocks():
        if len(names := Cleaner(255)(block)):
            return f"readable, first name {names[0]}"
    raise UserError(f"{dataset!r} holds no valid domain name")


def _model(model: str) -> str:
    from .pretrained import load_model

    return f"loads, {sum(parameter.numel() for parameter in load_model(model).parameters()):,} parameters"
