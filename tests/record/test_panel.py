"""What people see while they wait."""

from __future__ import annotations

import importlib.util
import io
from pathlib import Path

import pytest
from rich.console import Console

from effcompress.record.events import Event, typed
from effcompress.record.log import PlainView
from effcompress.record.panel import LiveView, Status, sparkline
from effcompress.record.readable import clock_time, count

_spec = importlib.util.spec_from_file_location(
    "synthetic", Path(__file__).parents[1] / "report" / "synthetic.py"
)
synthetic = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(synthetic)


STEP = {"event": "step", "step": 1, "tokens": 200, "loss": 1.0, "learning_rate": 1e-3,
        "params": 5, "tokens_per_second": 1.0}  # fmt: skip
CUT = {"event": "cut", "step": 1, "tokens": 9, "params": 90, "removed": {"ffn": 1},
       "share_removed": {}, "saliency": {}}  # fmt: skip


def step(**changes: object) -> Event:
    return typed({**STEP, **changes})


def cut(**changes: object) -> Event:
    return typed({**CUT, **changes})


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def panel(events: list[dict], width: int = 80) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    view = LiveView(io.StringIO(), console=console, clock=Clock())
    view.status.phase = "prune and train"
    view.restore(map(typed, events))
    console.print(view.render())
    return console.file.getvalue()


def test_the_panel_says_it_all_in_80_columns():
    events = synthetic.full_run().metrics[:280]
    text = panel(events)
    assert all(len(line) <= 80 for line in text.splitlines())
    assert "…" not in text
    for word in ("quickstart", "prune and train", "125M -> 119.5M", "tokens/s", "of 1.2M"):
        assert word in text
    for word in ("heads 7.8%", "FFN 24 at step 134", "1.9e-07", "left", "elapsed"):
        assert word in text


@pytest.mark.parametrize("events", [[], [synthetic.run_event(target_params=None)]])
def test_the_panel_stands_before_anything_happened(events):
    assert "prune and train" in panel(events)


def test_the_live_view_runs_and_leaves_results_standing():
    console = Console(file=io.StringIO(), width=80, force_terminal=True, color_system=None)
    view = LiveView(io.StringIO(), console=console)
    view.phase("everything", 1_200_000)
    for event in synthetic.full_run(20, 10).metrics:
        view.event(typed(event))
    view.note("nearly there")
    view.beat()
    view.close()
    view.close()
    text = console.file.getvalue()
    for word in ("perplexity before: prose 21.37, code 9.82", "warning: domain <code>", "success"):
        assert word in text


def test_plain_lines_are_few_and_readable():
    clock, out = Clock(), io.StringIO()
    view = PlainView(out, clock=clock)
    for event in synthetic.full_run().metrics:
        if event.get("step") == 1 and event["event"] == "step":
            view.phase("prune and train", 1_200_000)
        view.event(typed(event))
        clock.now += 0.5
    view.close()
    lines = out.getvalue().splitlines()
    assert lines[0].startswith("quickstart: SmolLM-135M, 134.5M -> 119.5M parameters")
    assert "== prune and train" in lines
    cuts = [line for line in lines if line.startswith("cut ")]
    assert 5 < len(cuts) < 0.5 * 512 / 10 + 5
    taken = sum(
        int(part.split()[-1])
        for line in cuts
        for part in line.split("|")[0].removeprefix("cut ").split(",")
        if "FFN" in part
    )
    events = [e for e in synthetic.full_run().metrics if e["event"] == "cut"]
    assert taken == sum(e["removed"].get("ffn", 0) for e in events), "a cut went untold"
    assert lines[-1].startswith("success after 12:22")


def test_an_end_before_anything_was_measured_is_told():
    out = io.StringIO()
    view = PlainView(out)
    view.event(typed({"event": "end", "status": "failed", "seconds": 3.0, "reason": "no text"}))
    assert out.getvalue() == "failed after 0:03\n"  # the reason is the error, printed below


def test_time_left_comes_from_the_recent_rate():
    status = Status(Clock())
    status.update(typed(synthetic.run_event(total_tokens=1000)))
    assert status.eta is None
    for rate in (100.0, 50.0):
        status.update(step(tokens_per_second=rate))
    assert status.rate == pytest.approx(66.67, abs=0.01)
    assert status.eta == pytest.approx(12.0, abs=0.01)
    status.update(step(tokens=1000))
    status.enter("proving the export in a fresh process", None)
    assert status.eta is None and "left" not in status.line(), "not 0:00: it is not over"


