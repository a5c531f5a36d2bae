"""A run that is asked to stop ends with a checkpoint, and goes on as if nothing had happened."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from effcompress.errors import RecipeError, RunError, Stopped
from effcompress.report.gather import gather
from effcompress.report.words import status
from effcompress.runner.signals import Stopping, grace
from tests import warm
from tests.runner.toys import events, recipe


def test_a_scheduler_gets_a_checkpoint_and_a_zero(tmp_path: Path) -> None:
    """The stopped run is a process of the real command line; the others start from a warm one."""
    path, whole, out = recipe(tmp_path), tmp_path / "whole", tmp_path / "out"
    words = ["run", str(path), "--output"]
    assert warm.effcompress(*words, str(whole), folder=tmp_path).returncode == 0
    # Checkpoints are due at 4 and 8.
    environment = {"OMP_NUM_THREADS": "1", "EFFCOMPRESS_FAULT": "step:6:terminate"}
    done = subprocess.run(
        [sys.executable, "-m", "effcompress", *words, str(out)],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    assert "stopped: by SIGTERM behind step 6, with a checkpoint" in done.stderr
    assert "Traceback" not in done.stderr
    assert events(out, "checkpoint")[-1]["step"] == 6
    end = events(out, "end")[-1]
    assert end["status"] == "stopped" and "SIGTERM" in end["reason"]
    assert "was stopped by SIGTERM" in str(status(gather(out)))
    assert "was stopped by SIGTERM" in (out / "report.html").read_text()
    assert warm.effcompress(*words, str(out), "--resume", folder=tmp_path).returncode == 0
    for name in ("model.safetensors", "plans.jsonl"):
        assert (out / name).read_bytes() == (whole / name).read_bytes()
    assert [e["status"] for e in events(out, "end")] == ["success"]


def test_outside_of_the_loop_it_stops_at_once() -> None:
    with Stopping().listening(), pytest.raises(Stopped) as caught:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)
    assert caught.value.exit_code == 0


def test_in_the_loop_it_waits_and_a_second_request_does_not() -> None:
    said: list[str] = []
    with Stopping(say=said.append).listening() as stopping, stopping.patient():
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.2)
        assert stopping.asked == "SIGINT" and "checkpoint" in said[0]
        with pytest.raises(Stopped) as caught:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(5)
    assert caught.value.exit_code == 130, "a shell must not go on behind &&"


def test_a_step_that_does_not_end_is_no_success() -> None:
    with Stopping(0.1).listening() as stopping, stopping.patient():
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(RunError, match=r"no step ended within 0\.1 s"):
            time.sleep(5)


def test_what_listened_before_listens_again() -> None:
    before = [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)]
    with Stopping().listening():
        assert signal.getsignal(signal.SIGTERM) != before[0]
    assert [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)] == before


def test_the_grace_time_is_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EFFCOMPRESS_GRACE", "12.5")
    assert grace() == 12.5
    for wrong in ("soon", "-1", "nan"):
        monkeypatch.setenv("EFFCOMPRESS_GRACE", wrong)
        with pytest.raises(RecipeError, match=f"EFFCOMPRESS_GRACE is '{wrong}'"):
            grace()
