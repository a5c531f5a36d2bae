"""W&B and Trackio for real, without a network: what they have written themselves is read back."""

from __future__ import annotations

import io
import json
import os
import sqlite3
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from effcompress.record.events import End, Run, Step
from effcompress.record.log import Log, PlainView
from effcompress.spec import TrackSpec
from effcompress.track.view import watch
from tests.runner.toys import events

ROOT = Path(__file__).parents[1]


def watched(folder: Path, *names: Any) -> Log:
    """A record in ``folder`` that these trackers see."""
    log = Log(folder, view=PlainView(io.StringIO()))
    recipe: Any = types.SimpleNamespace(name="toy", track=TrackSpec(to=names, project="toys"))
    watch(log, recipe, {"seed": 3, "train": {"tokens": None}}, offline=True)
    return log


def tell(folder: Path, first: int, last: int) -> None:
    """In a process of its own: steps of a run, from a checkpoint at step 3 if there is one."""
    state = folder / "state.json"
    log = watched(folder, "wandb", "trackio")
    log.rewind(json.loads(state.read_text()) if state.exists() else {})
    if first == 1:
        log.event(Run(name="toy", model="x", params=9, seed=3, device="cpu", model_hash="abc"))
    for step in range(first, last + 1):
        loss = 1 / step
        log.event(
            Step(
                step=step,
                tokens=step,
                loss=loss,
                domain_loss={"web": loss},
                learning_rate=1e-3,
                grad_norm=1.0,
                params=9,
                tokens_per_second=5.0,
            )
        )
        if step == 3:
            state.write_text(json.dumps(log.state()))
    log.event(End(status="success", seconds=1.0))
    log.close()


def wandb_records(path: Path) -> Iterator[Any]:
    """What W&B wrote: a header, then the blocks of LevelDB's log."""
    from wandb.proto.wandb_internal_pb2 import Record

    raw, at, parts = path.read_bytes(), 7, b""
    while at + 7 <= len(raw):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        size, kind = int.from_bytes(raw[at + 4 : at + 6], "little"), raw[at + 6]
        parts += raw[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # whole, or the last part
            yield Record.FromString(parts)
            parts = b""


def test_wandb_and_trackio_without_a_network(tmp_path: Path) -> None:
    """For real, each with its own files. Steps 4 and 5 come twice, the second time after 3."""
    environment = {**os.environ, "TRACKIO_DIR": str(tmp_path / "trackio")}
    for first, last in ((1, 5), (4, 7)):
        code = "import sys; from tests.test_track_offline import *; "
        code += "tell(Path(sys.argv[1]), *map(int, sys.argv[2:]))"
        done = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path), str(first), str(last)],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0 and done.stdout == "", done.stdout + done.stderr
    assert events(tmp_path, "warning") == []
    with sqlite3.connect(tmp_path / "trackio" / "toys.db") as base:
        rows = base.execute("SELECT step, metrics FROM metrics ORDER BY id").fetchall()
        [configuration] = base.execute("SELECT config FROM configs").fetchone()
    base.close()
    assert [step for step, _ in rows] == [*range(1, 8)]
    assert [json.loads(row)["loss/web"] for _, row in rows] == [1 / n for n in range(1, 8)]
    assert json.loads(configuration)["run.model_hash"] == "abc"
    files = sorted((tmp_path / "wandb").glob("offline-run-*/*.wandb"), key=lambda f: f.parent.name)
    assert len(files) == 2 and len({file.name for file in files}) == 1  # the same run goes on
    told = [[*wandb_records(file)] for file in files]
    losses = [_history(records, "loss") for records in told]
    assert losses[0] == {step: 1 / step for step in range(1, 6)}
    assert losses[1] == {step: 1 / step for step in range(3, 8)}
    assert _history(told[1], "status") == {7: "success"}
    update = [item for record in told[0] for item in record.config.update]
    assert {item.key: item.value_json for item in update}["seed"] == "3"


def _history(records: list[Any], name: str) -> dict[int, Any]:
    rows = [
        {(i.key or ".".join(i.nested_key)): json.loads(i.value_json) for i in record.history.item}
        for record in records
        if record.WhichOneof("record_type") == "history"
    ]
    return {row["_step"]: row[name] for row in rows if name in row}
