"""Tasks in the page and in the card."""

from __future__ import annotations

import copy
from typing import Any

from effcompress.record.events import Evaluation, Tasks, typed
from effcompress.record.sentences import sentence
from effcompress.report.card import card
from effcompress.report.page import write
from effcompress.report.words import Row, task_rows
from tests.report import synthetic


def score(value: float, stderr: float | None, metric: str = "acc") -> dict[str, Any]:
    return {"value": value, "stderr": stderr, "metric": metric, "examples": 20}


def tasks() -> dict[str, Any]:
    return {
        "scores": {"boolq": score(0.5, 0.1), "hella<swag>": score(0.25, None, "acc_norm")},
        "mean": {"value": 0.375, "stderr": None, "of": "2 tasks", "tasks": ["boolq"]},
        "protocol": {"harness": "lm-eval 9", "limit": 20, "chat_template": None},
    }


def worse() -> dict[str, Any]:
    found = copy.deepcopy(tasks())
    found["scores"]["boolq"]["value"] = 0.4
    found["mean"]["value"] = 0.325
    return found


def run(before: Any, after: Any) -> synthetic.Writer:
    made = synthetic.full_run(10, 5)
    for when, found in (("before", before), ("after", after)):
        event = next(e for e in made.metrics if e.get("when") == when)
        event["tasks"] = found
    return made


def read(found: Any) -> Tasks | None:
    event = {"event": "evaluation", "when": "after", "params": 9, "domains": {}, "tasks": found}
    made = typed(event)
    assert isinstance(made, Evaluation)
    return made.tasks


def test_rows_by_hand() -> None:
    old, new = read(tasks()), read(worse())
    assert task_rows(old, new) == [
        Row("mean of 2 tasks", "37.5", "32.5", "\u22125.0"),
        Row("boolq (acc)", "50.0 \u00b1 10.0", "40.0 \u00b1 10.0", "\u221210.0"),
        Row("hella<swag> (acc_norm)", "25.0", "25.0", "+0.0"),
    ]
    assert task_rows(old, None)[1] == Row("boolq (acc)", "50.0 \u00b1 10.0", "", "")
    assert read(None) is None and task_rows(None, None) == []


def test_page_and_card_show_them(tmp_path) -> None:
    folder = synthetic.save(tmp_path, run(tasks(), worse()))
    page, text = write(folder).read_text("utf-8"), card(folder)
    assert "hella&lt;swag&gt;" in page and "<swag>" not in page
    assert "Right answers (mean of 2 tasks): 37.5 \u2192 32.5" in text
    assert "| right answers in %, boolq (acc) | 50.0 \u00b1 10.0 | 40.0 \u00b1 10.0 |" in text
    for said in (page, text):
        assert "the first 20 examples of each" in said and "chat template: none" in said


def test_what_was_measured_once_is_not_compared(tmp_path) -> None:
    folder = synthetic.save(tmp_path, run(tasks(), None))
    assert "measured once" in write(folder).read_text("utf-8")
    assert "Right answers" not in card(folder).split("## What it is")[0]


def test_other_limits_are_other_protocols(tmp_path) -> None:
    after = worse()
    after["protocol"]["limit"] = 50
    folder = synthetic.save(tmp_path, run(tasks(), after))
    assert "do not compare" in write(folder).read_text("utf-8")


def test_the_line_while_it_runs() -> None:
    event = {"event": "evaluation", "when": "after", "params": 9, "domains": {}, "tasks": tasks()}
    assert "37.5% right, mean of 2 tasks" in (sentence(typed(event)) or "")
