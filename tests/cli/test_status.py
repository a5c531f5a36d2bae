"""``effcompress status`` tells a run that goes on from one that died."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from effcompress.errors import SourceError
from effcompress.record.events import typed
from effcompress.record.status import runs_in, status
from effcompress.record.status_file import NAME, StatusFile
from effcompress.record.tail import BLOCK
from effcompress.report.comparison import facts
from tests import warm
from tests.runner.toys import recipe

RUN = {
    "event": "run",
    "name": "toy",
    "seed": 0,
    "model": "toy",
    "device": "cpu",
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
        "learning_rate": 1e-3,
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


def dead(folder: Path) -> Path:
    """The folder, after what was this process is gone."""
    StatusFile(folder, 20.0).phase("training")
    said = json.loads((folder / NAME).read_text())
    (folder / NAME).write_text(json.dumps({**said, "born": 1}))
    return folder


def effcompress(*words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "80"}
    command = [sys.executable, "-m", "effcompress", *words]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=200)


def test_a_run_that_died_and_went_on(tmp_path: Path) -> None:
    path, out = recipe(tmp_path), tmp_path / "out"
    words = ["run", str(path), "--output", str(out)]
    fault = {"EFFCOMPRESS_FAULT": "step:6:kill"}
    assert warm.effcompress(*words, folder=tmp_path, environment=fault).returncode == -9
    found = status(out)
    assert (found.state, found.step, found.total_tokens) == ("died", 6, 2560)
    assert found.checkpoint is not None and found.checkpoint.step == 4
    assert found.risk is not None and found.risk.steps == 2
    assert found.next.endswith(f"--output {out} --resume")
    shown = effcompress("status", str(out))
    assert shown.returncode == 0 and shown.stdout.startswith("toy: died")
    assert "step 4" in shown.stdout and "2 steps behind it" in shown.stdout
    # What it says to type is what is typed.
    assert warm.effcompress(*found.next.split()[1:], folder=tmp_path).returncode == 0
    found = status(out)
    assert (found.state, found.next, found.risk) == ("finished", "", None)
    said = json.loads(effcompress("status", str(out), "--json").stdout)
    assert said["state"] == "finished" and said["report"].endswith("report.html")


def test_a_real_run_under_way_that_is_killed(tmp_path: Path) -> None:
    out = tmp_path / "out of the way"
    words = ["-m", "effcompress", "run", str(recipe(tmp_path)), "--output", str(out)]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "EFFCOMPRESS_FAULT": "step:6:hang",
        "EFFCOMPRESS_SILENCE": "1",
    }
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, *words], stdout=log, stderr=log, env=environment
        )
    try:
        deadline = time.monotonic() + 200
        while (found := status(out)).step != 6 or found.stacks is None:
            assert process.poll() is None and time.monotonic() < deadline, found
            time.sleep(0.05)
        assert (found.state, found.next) == ("running", "")
        assert found.now is not None and found.now.pid == process.pid
        assert found.now.phase == "pruning and training" and "_hang" in found.stacks.read_text()
        shown = effcompress("status", str(out)).stdout
        assert shown.startswith("toy: running\n") and "stuck?" in shown and "at risk" in shown
        assert all(len(line) <= 80 for line in shown.splitlines())
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    found = status(out)
    assert (found.state, found.step) == ("died", 6)
    assert found.stacks == out / "stacks.txt", "it was stuck when it was killed"
    assert shlex.split(found.next)[-2] == str(out), "it can be pasted, blanks and all"


def test_a_run_taken_up_again_that_died_at_once(tmp_path: Path) -> None:
    """Its record still ends as it did before."""
    end = {"event": "end", "status": "failed", "reason": "boom", "seconds": 1.0}
    folder = made(tmp_path / "run", RUN, step(1), end)
    assert status(folder).state == "failed"
    now = StatusFile(folder, 20.0)
    now.phase("loading the model")
    assert status(folder).state == "running"
    assert status(dead(folder)).state == "died"


def test_a_run_that_ended_in_a_process_that_lives(tmp_path: Path) -> None:
    end = {"event": "end", "status": "success", "seconds": 1.0, "params": 700}
    folder = made(tmp_path / "run", RUN, step(1), end)
    now = StatusFile(folder, 20.0)
    now.event(typed(end))
    found = status(folder)
    assert (found.state, found.params, found.seconds_left) == ("finished", 700, None)


def test_what_a_phase_of_so_many_parts_has_left(tmp_path: Path) -> None:
    folder = made(tmp_path / "run", RUN)
    now = StatusFile(folder, 20.0)
    now.phase("making zeros")
    now.progress("block", 3, 4)
    now.beat(0.0)
    time.sleep(0.3)
    found = status(folder)
    assert found.seconds_left is not None and 0.1 <= found.seconds_left < 5
    assert "block 3 of 4" in effcompress("status", str(folder)).stdout


def test_a_phase_that_was_forecast_says_what_is_left(tmp_path: Path) -> None:
    folder = made(tmp_path / "run", RUN)
    now = StatusFile(folder, 20.0)
    now.phase("proving the export")
    assert status(folder).seconds_left is None
    now.expect(90.5)
    left = status(folder).seconds_left
    assert left is not None and 80 < left < 90.5
    assert "about 1:" in effcompress("status", str(folder)).stdout
    now.expect(-1.0)
    assert status(folder).seconds_left is None, "later than was forecast"
    now.expect(60.0)
    now.phase("evaluating")
    assert status(folder).seconds_left is None


def test_a_run_that_did_not_begin(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "recipe.resolved.yaml").write_text("name: toy\n")
    assert status(folder).state == "not started"


def test_runs_side_by_side(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    dead(made(tmp_path / "runs" / "taylor_0", RUN, step(5)))
    StatusFile(made(tmp_path / "runs" / "random_0", RUN, step(10)), 20.0).phase("training")
    shown = effcompress("status", str(tmp_path)).stdout.splitlines()
    assert [line.split()[:4] for line in shown[2:]] == [
        ["random_0", "running", "10", "50%"],
        ["taylor_0", "died", "5", "25%"],
    ]
    said = json.loads(effcompress("status", str(tmp_path), "--json").stdout)
    assert [run["state"] for run in said["runs"]] == ["running", "died"]


def test_a_long_record_is_read_at_once_and_without_torch(tmp_path: Path) -> None:
    cut = {"event": "cut", "step": 9, "tokens": 9, "removed": {"ffn": 3}, "params": 850}
    cut |= {"share_removed": {}, "saliency": {}}
    warnings = [{"event": "warning", "text": str(k)} for k in range(5)]
    folder = made(tmp_path / "run", RUN, *warnings, cut)
    filler = {"domain_loss": {"prose": 2.5, "code": 1.5}, "learning_rate": 1e-3, "flops": 1e15}
    with (folder / "metrics.jsonl").open("a") as file:
        for k in range(10, 300_010):
            file.write(json.dumps({**step(k), **filler}) + "\n")
            if k == 200_000:
                file.write(json.dumps({**warnings[0], "text": "late"}) + "\n")
    assert (folder / "metrics.jsonl").stat().st_size > 10 * BLOCK
    began = time.process_time()
    found = status(folder)
    assert time.process_time() - began < 1
    assert (found.step, found.params, found.cut, found.cut_step) == (300_009, 900, {"ffn": 3}, 9)
    assert (found.warnings, found.last_warnings) == (6, ("3", "4", "late"))
    assert (found.name, found.params_before) == ("toy", 1000)
    code = (
        "import sys; from effcompress.cli import main\n"
        "try: main(['status', sys.argv[1]])\n"
        "except SystemExit as e: assert not e.code\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code, str(folder)], check=True, stdout=subprocess.PIPE)


def test_a_run_under_way(tmp_path: Path) -> None:
    folder = made(tmp_path / "run", RUN, *map(step, range(1, 11)))
    StatusFile(folder, 20.0).phase("pruning and training")  # by this process, which lives
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
    StatusFile(folder, 20.0).phase("training")
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


NOT_A_RECORD = [
    b"",
    b"\x00\xff\x1b[31m\n" * 9,
    b'{"event": "run"',
    b'{"event": "run"}\n[1]\nnull\n"text"\n7\n',
    b'{"event": "step", "step": 1e999, "loss": NaN}\n' + b"[" * 100_000 + b"\n",
    json.dumps({**RUN, "params": "many", "name": 7}).encode() + b"\n",
    "".join(json.dumps({**step(1), key: [{}]}) + "\n" for key in step(1)).encode(),
    json.dumps({**step(1), "tokens_per_second": -1.0, "tokens": -(10**17)}).encode() + b"\n",
    json.dumps({**step(1), "step": 10**30}).encode() + b"\n",
    b'{"event": "end"}\n{"event": "end", "status": ["\\u001b[31m"], "seconds": "x"}\n',
    b'{"event": "cut", "step": 1, "tokens": 1, "params": 1, "removed": {"ffn": "x"}}\n',
]
NOT_NOW = [b"\xff", b"[]", b"null", b"[" * 100_000, b'{"pid": 1}', b"7" * 5000]


@pytest.mark.parametrize("record", NOT_A_RECORD)
def test_a_damaged_or_foreign_record_is_no_traceback(
    tmp_path: Path, record: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    from effcompress.cli import main

    folder = made(tmp_path / "run")
    (folder / "metrics.jsonl").write_bytes(record)
    (folder / "plans.jsonl").write_bytes(record)
    main_ = (["status", str(folder)], ["status", str(tmp_path)], ["status", "--json", str(folder)])
    for words in main_:
        with pytest.raises(SystemExit) as ended:
            main(words)
        assert not ended.value.code
        said = capsys.readouterr()
        assert "\x1b" not in said.out + said.err
    read = facts.read(folder, shown="run")
    assert read.reason and not read.done


@pytest.mark.parametrize("now", NOT_NOW)
@pytest.mark.parametrize("change", [None, {"pid": 2**70}, {"pid": -1}, {"started": "now"}])
def test_a_damaged_now_is_none(tmp_path: Path, now: bytes, change: dict | None) -> None:
    folder = made(tmp_path / "run", RUN)
    (folder / NAME).write_bytes(now)
    if change is not None:
        StatusFile(folder, 20.0).phase("training")
        said = json.loads((folder / NAME).read_text())
        (folder / NAME).write_text(json.dumps({**said, **change}))
    assert status(folder).state == "died" and status(folder).now is None


def test_what_is_no_file_is_no_record(tmp_path: Path) -> None:
    """Opening a pipe would wait for a writer."""
    folder = tmp_path / "run"
    (folder / "metrics.jsonl").mkdir(parents=True)
    (folder / "recipe.resolved.yaml").touch()
    os.mkfifo(folder / NAME)
    (folder / "checkpoints").touch()
    assert status(folder).state == "not started"


def test_nothing_that_a_terminal_obeys_is_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from effcompress.cli import main

    bad = "\x1b[31m\x9b2J\u202e\ud800"
    warning = {"event": "warning", "text": bad}
    end = {"event": "end", "status": "failed", "reason": bad, "seconds": 1.0}
    folder = made(tmp_path / "r\x1b[31mun", {**RUN, "name": bad, "model": bad}, warning, end)
    for words in (["status", str(folder)], ["status", str(tmp_path)], ["status", f"{folder}\x1b"]):
        with pytest.raises(SystemExit):
            main(words)
        said = capsys.readouterr()
        shown = said.out + said.err
        assert shown.strip() and not set(shown) & set("\x1b\x9b\u202e\ud800")


def test_a_warning_of_megabytes_is_shortened(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from effcompress.cli import main

    warning = json.dumps({"event": "warning", "text": "x" * 500_000}) + "\n"
    folder = made(tmp_path / "run", RUN)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(warning)
    with pytest.raises(SystemExit):
        main(["status", str(folder)])
    said = capsys.readouterr().out
    assert "warning:" in said and "xxx..." in said and len(said) < 4000
