"""One of several processes: runs recipes one after another, as ``effcompress run`` does.

    torchrun --nproc-per-node 2 worker.py jobs.json

``jobs.json``: ``[{recipe, output, resume, set, ...}]`` with, where wanted, ``dies``: the
step in which the last process kills itself; ``asked``: the step in which it alone gets SIGTERM;
``spoils``: the step in which it alone computes what is no number; ``full``: the number of the
checkpoint for which it alone has no space; ``bare``: without an export and its proof;
``backend``: of torch.compile, in place of inductor.
Failures are said on standard error, and the next job goes on.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from torch import _dynamo as dynamo

from effcompress import load_recipe, run, train
from effcompress.cli.signals import stop_on_signals
from effcompress.distributed.world import joined
from effcompress.errors import EffcompressError, Stopped
from effcompress.runner import run as story


def main(path: Path) -> int:
    failed = 0
    with joined():  # once: another meeting needs other addresses
        for job in json.loads(path.read_text()):
            loaded = load_recipe(job["recipe"], job.get("set", []))
            if os.environ["RANK"] == str(int(os.environ["WORLD_SIZE"]) - 1):
                before_update(job.get("dies"), lambda: os._exit(9))
                before_update(job.get("asked"), lambda: os.kill(os.getpid(), signal.SIGTERM))
                spoil(job.get("spoils"))
                fill(job.get("full"))
            if backend := job.get("backend"):
                made = dynamo.lookup_backend(backend)
                dynamo.lookup_backend = lambda _, made=made: made
            if job.get("bare"):
                story.export_and_prove = lambda *_: None
            resume = job.get("resume", False)
            try:
                with stop_on_signals() as stopping:
                    run(loaded, output=Path(job["output"]), resume=resume, stopping=stopping)
            except (EffcompressError, Stopped) as error:
                failed += 1
                print(f"process {os.environ['RANK']}: {error}", file=sys.stderr)
    return min(failed, 1)


def before_update(step: int | None, act: Callable[[], object]) -> None:
    """Do something in the middle of a step: after the backward, before the update."""
    update, calls = train.update, 0

    def acting(*given):
        nonlocal calls
        calls += 1
        if calls == step:
            act()
        return update(*given)

    train.update = acting


def spoil(step: int | None) -> None:
    """A layer hands on what is no number, here alone."""
    backward, calls = train.backward, 0

    def spoilt(module, *rest, **how):
        nonlocal calls
        calls += 1
        if calls != step:
            return backward(module, *rest, **how)
        layer = next(m for n, m in module.named_modules() if n.endswith("layers.0"))
        hook = layer.register_forward_hook(lambda _m, _a, out: out * float("nan"))
        try:
            return backward(module, *rest, **how)
        finally:
            hook.remove()

    train.backward = spoilt


def fill(number: int | None) -> None:
    """No space for what is written next but ``number``."""
    module = importlib.import_module("effcompress.checkpoint.save")  # a function has the name too
    write, calls = module.write, 0

    def writing(*given):
        nonlocal calls
        calls += 1
        if calls == number:
            raise OSError(28, "No space left on device")
        return write(*given)

    module.write = writing


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
