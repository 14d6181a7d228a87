"""Whether the Hugging Face Hub can be reached, found out once and quickly."""

from functools import cache

import huggingface_hub
from huggingface_hub import constants


@cache
def use_cache_if_unreachable() -> None:
    """Without a network, go offline at once: the client libraries would retry for 80 seconds a request and then fail.

    What is in the local cache is still found then.
    """
    if constants.HF_HUB_OFFLINE:
        return
    try:
        huggingface_hub.get_session().head(constants.ENDPOINT, timeout=10)
    except Exception:  # connection, proxy and time-out errors of whichever HTTP library the client uses
        constants.HF_HUB_OFFLINE = True
        try:
            import datasets.config
        except ImportError:
            return
        datasets.config.HF_HUB_OFFLINE = True
