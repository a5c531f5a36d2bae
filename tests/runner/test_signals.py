"""A run that is asked to stop ends with a checkpoint, and goes on as if nothing had happened."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from effcompress import load_recipe, run
from effcompress.cli.signals import SIGNALS, stop_on_signals
from effcompress.errors import RecipeError, RunError, Stopped
from effcompress.model.tokenizer import ByteTokenizer
from effcompress.report.gather import gather
from effcompress.report.words import status
from effcompress.runner import run as run_room
from effcompress.stopping import Stopping, grace
from tests import warm
from tests.runner.toys import events, recipe


@pytest.fixture(autouse=True)
def as_in_a_terminal() -> Iterator[None]:
    """The handlers of a process that no ``nohup`` and no shell script started."""
    usual: dict[int, Any] = dict.fromkeys(SIGNALS, signal.SIG_DFL)
    usual[signal.SIGINT] = signal.default_int_handler
    before = {number: signal.signal(number, handler) for number, handler in usual.items()}
    yield
    for number, former in before.items():
        signal.signal(number, former)


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
    assert done.stderr.count("by SIGTERM") == 1, "the reason is printed once"
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
    with stop_on_signals(), pytest.raises(Stopped) as caught:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)
    assert caught.value.exit_code == 0


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_signal_within_a_library_is_no_failure_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """A tokenizer that cannot be loaded is wrong input; one whose loading was stopped is not."""
    words = tmp_path / "words"
    ByteTokenizer().save(words)
    stopping = Stopping()

    def loading(*_given: Any, **_more: Any) -> None:
        stopping.request(signal.Signals[name])

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", loading)
    sets = [f"model.tokenizer={words}", "model.shape.vocab_size=258"]
    loaded = load_recipe(recipe(tmp_path), sets)
    with pytest.raises(Stopped) as caught:
        run(loaded, output=tmp_path / "out", stopping=stopping)
    assert caught.value.exit_code == {"SIGTERM": 0, "SIGINT": 130}[name]
    assert [e["status"] for e in events(tmp_path / "out", "end")] == ["stopped"]


def test_a_closed_terminal_stops_a_run_unless_nohup_ignores_it() -> None:
    with stop_on_signals(), pytest.raises(Stopped, match="by SIGHUP") as caught:
        os.kill(os.getpid(), signal.SIGHUP)
        time.sleep(5)
    assert caught.value.exit_code == 129
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with stop_on_signals():
        os.kill(os.getpid(), signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


def test_what_a_script_started_in_the_background_takes_an_interrupt() -> None:
    """A shell without job control starts it with SIGINT ignored."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with stop_on_signals(), pytest.raises(Stopped, match="by SIGINT"):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)


def test_in_the_loop_it_waits_and_a_second_request_does_not() -> None:
    said: list[str] = []
    with stop_on_signals(Stopping(say=said.append)) as stopping, stopping.patient():
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.2)
        assert stopping.asked == "SIGINT"
        assert said == [
            "Finishing this step, then saving a checkpoint. Press Ctrl-C again to quit now"
        ]
        with pytest.raises(Stopped) as caught:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(5)
    assert caught.value.exit_code == 130, "a shell must not go on behind &&"


def test_a_step_that_does_not_end_is_no_success() -> None:
    with stop_on_signals(Stopping(0.1)) as stopping, stopping.patient():
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(RunError, match=r"no step ended within 0\.1 s"):
            time.sleep(5)


def handlers() -> list[object]:
    return [signal.getsignal(number) for number in SIGNALS]


def test_former_handlers_come_back() -> None:
    before = handlers()
    with stop_on_signals():
        assert not set(handlers()) & set(before)
    assert handlers() == before


def test_a_run_in_process_leaves_the_signal_handlers_alone(tmp_path: Path, monkeypatch) -> None:
    """A program that calls ``effcompress.run`` keeps its own handlers, during and after the run."""
    before, seen = handlers(), list[list[object]]()
    real = run_room.train_step

    def step(*given: Any, **more: Any) -> bool:
        seen.append(handlers())
        return real(*given, **more)

    monkeypatch.setattr(run_room, "train_step", step)
    run(load_recipe(recipe(tmp_path)), output=tmp_path / "out")
    assert seen and all(one == before for one in seen)
    assert handlers() == before


def test_a_run_in_process_can_be_asked_to_stop(tmp_path: Path, monkeypatch) -> None:
    """Without any signal: the caller's own ``Stopping`` ends the run behind the current step."""
    stopping, real, calls = Stopping(), run_room.train_step, list[int]()

    def step(*given: Any, **more: Any) -> bool:
        calls.append(len(calls) + 1)
        if len(calls) == 3:
            stopping.request(signal.SIGTERM)
        return real(*given, **more)

    monkeypatch.setattr(run_room, "train_step", step)
    with pytest.raises(Stopped, match="behind step 3, with a checkpoint"):
        run(load_recipe(recipe(tmp_path)), output=tmp_path / "out", stopping=stopping)
    stopping.close()
    assert events(tmp_path / "out", "checkpoint")[-1]["step"] == 3


def test_the_grace_time_is_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EFFCOMPRESS_GRACE", "12.5")
    assert grace() == 12.5
    for wrong in ("soon", "-1", "nan"):
        monkeypatch.setenv("EFFCOMPRESS_GRACE", wrong)
        with pytest.raises(RecipeError, match=f"EFFCOMPRESS_GRACE is '{wrong}'"):
            grace()
