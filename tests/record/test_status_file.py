"""``now.json`` says what a run does, whole at any time, and who may still be there."""

from __future__ import annotations

import errno
import io
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from effcompress.record import events
from effcompress.record import status_file as moment
from effcompress.record.log import Log, PlainView
from effcompress.record.status_file import MISSED, StatusFile, StatusRecord, read


def log(folder: Path, **more) -> Log:
    return Log(folder, view=PlainView(io.StringIO()), **more)


def said(folder: Path) -> StatusRecord:
    now = read(folder)
    assert now is not None
    return now


def ago(seconds: float) -> str:
    return (datetime.now(UTC) - timedelta(seconds=seconds)).isoformat()


@pytest.fixture
def mine(tmp_path: Path) -> StatusRecord:
    """What this process says of itself."""
    StatusFile(tmp_path, heartbeat=20.0).phase("waiting")
    return said(tmp_path)


def test_a_phase_is_there_at_once_and_the_rest_with_the_heartbeat(tmp_path: Path) -> None:
    one = log(tmp_path, heartbeat=0.1)
    one.phase("pruning", 1000)
    first = said(tmp_path)
    assert (first.phase, first.pid, first.step, first.open) == ("pruning", os.getpid(), None, True)
    one.event(
        events.Step(
            step=3, tokens=300, loss=1.0, learning_rate=1e-3, params=9, tokens_per_second=10.0
        )
    )
    time.sleep(0.35)
    beaten = said(tmp_path)
    assert (beaten.step, beaten.tokens, beaten.phase) == (3, 300, "pruning")
    assert beaten.written > first.written and beaten.phase_since == first.phase_since
    assert beaten.written > beaten.active, "a heartbeat is no event"
    assert beaten.started == first.started and beaten.heartbeat == 0.1
    one.close()
    assert not said(tmp_path).open, "last words stay"
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_a_measurement_ends_with_the_cut_it_was_for(tmp_path: Path) -> None:
    now = StatusFile(tmp_path, heartbeat=20.0)
    now.phase("pruning and training")
    began = said(tmp_path).unit_since
    time.sleep(0.01)
    now.progress("calibration sequence", 0, 8)
    now.progress("calibration sequence", 1, 8)
    now.beat(0.0)
    during = said(tmp_path)
    assert (during.done, during.total) == (1, 8) and during.unit_since > began
    assert during.phase_since < during.unit_since
    now.event(
        events.Cut(step=1, tokens=9, params=9, removed={"ffn": 1}, share_removed={}, saliency={})
    )
    now.beat(0.0)
    assert said(tmp_path).unit is None


def test_progress_is_written_now_and_then_and_ends_with_its_phase(tmp_path: Path) -> None:
    now = StatusFile(tmp_path, heartbeat=20.0)
    now.phase("making zeros")
    for k in range(100):
        now.progress("block", k, 100)
    assert said(tmp_path).unit is None, "not a file per block"
    now.beat(0.0)
    assert (said(tmp_path).unit, said(tmp_path).done, said(tmp_path).total) == ("block", 99, 100)
    now.phase("evaluating")
    assert said(tmp_path).unit is None


def test_progress_is_written_once_enough_time_has_passed(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(moment, "OFTEN", 0.0)
    StatusFile(tmp_path, heartbeat=20.0).progress("block", 5, 100)
    assert said(tmp_path).done == 5


def test_one_process_keeps_it(tmp_path: Path) -> None:
    other = log(tmp_path, keep=False, heartbeat=0.05)
    other.phase("pruning")
    time.sleep(0.15)
    other.close()
    assert read(tmp_path) is None


def test_the_end_of_a_run_lets_go_before_the_process_does(tmp_path: Path) -> None:
    one = log(tmp_path)
    one.phase("evaluating")
    assert said(tmp_path).open
    one.event(events.End(status="success", seconds=1.0))
    assert not said(tmp_path).open
    one.close()


def test_a_full_disk_does_not_end_a_run(tmp_path, monkeypatch) -> None:
    now = StatusFile(tmp_path, heartbeat=20.0)
    now.phase("before")

    def full(*_given, **_more):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    now.phase("after")
    monkeypatch.undo()
    assert said(tmp_path).phase == "before"


def test_a_reader_never_sees_half_of_it(tmp_path: Path) -> None:
    now = StatusFile(tmp_path, heartbeat=20.0)
    now.phase("0")
    code = (
        "import sys; from pathlib import Path\n"
        "from effcompress.record.status_file import StatusFile\n"
        "now = StatusFile(Path(sys.argv[1]), 20.0)\n"
        "for k in range(1500): now.phase('x' * (k % 300))\n"
    )
    writer = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)])
    while writer.poll() is None:
        assert isinstance(json.loads((tmp_path / "now.json").read_text()), dict)
    assert writer.returncode == 0 and said(tmp_path).phase == "x" * 299


@pytest.mark.parametrize("text", ["", "[]", '{"pid": 1}', "{", "\xff"])
def test_what_is_none_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "now.json").write_text(text, encoding="latin-1")
    assert read(tmp_path) is None


def test_another_version_may_say_more(tmp_path: Path, mine: StatusRecord) -> None:
    words = json.loads((tmp_path / "now.json").read_text())
    (tmp_path / "now.json").write_text(json.dumps({**words, "mood": "fine"}))
    assert read(tmp_path) == mine


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="the system does not say")
def test_another_process_with_the_same_pid_is_another(mine: StatusRecord) -> None:
    assert mine.alive()
    assert not replace(mine, born=(mine.born or 0) + 1).alive()
    assert replace(mine, written=ago(9999)).alive(), "it is there, however silent"


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="the system does not say")
def test_a_dead_process_that_nobody_waited_for_is_dead(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path\n"
        "from effcompress.record.status_file import StatusFile\n"
        "StatusFile(Path(sys.argv[1]), 20.0).phase('waiting'); time.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)])
    while read(tmp_path) is None:
        time.sleep(0.01)
    assert said(tmp_path).alive() and said(tmp_path).pid == process.pid
    process.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 10
    while said(tmp_path).alive():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.wait()
    assert not said(tmp_path).alive()


def test_of_another_machine_only_the_heartbeat_is_known(mine: StatusRecord) -> None:
    there = replace(mine, host="elsewhere", pid=2**22 + 1)
    assert there.alive()
    assert replace(there, written=ago((MISSED - 1) * 20)).alive()
    assert not replace(there, written=ago((MISSED + 1) * 20)).alive()
    assert not replace(there, written=ago(150)).alive(), "a heartbeat of 20 s is missed six times"
    other_container = replace(mine, system="another", pid=2**22 + 1)
    assert other_container.alive()


def test_where_the_system_says_nothing_pid_and_heartbeat_must_agree(mine, monkeypatch) -> None:
    monkeypatch.setattr(moment, "_system", lambda: "")
    here = replace(mine, system="", born=None)
    assert here.alive()
    assert not replace(here, pid=2**22 + 1).alive()
    assert not replace(here, written=ago((MISSED + 1) * 20)).alive(), "a pid may be used again"
