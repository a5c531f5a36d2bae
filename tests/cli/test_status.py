"""``effcompress status`` tells a run that goes on from one that died."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from effcompress.errors import SourceError
from effcompress.now import NAME, NowFile
from effcompress.runner.status import runs_in, status
from tests.runner.toys import recipe

RUN = {
    "event": "run",
    "name": "toy",
    "params": 1000,
    "target_params": 700,
    "total_tokens": 2560,
}


def step(number: int) -> dict:
    return {
        "event": "step",
        "step": number,
        "tokens": 128 * number,
        "loss": 5.0,
        "tokens_per_second": 64.0,
        "params": 900,
        "seconds": 2.0 * number,
    }


def made(folder: Path, *events: dict) -> Path:
    """A folder with a record, as a run leaves it."""
    folder.mkdir(exist_ok=True)
    lines = [json.dumps(event) + "\n" for event in events]
    (folder / "metrics.jsonl").write_text("".join(lines))
    return folder


def effcompress(*words: str, fault: str = "") -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "EFFCOMPRESS_FAULT": fault,
        "COLUMNS": "80",
    }
    command = [sys.executable, "-m", "effcompress", *words]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=200)


def test_a_run_that_died_and_went_on(tmp_path: Path) -> None:
    path, out = recipe(tmp_path), tmp_path / "out"
    words = ["run", str(path), "--output", str(out)]
    assert effcompress(*words, fault="step:6:kill").returncode == -9
    found = status(out)
    assert (found.state, found.step, found.total_tokens) == ("died", 6, 2560)
    assert found.checkpoint is not None and found.checkpoint.step == 4
    assert found.risk is not None and found.risk.steps == 2
    assert found.next.endswith(f"--output {out} --resume")
    shown = effcompress("status", str(out))
    assert shown.returncode == 0 and shown.stdout.startswith("toy: died")
    assert "step 4" in shown.stdout and "2 steps behind it" in shown.stdout
    # What it says to type is what is typed.
    assert effcompress(*found.next.split()[1:]).returncode == 0
    found = status(out)
    assert (found.state, found.next, found.risk) == ("finished", "", None)
    said = json.loads(effcompress("status", str(out), "--json").stdout)
    assert said["state"] == "finished" and said["report"].endswith("report.html")


def test_a_run_under_way(tmp_path: Path) -> None:
    folder = made(tmp_path / "run", RUN, *map(step, range(1, 11)))
    NowFile(folder, 20.0).phase("pruning and training")  # by this process, which lives
    found = status(folder)
    assert found.state == "running" and found.next == ""
    assert found.tokens_per_second == pytest.approx(64.0)
    assert found.seconds_left == pytest.approx((2560 - 1280) / 64)
    assert found.risk is not None and (found.risk.steps, found.risk.seconds) == (10, 20.0)


@pytest.mark.parametrize(
    "change", [{"born": 1}, {"host": "elsewhere", "written": "2020-01-01T00:00:00+00:00"}]
)
def test_another_process_of_that_number_is_not_the_run(tmp_path: Path, change: dict) -> None:
    """Also on another machine, whose heartbeat ended long ago."""
    folder = made(tmp_path / "run", RUN, step(1))
    NowFile(folder, 20.0).phase("training")
    said = json.loads((folder / NAME).read_text())
    (folder / NAME).write_text(json.dumps({**said, **change}))
    assert status(folder).state == "died"


@pytest.mark.parametrize("state", ["failed", "stopped"])
def test_why_it_ended(tmp_path: Path, state: str) -> None:
    end = {"event": "end", "status": state, "reason": "for a reason\n  do this", "seconds": 1.0}
    folder = made(tmp_path / "run", RUN, step(1), {"event": "warning", "text": "careful"}, end)
    found = status(folder)
    assert (found.state, found.reason) == (state, "for a reason do this")
    assert (found.warnings, found.last_warnings) == (1, ("careful",))
    assert "--resume" in found.next


def test_half_a_line_is_no_line(tmp_path: Path) -> None:
    folder = made(tmp_path / "run", RUN, step(1))
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"event": "step", "step": 2, "tok')
    assert status(folder).step == 1


def test_no_run(tmp_path: Path) -> None:
    made(tmp_path / "quickstart", RUN)
    with pytest.raises(SourceError, match="did you mean 'quickstart'"):
        runs_in(tmp_path / "quickstar")
    assert [p.name for p in runs_in(tmp_path)] == ["quickstart"]
    done = effcompress("status", str(tmp_path / "none"))
    assert done.returncode == 2 and "no such folder" in done.stderr
