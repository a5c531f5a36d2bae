"""One of several processes: loads a source as a run does, cuts it, and exports it.

``jobs.json``: ``[{recipe, output, set, form, full}]``; without ``form`` the source is written down
whole, with what the record says of it; with ``full`` the last process has no space for its second
tensor.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch

from effcompress import load_recipe
from effcompress.distributed.rows import whole
from effcompress.distributed.world import World, joined
from effcompress.export.write import export_and_prove
from effcompress.record.log import Log, NoView
from effcompress.runner.source_model import identified, read_source
from effcompress.runner.start import corpus_of
from effcompress.runner.state import RunState
from tests.proving import in_this_process


def main(path: Path) -> int:
    from effcompress.checkpoint import proof

    proof.in_fresh_process = in_this_process
    with joined() as world:
        for job in json.loads(path.read_text()):
            one(job, world)
    return 0


def one(job: dict[str, Any], world: World) -> None:
    recipe, folder = load_recipe(job["recipe"], job["set"]).recipe, Path(job["output"])
    folder.mkdir(parents=True, exist_ok=True)
    log = Log(folder, view=NoView(), keep=world.main)
    if job.get("full") and world.rank == world.size - 1:
        os.environ["EFFCOMPRESS_FAULT"] = "export.tensor:2:disk_full"
    try:
        model = read_source(recipe, log, offline=True, world=world)
        if world.size > 1:
            assert all(p.is_meta for p in model.module.parameters())
            named = dict(model.module.named_parameters())
            assert all(
                len(rows) <= -(-len(named[name]) // world.size) for name, rows in model.rows.items()
            )
        model, said = identified(recipe, model, log, {}, world)
        quiet: Any = {"offline": True, "say": log.note, "notice": log.note}
        with world.main_first():
            corpus = corpus_of(recipe, model.tokenizer, **quiet)
        state = RunState(recipe, model, corpus, world)
        if "form" not in job:
            held = {name: whole(p.detach()).clone() for name, p in state.module.named_parameters()}
            if world.main:
                torch.save((held, said), folder / "source.pt")
            return
        uniform = job["form"] == "uniform"
        sets = [s for s in state.pruned.sets if s.kind != "attention"]
        cut = [s for s in sets if uniform or s.layer in (None, 0)]
        state.pruned.mask({s.name: [1, 3] for s in cut})
        state.pruned.commit()
        ids_BT = corpus.calibration(2, 0)[:, :16]
        how = state.to_call if state.shards else None, world if state.shards else World()
        export_and_prove(
            state.pruned, state.tokenizer, job["form"], ids_BT, folder / "out", log, None, *how
        )
    finally:
        log.close()