def test_a_cut_comes_after_the_step_of_its_number():
    status = Status(Clock())
    status.update(step(step=4, params=100))
    status.update(cut(step=4))
    assert status.params == 90
    status.update(step(step=5, params=89))
    assert status.params == 89


def test_a_phase_of_so_many_parts_says_what_is_left():
    clock = Clock()
    out, console = io.StringIO(), Console(file=io.StringIO(), width=80, color_system=None)
    plain, live = PlainView(out, clock=clock), LiveView(io.StringIO(), console=console, clock=clock)
    for view in (plain, live):
        view.event(typed(synthetic.run_event(target_params=None, total_tokens=0)))
    clock.now = 5.0
    plain.phase("making zeros")
    live.phase("making zeros")
    clock.now = 25.0
    for view in (plain, live):
        view.progress("block", 10, 30)
    plain.beat()
    assert out.getvalue().splitlines()[-1] == "[0:25] making zeros | block 10 of 30, 0:40 left"
    console.print(live.render())
    live.close()
    text = console.file.getvalue()
    assert "10 of 30" in text and "0:40 left" in text and "making zeros" in text
    plain.progress("comparison", 12, None)
    plain.beat()
    assert out.getvalue().splitlines()[-1] == "[0:25] making zeros | comparison 12"
    plain.phase("training", 100)
    assert plain._status.progress is None


def test_a_phase_of_unknown_length_has_a_count_alone() -> None:
    console = Console(file=io.StringIO(), width=80, color_system=None)
    live = LiveView(io.StringIO(), console=console, clock=Clock())
    live.event(typed(synthetic.run_event(target_params=None, total_tokens=0)))
    live.phase("choosing")
    live.progress("comparison", 12, None)
    console.print(live.render())
    live.close()
    text = console.file.getvalue()
    assert "comparison" in text and "12" in text and "left" not in text and "of 12" not in text


def test_a_phase_that_was_forecast_says_what_is_left():
    clock = Clock()
    stream = io.StringIO()
    view = PlainView(stream, clock=clock)
    view.phase("proving the export")
    clock.now = 3.0
    view.expect(30.0)
    clock.now = 13.0
    view.beat()
    assert "proving the export: about 0:30 left" in stream.getvalue()
    assert stream.getvalue().endswith("0:20 left\n")
    clock.now = 40.0
    view.beat()
    view.phase("evaluating")
    assert "left" not in stream.getvalue().partition("0:20 left\n")[2]


def test_zeros_are_told_apart_from_what_is_gone():
    out = io.StringIO()
    view = PlainView(out)
    made = {"event": "sparsify", "method": "wanda", "sparsity": 0.5, "pattern": "2:4",
            "weights": 1000, "zeroed": 500, "params": 2000, "seconds": 1.0}  # fmt: skip
    view.event(typed(made))
    end = {"event": "end", "status": "success", "seconds": 3, "params": 2000, "zeroed": 500}
    view.event(typed(end))
    assert out.getvalue().splitlines() == [
        "wanda 2:4: parameters removed: 0, weights zeroed: 500 (50.0 % of linear layers, "
        "25.0 % of all)",
        "success after 0:03, 2k parameters, 500 of them zero",
    ]


def test_numbers_in_few_characters():
    said = [count(n) for n in (0, 999, 1000, 999_960, 134_515_008, 2e9, 3e12)]
    assert said == ["0", "999", "1k", "1M", "134.5M", "2B", "3T"]
    assert [clock_time(s) for s in (5, 65, 7389)] == ["0:05", "1:05", "2:03:09"]
    assert sparkline([1.0], 5) == "" and sparkline([1, 2, 3, 4], 4)[-1] == "█"


def test_what_is_measured_between_two_steps_shows_until_the_next_event():
    clock = Clock()
    status = Status(clock)
    status.enter("pruning and training", 1000)
    clock.now = 100.0
    status.update(step(tokens=10))
    status.advance("calibration sequence", 0, 8)
    clock.now = 106.0
    status.advance("calibration sequence", 2, 8)
    assert status.line() == (
        "[1:46] pruning and training | calibration sequence 2 of 8, 0:18 left"
    ), "six seconds for two, not all of the phase"
    status.update(cut(removed={"ffn": 2}, params=9))
    assert "step 1" in status.line() and "sequence" not in status.line()
