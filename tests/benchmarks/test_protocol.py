"""A row runs as a command line does, leaves its line, and goes on where it was stopped."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.contract.test_docs_commands import parsed
from tests.runner.toys import events, recipe


def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """An experiment of one row, on a toy recipe and its text."""
    import protocol
    from efficientllm_rows import Row

    path = recipe(tmp_path, schedule="{name: continuous, every: 2, start: 256, groups: 3}")
    monkeypatch.setattr(protocol, "recipe_of", lambda row, size: path)
    text = {name: {"jsonl": str(tmp_path / f"{name}.jsonl")} for name in ("letters", "numbers")}
    rows = {"toy": Row("a", (), "tokens")}
    also = ("evaluate.agreement=true", "save.keep_after=1")
    return protocol.Experiment(rows, text, tmp_path / "r.csv", tmp_path / "runs", also)


def test_a_row_goes_on_where_it_was_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from efficientllm_rows import Job

    made, job = toy(tmp_path, monkeypatch), Job("toy", "100M", 2560, 0, "fp32")
    folder = made.folder_of(job)
    monkeypatch.setenv("EFFCOMPRESS_FAULT", "step:9:kill")
    made.run_all([job])
    assert made.lines() == [] and (folder / "checkpoints").is_dir()
    assert made.command(job)[-1] == "--resume"
    monkeypatch.delenv("EFFCOMPRESS_FAULT")
    made.run_all([job])
    (line,) = made.lines()
    steps = events(folder, "step")
    assert [step["step"] for step in steps] == [*range(1, 21)] and line["trained"] == "2560"
    besides = sum(e.get("flops", 0) for e in events(folder, "cut"))
    assert float(line["flops"]) == sum(s["flops"] for s in steps) + besides
    assert 0 < float(line["agreement"]) < 1 and float(line["divergence"]) > 0
    assert not (folder / "checkpoints").exists()
    made.run_all([job])
    assert len(made.lines()) == 1


def test_tasks_are_asked_of_the_command_line(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import best
    from efficientllm_rows import Job

    monkeypatch.setattr(best, "RUNS", tmp_path)
    monkeypatch.setattr(best, "TASKS", tmp_path / "tasks.csv")
    made, asked = best.tables(corpus), []
    folder = made.folder_of(Job("B", "100M", best.TOKENS, 0, "fp32"))
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")

    def answers(words: list[str], **_: Any) -> Any:
        asked.append(parsed(words[3:]))
        names = words[words.index("--tasks") + 1].split(",")
        score = {"metric": "acc", "value": 0.5, "stderr": 0.03}
        said = {"tasks": {"scores": dict.fromkeys(names, score)}}
        return SimpleNamespace(returncode=0, stdout=json.dumps(said), stderr="")

    monkeypatch.setattr(subprocess, "run", answers)
    best.solve(made, "fp32", "hub", 100)
    best.solve(made, "fp32", "hub", 100)
    assert len(asked) == 1 and asked[0]["limit"] == 100 and asked[0]["task_data"] == "hub"
    lines = best.lines_of(best.TASKS)
    assert [x["task"] for x in lines] == [*best.SEVEN, "lambada_openai"]
    assert {x["stderr"] for x in lines} == {"0.03"}
