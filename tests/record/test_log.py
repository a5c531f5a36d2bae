"""The record is exact, finite and can be rewound; silence is broken."""

from __future__ import annotations

import errno
import io
import json
import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from effcompress.errors import RecipeError, RunError
from effcompress.record import events
from effcompress.record.heartbeat import SILENCE, Heartbeat, patience
from effcompress.record.log import Log, NoView, PlainView, make_view
from effcompress.types import Cut


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


STEP = {
    "event": "step",
    "step": 1,
    "tokens": 100,
    "loss": 2.5,
    "domain_loss": {"prose": 2.5},
    "learning_rate": 1e-3,
    "grad_norm": 1.0,
    "params": 1000,
    "tokens_per_second": 50.0,
    "flops": 6e9,
    "seconds": 2.0,
}


def step(number: int, **changes) -> events.Step:
    found = events.typed({**STEP, "step": number, "tokens": number * 100, **changes})
    assert isinstance(found, events.Step)
    return found


def cut(number: int) -> Cut:
    return Cut(
        step=number,
        tokens=number * 100,
        plan={"ffn.0": [3, 4]},
        saliency={"ffn": 1e-7},
        removed={"ffn": 2},
        scores={"ffn.0": [1e-7, 2e-7]},
        params=900,
    )


@pytest.fixture
def log(tmp_path):
    log = Log(tmp_path, view=PlainView(io.StringIO()))
    yield log
    log.close()


def test_events_and_plans_are_on_disk_at_once(log, tmp_path):
    log.event(step(1, loss=np.float32(2.5), tokens=np.int64(100)))
    log.plan(cut(1))
    log.warn("careful")
    assert lines(tmp_path / "metrics.jsonl") == [
        STEP,
        {"event": "warning", "text": "careful"},
    ]
    assert lines(tmp_path / "plans.jsonl") == [
        {
            "step": 1,
            "tokens": 100,
            "plan": {"ffn.0": [3, 4]},
            "saliency": {"ffn": 1e-7},
            "removed": {"ffn": 2},
            "scores": {"ffn.0": [1e-7, 2e-7]},
            "params": 900,
        }
    ]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), np.float32("nan")])
def test_a_number_that_is_not_finite_is_refused_by_name(log, tmp_path, bad):
    with pytest.raises(RunError, match=r"step 7.*'domain_loss\.prose'"):
        log.event(step(7, domain_loss={"prose": bad}))
    assert (tmp_path / "metrics.jsonl").read_text() == ""


def test_what_json_cannot_say_is_a_programming_mistake(log):
    with pytest.raises(TypeError, match="'thing' is a set"):
        log.event(events.Other("note", {"thing": {1}}))
    log.event(step(1))


def test_rewind_gives_the_record_of_an_uninterrupted_run(log, tmp_path):
    log.event(step(1))
    log.plan(cut(1))
    state = log.state()
    before = [(tmp_path / f"{n}.jsonl").read_bytes() for n in ("metrics", "plans")]
    log.event(step(2))
    log.plan(cut(2))
    log.close()
    for name in ("metrics", "plans"):
        with (tmp_path / f"{name}.jsonl").open("ab") as file:
            file.write(b'{"half a li')
    with_view = io.StringIO()
    again = Log(tmp_path, view=PlainView(with_view))
    again.rewind(json.loads(json.dumps(state)))
    assert [(tmp_path / f"{n}.jsonl").read_bytes() for n in ("metrics", "plans")] == before
    again.event(step(2))
    again.close()
    assert [line["step"] for line in lines(tmp_path / "metrics.jsonl")] == [1, 2]


