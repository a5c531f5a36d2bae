"""``effcompress`` in one of several processes, of which one kills itself:

    torchrun --max-restarts 2 dying.py 1:6,0:9 run RECIPE ...

At the first start process 1 dies behind its sixth step, at the second process 0 behind its ninth
(steps of that start); from the third on none does.
"""

from __future__ import annotations

import os
import sys

from effcompress.cli import main

if __name__ == "__main__":
    deaths, *words = sys.argv[1:]
    start = int(os.environ["TORCHELASTIC_RESTART_COUNT"])
    for rank, _, step in (one.partition(":") for one in deaths.split(",")[start : start + 1]):
        if os.environ["RANK"] == rank:
            os.environ["EFFCOMPRESS_FAULT"] = f"step:{step}:kill"
    main(words)
