"""What people see of a comparison: while it runs, and at its end."""

from __future__ import annotations

import io
import json
import sys
import types
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from effcompress.cli.compare import fitting
from effcompress.cli.progress import RunsProgress, make_progress
from effcompress.errors import RecipeError
from effcompress.record import events
from effcompress.report.comparison.rows import compare
from effcompress.report.comparison.tables import Grid
from tests.report.made_up import failed, method


def job(label: str, seed: int = 0) -> Any:
    return types.SimpleNamespace(label=label, seed=seed)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


JOBS = [job("taylor"), job("taylor", 1), job("random"), job("random", 1)]
STEP = events.Step(step=3, tokens=512, loss=5.25, learning_rate=1e-3, params=9, tokens_per_second=1)
RUN = events.Run(
    name="toy",
    seed=0,
    model="toy",
    device="cpu",
    params=26848,
    target_params=18794,
    total_tokens=2048,
)


def lines(clock: Clock) -> tuple[RunsProgress, io.StringIO]:
    out = io.StringIO()
    return RunsProgress(Console(file=out, width=80), drawn=False, clock=clock), out


def test_time_left_counts_ended_runs_and_parts_of_runs() -> None:
    clock = Clock()
    view, out = lines(clock)
    view.begin(JOBS, JOBS[:1])
    view.started(JOBS[1])
    clock.now = 60
    view.ended(JOBS[1], 60.0, "")
    assert out.getvalue().endswith("[2/4] taylor, seed 1: done after 1:00, about 2:00 left\n")
    view.started(JOBS[2])
    view.event(JOBS[2], RUN)
    clock.now = 75
    view.event(JOBS[2], replace(STEP, tokens=1024))  # half of this run in 15 s
    view.beat()  # a sample of the speed: 1.5 runs in 75 s
    clock.now = 90
    view.beat()
    assert out.getvalue().endswith("1k of 2k tokens, loss 5.250, 0:30, about 1:15 left\n")
    view.event(JOBS[2], replace(STEP, tokens=2048))
    view.ended(JOBS[2], 30.0, "boom")
    view.started(JOBS[3])
    view.ended(JOBS[3], 10.0, "")
    assert out.getvalue().endswith("[4/4] random, seed 1: done after 0:10\n")


def test_plain_lines() -> None:
    clock = Clock()
    view, out = lines(clock)
    view.checking(2)
    view.begin(JOBS, JOBS[:1])
    view.started(JOBS[1])
    view.beat()
    view.event(JOBS[1], RUN)
    clock.now = 21
    view.beat()
    view.event(JOBS[1], STEP)
    view.beat()
    clock.now = 42
    view.beat()
    view.ended(JOBS[1], 42.0, "")
    view.started(JOBS[2])
    view.ended(JOBS[2], 3.0, "it broke\n  here")
    view.close()
    assert [line.partition(", about")[0] for line in out.getvalue().splitlines()] == [
        "checking 2 recipes",
        "4 runs, 1 of them done before",
        "[1/4] taylor, seed 1: started",
        "[1/4] taylor, seed 1: 26.8k -> 18.8k parameters, 0:21",
        "[1/4] taylor, seed 1: 512 of 2k tokens, loss 5.250, 0:42",
        "[2/4] taylor, seed 1: done after 0:42",
        "[2/4] random, seed 0: started",
        "[3/4] random, seed 0: failed after 0:03: it broke here",
    ]


def test_folders_alone_say_nothing() -> None:
    view, out = lines(Clock())
    view.checking(0)
    view.begin([], [])
    view.beat()
    view.close()
    assert out.getvalue() == ""


def test_the_bars_stand_in_80_columns() -> None:
    clock = Clock()
    console = Console(file=io.StringIO(), width=80, force_terminal=True, color_system=None)
    view = RunsProgress(console, drawn=True, clock=clock)
    view.begin(JOBS, [])
    long = job("a_method_with_a_rather_long_name_indeed")
    for one in (*JOBS[:2], long):
        view.started(one)
    for event in (RUN, STEP):
        view.event(JOBS[0], event)
        view.event(long, event)
    clock.now = 9
    view.ended(JOBS[1], 9.0, "a reason")
    view.beat()
    drawn = Console(file=io.StringIO(), width=80, color_system=None)
    drawn.print(view.bars.get_renderable())
    view.close()
    rows = drawn.file.getvalue().splitlines()
    assert len(rows) == 3 and all(len(row) <= 80 for row in rows), rows
    assert rows[0].startswith("1 of 4 runs") and "1 failed" in rows[0]
    assert "taylor, seed 0" in rows[1] and "512 of 2k tokens, loss 5.250" in rows[1]
    assert "0:00:09" in rows[1], "the time it took so far"
    assert rows[2].startswith("a_method") and "512 of 2k tokens, loss 5.250" in rows[2]
    assert "taylor, seed 1: failed after 0:09: a reason" in console.file.getvalue()