def test_a_half_written_line_is_dropped_when_the_run_goes_on(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"event": "warning", "text": "a"}\n{"event": "st')
    log = Log(tmp_path, view=PlainView(io.StringIO()))
    log.warn("b")
    log.close()
    assert [line["text"] for line in lines(tmp_path / "metrics.jsonl")] == ["a", "b"]


def test_a_record_shorter_than_the_checkpoint_is_an_error(log):
    with pytest.raises(RunError, match="only 0 are left"):
        log.rewind({"metrics": 10, "plans": 0})


def test_heartbeat_within_the_interval(tmp_path):
    out = io.StringIO()
    log = Log(tmp_path, view=PlainView(out), heartbeat=0.1)
    log.phase("prune and train", 1000)
    log.event(step(2))
    time.sleep(0.55)
    log.close()
    beats = [line for line in out.getvalue().splitlines() if line.startswith("[")]
    assert len(beats) >= 4
    for word in ("prune and train", "step 2", "200 of 1k tokens", "50 tokens/s", "loss 2.500"):
        assert word in beats[-1]
    assert "0:16 left" in beats[-1]
    count = len(out.getvalue())
    time.sleep(0.2)
    assert len(out.getvalue()) == count


def test_watchdog_dumps_once_in_a_silence(tmp_path, capsys):
    log = Log(tmp_path, view=PlainView(io.StringIO()), silence=0.15)
    log.phase("evaluate")
    time.sleep(0.6)
    said = capsys.readouterr().err
    assert said.count("Nothing has happened") == 1
    assert "'evaluate'" in said and "test_watchdog_dumps_once" in said
    log.note("awake")
    time.sleep(0.6)
    log.close()
    assert capsys.readouterr().err.count("Nothing has happened") == 1


def test_what_the_watchdog_saw_stays_in_the_folder(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("EFFCOMPRESS_SILENCE", "0.15")
    for phase in ("evaluate", "export"):
        log = Log(tmp_path, view=PlainView(io.StringIO()))
        log.phase(phase)
        time.sleep(0.4)
        log.close()
    kept = (tmp_path / "stacks.txt").read_text()
    first, second = (line for line in kept.splitlines() if "Nothing has happened" in line)
    assert "in phase 'evaluate'" in first and "in phase 'export'" in second
    assert time.strftime("%Y-%m-", time.gmtime()) in first and f"process {os.getpid()}" in first
    assert kept.count("test_what_the_watchdog_saw_stays") == 2
    assert str(tmp_path / "stacks.txt") in capsys.readouterr().err


def test_a_watchdog_without_a_folder_still_speaks(tmp_path, capsys):
    log = Log(tmp_path / "gone", view=PlainView(io.StringIO()), silence=0.15, keep=False)
    (tmp_path / "gone").rmdir()
    log.phase("evaluate")
    time.sleep(0.4)
    log.close()
    said = capsys.readouterr().err
    assert "test_a_watchdog_without_a_folder" in said and "stacks.txt" not in said


def test_the_silence_is_a_number_of_seconds(monkeypatch):
    monkeypatch.delenv("EFFCOMPRESS_SILENCE", raising=False)
    assert patience() == SILENCE == 300
    monkeypatch.setenv("EFFCOMPRESS_SILENCE", "12.5")
    assert patience() == 12.5
    for bad in ("soon", "0", "-3", "nan", "inf"):
        monkeypatch.setenv("EFFCOMPRESS_SILENCE", bad)
        with pytest.raises(RecipeError, match=f"EFFCOMPRESS_SILENCE is '{bad}'"):
            patience()


def test_closing_twice_is_harmless_and_leaves_no_thread(tmp_path):
    log = Log(tmp_path, view=PlainView(io.StringIO()))
    log.note("hello")
    assert "heartbeat" in {t.name for t in threading.enumerate()}
    log.close()
    log.close()
    assert "heartbeat" not in {t.name for t in threading.enumerate()}


def test_no_terminal_means_plain_lines():
    out = io.StringIO()
    assert isinstance(make_view(out), PlainView)
    assert not isinstance(make_view(out, interactive=True), PlainView)
    assert isinstance(make_view(), PlainView)


def test_a_checkpoints_position_is_on_the_disk(tmp_path, monkeypatch):
    """Else a power cut could shorten the record to less than the checkpoint counts on."""
    flushed: list[int] = []
    log = Log(tmp_path, view=NoView())
    log.warn("x")
    monkeypatch.setattr(os, "fsync", flushed.append)
    state = log.state()
    assert len(flushed) == 2 and state["metrics"] == (tmp_path / "metrics.jsonl").stat().st_size
    log.close()


def content(folder):
    return {name: (folder / name).read_bytes() for name in ("metrics.jsonl", "plans.jsonl")}


@pytest.mark.parametrize("damage", ["line", "short", "gone", "other"])
def test_a_damaged_record_is_put_back_from_the_checkpoints_copy(log, tmp_path, damage):
    """As two processes leave it, say, that wrote into it at once."""
    log.event(step(1))
    log.event(step(2))
    log.plan(cut(2))
    state, copies = log.state(), content(tmp_path)
    log.event(step(3))
    log.close()
    path = tmp_path / "metrics.jsonl"
    before = copies["metrics.jsonl"]
    damaged = {"line": b'{ev"' + before[4:], "short": before[:-9], "other": before[::-1]}
    path.unlink() if damage == "gone" else path.write_bytes(damaged[damage])
    again = Log(tmp_path, view=PlainView(io.StringIO()))
    again.rewind(state, copies)
    again.close()
    first, second, warning = events.read(path)
    assert path.read_bytes().startswith(before) and (first.step, second.step) == (1, 2)
    assert "metrics.jsonl" in warning.text and "the checkpoint's copy" in warning.text
    assert (tmp_path / "plans.jsonl").read_bytes() == copies["plans.jsonl"]


def test_without_a_copy_a_damaged_line_is_three_plain_lines(log, tmp_path):
    log.event(step(1))
    log.event(step(2))
    state = log.state()
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"ev"' + path.read_bytes()[5:])
    with pytest.raises(RunError, match=r"metrics\.jsonl:1: not JSON") as refused:
        log.rewind(state)
    assert len(str(refused.value).splitlines()) == 2 and "--resume" in str(refused.value)


@pytest.mark.parametrize("text", ["a\u2028b", "a\x85b", "a\u2029\x0b\x1cb", "a\r\nb", "\x1b[31m"])
def test_a_text_of_any_characters_is_one_line(log, tmp_path, text):
    log.warn(text)
    log.event(step(1))
    again = Log(tmp_path, view=PlainView(io.StringIO()))
    again.rewind(log.state(), content(tmp_path))
    again.close()
    assert [event.event for event in events.read(tmp_path / "metrics.jsonl")] == ["warning", "step"]
    assert events.read(tmp_path / "metrics.jsonl")[0].text == text


def test_half_a_surrogate_pair_does_not_end_the_record(log, tmp_path):
    log.event(events.Warn(text="a\ud800b"))
    log.event(events.Other("note", {"\udcff": 1}))
    assert lines(tmp_path / "metrics.jsonl") == [
        {"event": "warning", "text": "a?b"},
        {"event": "note", "?": 1},
    ]


def test_plain_lines_hold_nothing_that_a_terminal_obeys(tmp_path):
    out = io.StringIO()
    log = Log(tmp_path, view=PlainView(out))
    log.warn("\x1b]0;title\x07\x9b31m\u202e")
    log.close()
    assert out.getvalue() == "warning: \ufffd]0;title\ufffd\ufffd31m\ufffd\n"


class Gone(io.StringIO):
    """The terminal was closed, the pipe's reader ended, or the disk of the log is full."""

    def write(self, _text: str) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    def flush(self) -> None:
        raise BrokenPipeError


@pytest.mark.parametrize("interactive", [False, True])
def test_a_run_outlives_its_terminal(tmp_path, interactive):
    log = Log(tmp_path, view=make_view(Gone(), interactive=interactive))
    log.phase("training", 4096)
    log.event(step(1))
    log.note("a remark")
    log.view.beat()
    log.close()
    assert [e["step"] for e in lines(tmp_path / "metrics.jsonl")] == [1]


def test_the_heartbeat_outlives_the_terminal_too(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.stderr", Gone())
    beats = threading.Event()
    heart = Heartbeat(beats.set, lambda: "x", 0.2, 0.05, tmp_path / "stacks.txt")
    heart.alive()
    assert beats.wait(20)  # the stacks are dumped before
    heart.stop()
    assert (tmp_path / "stacks.txt").exists()


def test_a_process_without_standard_error_shows_nothing(monkeypatch):
    monkeypatch.setattr("sys.stderr", None)
    assert isinstance(make_view(), NoView)
