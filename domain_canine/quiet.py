"""Libraries that say what a user can do nothing about."""

import logging
import os
import sys
import warnings


def silence_libraries() -> None:
    """Hide such warnings, and progress bars of loading and saving."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    for name in ("HF_HUB_VERBOSITY", "DATASETS_VERBOSITY"):  # levels that are set when they are imported
        os.environ.setdefault(name, "error")
    # trainer_utils warns of another batch a device in a resume, which may be the same run: run_file.py finds out.
    for name in (
        "torch.distributed", "accelerate", "datasets", "huggingface_hub", "httpx", "httpx2",
        "transformers.trainer_utils",
    ):  # fmt: skip
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=UserWarning, module=r"(torch|transformers|accelerate|datasets)\b")
    try:
        from huggingface_hub.utils import disable_progress_bars
    except Exception:  # missing or broken, which `check` tells
        return
    disable_progress_bars()
    # It looks at the Hub's once, when it is imported.
    if transformers := sys.modules.get("transformers"):
        transformers.utils.logging.disable_progress_bar()
