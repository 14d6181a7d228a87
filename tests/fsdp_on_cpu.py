"""The training command with FSDP on the CPU; run by test_processes.py in place of run_mlm_domains.py.

torch shards over gloo as well, but accelerate heeds FSDP among processes with GPUs only, and says nothing.
"""

import os
import sys
from pathlib import Path

from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from domain_canine.errors import run  # noqa: E402
from run_mlm_domains import main  # noqa: E402

stock = AcceleratorState.__init__


def with_processes_as_of_gpus(self, *args, **kwargs):
    if not AcceleratorState._shared_state:  # the first, which decides
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    stock(self, *args, **kwargs)


AcceleratorState.__init__ = with_processes_as_of_gpus
try:
    run(main)
except SystemExit as end:
    # torch keeps the shards' mesh, and with it gloo's threads, to the interpreter's end, where they abort at times: once in
    # some fifty launches, after all was written.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(end.code)
