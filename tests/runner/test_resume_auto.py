"""``--resume=auto``: one command for a job scheduler, however often it is started."""

from __future__ import annotations

import json
import threading
import time
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from effcompress.cli import main, run
from effcompress.record import status_file
from effcompress.record.status_file import StatusFile
from tests import warm
from tests.runner.toys import events, recipe


def words(path: Path, out: Path) -> tuple[str, ...]:
    return "run", str(path), "--output", str(out), "--resume=auto"


def test_begins_continues_and_leaves_what_is_finished(tmp_path: Path) -> None:
    path, whole, out = recipe(tmp_path), tmp_path / "whole", tmp_path / "out"
    path.write_text(path.read_text().replace("keep_after: 3", "keep_after: 0"))
    done = warm.effcompress("run", str(path), "--output", str(whole), folder=tmp_path)
    assert done.returncode == 0, done.stderr
    fault = {"EFFCOMPRESS_FAULT": "step:6:terminate"}
    done = warm.effcompress(*words(path, out), folder=tmp_path, environment=fault)
    assert done.returncode == run.AGAIN == 75 and "stopped: by SIGTERM" in done.stderr
    assert "Traceback" not in done.stderr
    fault = {"EFFCOMPRESS_FAULT": "step:4:kill"}
    done = warm.effcompress(*words(path, out), folder=tmp_path, environment=fault)
    assert done.returncode == -9
    done = warm.effcompress(*words(path, out), folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (out / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    assert len(events(out, "end")) == 1
    held = {file: file.stat().st_mtime_ns for file in out.rglob("*") if file.is_file()}
    done = warm.effcompress(*words(path, out), folder=tmp_path)
    assert done.returncode == 0 and done.stderr == ""
    assert done.stdout.startswith(f"finished    {out}: nothing is left to do")
    assert {file: file.stat().st_mtime_ns for file in out.rglob("*") if file.is_file()} == held


def test_another_recipe_is_not_finished_with(tmp_path: Path) -> None:
    path, out = recipe(tmp_path), tmp_path / "out"
    assert warm.effcompress(*words(path, out), folder=tmp_path).returncode == 0
    more = ("--set", "train.learning_rate.peak=2e-3")
    done = warm.effcompress(*words(path, out), *more, folder=tmp_path)
    assert done.returncode == 2 and "the recipe changed since this run began" in done.stderr


def test_what_is_no_run_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path, out = recipe(tmp_path), tmp_path / "out"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    with pytest.raises(SystemExit) as ended:
        main([*words(path, out)])
    assert ended.value.code == 2 and "is no run of effcompress" in capsys.readouterr().err
    for wrong in ("--resume=yes", "--resume="):
        with pytest.raises(SystemExit) as ended:
            main(["run", str(path), wrong])
        assert ended.value.code == 2
        assert f"{wrong}: write --resume or --resume=auto" in capsys.readouterr().err


def left(folder: Path, *, ago: float, heartbeat: float) -> None:
    """Writes the status file of a process of another machine that was last seen some time ago."""
    folder.mkdir(exist_ok=True)
    StatusFile(folder, heartbeat).beat()
    record = status_file.read(folder)
    assert record is not None
    seen = (datetime.now(UTC) - timedelta(seconds=ago)).isoformat()
    said = {**asdict(record), "host": "lost-node", "system": "other", "written": seen}
    (folder / status_file.NAME).write_text(json.dumps(said))


def test_a_lost_node_is_waited_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its last heartbeat is too young to tell; six missing ones decide."""
    left(tmp_path, ago=0.0, heartbeat=0.25)
    run._await_silence(tmp_path)
    now = status_file.read(tmp_path)
    assert now is not None and not now.alive()
    assert capsys.readouterr().err.count("process") == 1
    run._await_silence(tmp_path / "nothing")
    left(tmp_path, ago=900.0, heartbeat=20.0)
    run._await_silence(tmp_path)
    assert capsys.readouterr().err == "", "it is known to be gone"


def test_a_process_that_lives_elsewhere_is_not_waited_for(tmp_path: Path) -> None:
    left(tmp_path, ago=0.0, heartbeat=1000.0)
    beats = threading.Timer(0.5, left, (tmp_path,), {"ago": 0.0, "heartbeat": 1000.0})
    beats.start()
    started = time.monotonic()
    run._await_silence(tmp_path)
    beats.join()
    assert time.monotonic() - started < 60, "not six heartbeats"
