"""The lines of a record stay byte for byte, and lines of earlier and later versions are read.

``recorded/`` holds lines of toy runs of every kind, written before events had classes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import pytest

from effcompress.errors import RunError
from effcompress.record import events
from effcompress.record.events import Event, Other, Unreadable, line, parse, plan_line, typed

RECORDED = Path(__file__).parent / "recorded"
LINES = (RECORDED / "metrics.jsonl").read_text().splitlines()
MINIMAL = [
    {"event": "run", "name": "a", "seed": 0, "model": "m", "params": 9, "device": "cpu"},
    {"event": "step", "step": 3, "tokens": 9, "loss": 2.0, "learning_rate": 0.1, "params": 9,
     "tokens_per_second": 5.0},
    {"event": "cut", "step": 3, "tokens": 9, "params": 8, "removed": {"ffn": 1},
     "share_removed": {"ffn": 0.1}, "saliency": {"ffn": 0.2}},
    {"event": "commit", "max_logit_difference": 0.0},
    {"event": "evaluation", "when": "before", "params": 9,
     "domains": {"a": {"perplexity": 2.0, "loss": 0.7, "tokens": 8, "sequences": 1}}},
    {"event": "export", "container": "llama", "why": "", "parameters": 9, "bytes": 36},
    {"event": "proof", "max_logit_difference": 0.0, "tokens_equal": True, "cache_equal": True},
    {"event": "end", "status": "failed", "seconds": 1.0},
]  # fmt: skip
"""What records of the first version hold."""


@pytest.mark.parametrize("text", LINES, ids=lambda text: json.loads(text)["event"])
def test_a_line_is_written_as_it_was_read(text: str) -> None:
    event = parse(text)
    assert not isinstance(event, Other)
    assert line(event) == text


def test_all_events_are_among_the_recorded() -> None:
    kinds = {parse(text).event for text in LINES}
    assert kinds == {kind.event for kind in get_args(Event) if kind is not Other}


def test_a_plan_is_written_as_it_was_read() -> None:
    path = RECORDED / "plans.jsonl"
    cuts = events.read_plans(path)
    assert len(cuts) == 2
    assert [plan_line(cut) for cut in cuts] == path.read_text().splitlines()


@pytest.mark.parametrize("values", MINIMAL, ids=lambda values: values["event"])
def test_records_of_earlier_versions_are_read(values: dict[str, Any]) -> None:
    event = typed(values)
    assert not isinstance(event, Other)
    again = json.loads(line(event))
    assert {key: again[key] for key in values if key != "domains"} == {
        key: value for key, value in values.items() if key != "domains"
    }
    for key in values:  # all of these are needed
        if key not in ("event", "max_logit_difference") or values["event"] == "proof":
            less = {k: v for k, v in values.items() if k != key or k == "event"}
            if less != values:
                with pytest.raises(Unreadable, match=f"'{values['event']}' without '{key}'"):
                    typed(less)


def test_nested_values_are_typed() -> None:
    found = [parse(text) for text in LINES]
    (run, *_), (sparse,) = ([e for e in found if isinstance(e, kind)] for kind in
                            (events.Run, events.Sparsify))  # fmt: skip
    assert isinstance(run, events.Run) and isinstance(sparse, events.Sparsify)
    assert run.data["numbers"].share == pytest.approx(2 / 3)
    assert sparse.layers[1].layer == 1 and sum(row.zeroed for row in sparse.layers) == sparse.zeroed
    (solved,) = [e.tasks for e in found if isinstance(e, events.Evaluation) and e.tasks]
    score = solved.scores["hellaswag"]
    assert score.metric == "acc_norm" and score.metrics["acc_norm"] == score.value
    assert solved.mean is not None and len(solved.mean.tasks) == 7
    (known,) = [e for e in found if isinstance(e, events.Evaluation) and e.known]
    assert known.when == "before" and known.domains["letters"].loss > 0


def test_fields_that_are_not_known_leave_no_key() -> None:
    step = {**MINIMAL[1], "domain_loss": {}}
    assert "objective" not in json.loads(line(typed(step)))
    assert json.loads(line(typed({**step, "objective": 3.0})))["objective"] == 3.0
    assert [*json.loads(line(events.End(status="success", seconds=1.0, zeroed=0)))] == [
        "event", "status", "seconds", "zeroed",
    ]  # fmt: skip
    run = json.loads(line(typed(MINIMAL[0])))
    assert run["target_params"] is None, "written as null, which is not the same as no key"


def test_an_event_of_a_later_version_is_kept_as_it_is() -> None:
    text = '{"event": "rotation", "step": 3, "angles": [0.5, {"a": null}]}'
    found = parse(text)
    assert found == Other("rotation", {"step": 3, "angles": [0.5, {"a": None}]})
    assert line(found) == text
    more = parse('{"event": "warning", "text": "a", "colour": "red"}')
    assert more == events.Warn(text="a"), "keys of later versions are passed over"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"event": "step"}', r"metrics\.jsonl:1: .*'step' without 'step'"),
        ('["event"]', r"metrics\.jsonl:1: .*a line is an object"),
        ('{"event": "evaluation", "when": "after", "params": 1, "domains": 3}', "'evaluation'"),
        ('{"event" "step"}', r"metrics\.jsonl:1: not JSON"),
    ],
)
def test_a_line_that_cannot_be_read_is_named(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(text + "\n")
    with pytest.raises(RunError, match=said):
        events.read(path)


def test_only_a_last_line_may_be_half_there(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(LINES[0] + '\n{"event": "st')
    assert [event.event for event in events.read(path)] == ["run"]
    assert events.read(tmp_path / "none.jsonl") == []


def test_every_event_of_a_step_says_which() -> None:
    for text in LINES:
        assert events.step_of(parse(text)) == json.loads(text).get("step")
