"""How fast, and in how much memory, raw lines become prepared names.

    python -m benchmarks.prepare --rows 10000000 --json

The lines are synthetic: one in 16 occurs twice, some are in upper case, some are no names. ``prepare`` runs in a
process of its own, so that the memory is its alone; its start is not timed.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.synthetic import write_lines
from domain_canine.errors import run

_CHILD = """
import json, resource, sys, time
from pathlib import Path
from domain_canine.prepare import Settings, prepare
from domain_canine.sources import open_source

start = time.perf_counter()
prepare(open_source(sys.argv[1]), Path(sys.argv[2]), Settings(), float(sys.argv[3]), quiet=not sys.stderr.isatty())
seconds = time.perf_counter() - start
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)
print(json.dumps({"seconds": round(seconds, 2), "peak_memory_mb": round(peak)}))
"""


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.prepare", description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=10_000_000, help="synthetic lines (default: %(default)s)")
    parser.add_argument("--names", help="a file of real lines instead")
    parser.add_argument("--memory", type=float, default=4.0, help="limit in GB (default: %(default)s)")
    parser.add_argument("--folder", help="where files are written meanwhile (default: the system's)")
    parser.add_argument("--json", action="store_true", help="one JSON object as well, last on stdout")
    parsed = parser.parse_args(arguments)

    with tempfile.TemporaryDirectory(dir=parsed.folder) as folder:
        path, made = Path(folder) / "lines.txt", Path(folder) / "prepared"
        if not parsed.names:
            write_lines(path, parsed.rows)
        source = parsed.names or str(path)
        child = subprocess.run(
            [sys.executable, "-c", _CHILD, source, str(made), str(parsed.memory)], stdout=subprocess.PIPE, check=True
        )
        manifest = json.loads((made / "manifest.json").read_text())
        disk = sum(size for size, _ in manifest["files"].values())
    counts = manifest["counts"]
    found = json.loads(child.stdout)
    found |= {"names_per_s": round(counts["lines"] / found["seconds"])}
    found |= {"lines": counts["lines"], "kept": counts["kept"]}
    found |= {"memory_limit_mb": round(parsed.memory * 1000), "disk_mb": round(disk / 1e6, 1)}

    print(
        f"{counts['lines']:,} lines in {found['seconds']} s: {found['names_per_s']:,} a second; "
        f"{counts['kept']:,} kept, {counts['duplicate']:,} duplicates\n"
        f"peak memory {found['peak_memory_mb']:,} MB (limit {found['memory_limit_mb']:,}); "
        f"result {found['disk_mb']:,} MB",
        file=sys.stderr,
    )
    if parsed.json:
        print(json.dumps(found))
    return 0


if __name__ == "__main__":
    run(main)