def test_a_file_gets_plain_lines(monkeypatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("TERM", "xterm")
    for stream, how, drawn in (
        (io.StringIO(), {}, False),
        (Terminal(), {}, True),
        (Terminal(), {"plain": True}, False),
    ):
        view = make_progress(stream=stream, **how)
        view.checking(1)
        assert "checking 1 recipe" in stream.getvalue()
        assert view.bars.disable is not drawn


def test_columns_that_do_not_fit_are_named() -> None:
    grid = Grid(("method", "params", "time"), (("taylor_second", "113M", "5 min"),))
    assert fitting(grid, 80) == (grid, [])
    cut, left = fitting(grid, 22)
    assert (cut.header, cut.rows, left) == (
        ("method", "params"),
        (("taylor_second", "113M"),),
        ["time"],
    )
    assert fitting(grid, 5)[1] == ["params", "time"]


@pytest.fixture
def comparing(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A stand-in for the runner: keeps how it was called, answers with ``found``."""
    methods = [
        method("taylor", 1.62),
        method("a_method_with_a_rather_long_name", 1.615),
        method("other", 1.2, trained=9),
        failed("broken", "RuntimeError: no [red]way[/red]"),
    ]
    answer: dict[str, Any] = {"found": compare("x", methods)}

    def stand_in(targets: list[Path], **how: Any) -> Any:
        answer["called"] = {"targets": targets, **how}
        if isinstance(answer["found"], BaseException):
            raise answer["found"]
        return Path("out/comparison.html"), answer["found"]

    # A whole module in its place: the real one would register the built-in plugins.
    fake = types.ModuleType("effcompress.compare.compare")
    fake.compare = stand_in  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, fake.__name__, fake)
    monkeypatch.setenv("COLUMNS", "80")
    return answer


def test_the_table_fits_80_columns(effcompress, comparing) -> None:
    code, out, _ = effcompress("compare", "a.yaml", "runs/b")
    assert code == 0
    assert max(len(line) for line in out.splitlines()) <= 80
    for word in (
        "SmolLM2-135M, hash of the weights cccccccc",
        "a_method_with_a_rather_long_name (best)",
        "taylor (tied)",
        "other [a]",
        "[a] Was trained on 9 tokens instead of 1,000,000.",
        "broken: RuntimeError: no [red]way[/red]",
        "In the files also:",
        "page  out/comparison.html",
    ):
        assert word in " ".join(out.split("\n")), word


def test_options_reach_the_runner(effcompress, comparing) -> None:
    words = ("--seeds", "2, 0,2", "--set", "train.tokens=9", "--jobs", "0", "--output", "out")
    code, out, _ = effcompress("compare", "a.yaml", "b.yaml", *words, "--offline", "--json")
    assert code == 0 and json.loads(out)["rows"][0]["method"] == "dense"
    called = comparing["called"]
    assert called.pop("progress") is not None and called.pop("stopping") is not None
    assert called == {
        "targets": [Path("a.yaml"), Path("b.yaml")],
        "seeds": [2, 0],
        "overrides": ["train.tokens=9"],
        "output": Path("out"),
        "at_once": 0,
        "offline": True,
    }


@pytest.mark.parametrize("seeds", ["a", "0,-1", "1.5", "4294967296"])
def test_seeds_that_are_none(effcompress, comparing, seeds: str) -> None:
    code, _, err = effcompress("compare", "a.yaml", "--seeds", seeds)
    assert code == 2 and "--seeds" in err and "0,1,2" in err
    assert "called" not in comparing


@pytest.mark.parametrize("jobs", ["two", "-1", "1.5", ""])
def test_jobs_that_are_no_number(effcompress, comparing, jobs: str) -> None:
    code, _, err = effcompress("compare", "a.yaml", "--jobs", jobs)
    assert code == 2 and "--jobs" in err
    assert "called" not in comparing


def test_exit_codes(effcompress, comparing) -> None:
    comparing["found"] = compare("x", [failed("a", "no"), failed("b", "no")])
    code, out, _ = effcompress("compare", "a.yaml", "b.yaml")
    assert code == 1 and "a: no" in out
    comparing["found"] = RecipeError("changed", where="out/runs/a_0")
    assert effcompress("compare", "a.yaml")[0] == 2
