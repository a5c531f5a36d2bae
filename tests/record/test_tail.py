"""The end of a record, read block by block."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from effcompress.record import tail
from effcompress.record.status import Checkpoint, _checkpoint, _risk
from effcompress.record.tail import read_tail

STEPS = 30


@pytest.fixture
def record(tmp_path: Path) -> Path:
    lines = []
    for step in range(1, STEPS + 1):
        numbers = {"tokens": 128 * step, "loss": 2.0, "learning_rate": 1e-3, "params": 100}
        more = {"domain_loss": {"a": 2.0}, "grad_norm": 1.0, "tokens_per_second": 64.0}
        kind = {"event": "step", "step": step, "flops": 1.0, "seconds": 2.0 * step}
        lines.append({**kind, **numbers, **more})
        if step % 10 == 0:
            lines.append({"event": "warning", "text": f"at {step}"})
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.mark.parametrize("block", [1, 2, 37, 211, 1000, 1 << 22])
def test_no_line_is_lost_where_two_blocks_meet(
    record: Path, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tail, "BLOCK", block)
    found = read_tail(record)
    assert [s.step for s in found.steps] == list(range(11, 31))
    assert found.warnings == 3 and found.last_warnings == ("at 10", "at 20", "at 30")


def test_what_a_crash_would_lose_is_what_was_done_since_the_newest_checkpoint(
    record: Path,
) -> None:
    for step in (10, 24):
        folder = record.parent / "checkpoints" / f"step-{step:08d}"
        folder.mkdir(parents=True)
        (folder / "state.json").write_text("x" * step)
    newest = _checkpoint(record.parent)
    assert newest is not None and (newest.step, newest.bytes) == (24, 24)
    risk = _risk(read_tail(record), newest)
    assert risk is not None and risk.steps == 6 and risk.seconds == pytest.approx(12.0)
    without = _risk(read_tail(record), None)
    assert without is not None and (without.steps, without.seconds) == (30, 60.0)
    ahead = _risk(read_tail(record), Checkpoint(40, 0.0, 1))
    assert ahead is not None and ahead.steps == 0
