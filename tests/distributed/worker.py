"""One of several processes: runs recipes one after another, as ``effcompress run`` does.

    torchrun --nproc-per-node 2 worker.py jobs.json

``jobs.json``: ``[{recipe, output, resume, set, dies, bare}]``; ``dies``: the step in which the last
process kills itself; ``bare``: without an export and its proof. Failures are said on standard
error, and the next job goes on.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from effcompress import load_recipe, run, train
from effcompress.distributed import joined
from effcompress.errors import EffcompressError
from effcompress.runner import run as story


def main(path: Path) -> int:
    failed = 0
    with joined():  # once: another meeting needs other addresses
        for job in json.loads(path.read_text()):
            loaded = load_recipe(job["recipe"], job.get("set", []))
            if job.get("dies") and os.environ["RANK"] == str(int(os.environ["WORLD_SIZE"]) - 1):
                _die_in(job["dies"])
            if job.get("bare"):
                story.export_and_prove = lambda *_: None
            try:
                run(loaded, output=Path(job["output"]), resume=job.get("resume", False))
            except EffcompressError as error:
                failed += 1
                print(f"process {os.environ['RANK']}: {error}", file=sys.stderr)
    return min(failed, 1)


def _die_in(step: int) -> None:
    """Kill this process in the middle of a step: after the backward, before the update."""
    update, calls = train.update, 0

    def deadly(*given):
        nonlocal calls
        calls += 1
        if calls == step:
            os._exit(9)
        return update(*given)

    train.update = deadly


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
