"""Checkpoints that are written while training goes on."""

from __future__ import annotations

import json
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from effcompress import fault, load_recipe, run, train
from effcompress.checkpoint import newest
from effcompress.errors import RunError
from effcompress.estimate.forecast import plan
from effcompress.runner import checkpoints as keep
from effcompress.runner import run as story
from tests.runner.toys import events, recipe

SETS = ["save.background=true", "save.every=2"]


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Writing that waits until it may."""
    may, real = threading.Event(), keep.checkpoint.begin

    def begin(*given: Any) -> Any:
        writing = real(*given)

        def written() -> Any:
            if threading.current_thread() is not threading.main_thread():
                assert may.wait(60)
            return writing.written()

        return keep.replace(writing, written=written)

    monkeypatch.setattr(keep.checkpoint, "begin", begin)
    return may


def test_training_goes_on_meanwhile(
    tmp_path: Path, slow: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(story, "export_and_prove", lambda *_: None)
    _at_step(monkeypatch, 4, slow.set)
    run(load_recipe(recipe(tmp_path), SETS), output=tmp_path / "run")
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    order = [e["event"] for e in map(json.loads, lines) if e["event"] in ("step", "checkpoint")]
    assert order.index("checkpoint") > 3, "the first one was waited for"
    steps = [e["step"] for e in events(tmp_path / "run", "checkpoint")]
    assert steps == sorted(steps) and steps[0] == 2
    saved = newest(tmp_path / "run" / "checkpoints", _no_warning)
    assert saved is not None and saved.values["tokens"] == 2560


def test_a_run_that_fails_leaves_the_one_under_way(
    tmp_path: Path, slow: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails() -> None:
        slow.set()
        raise RunError("on purpose")

    _at_step(monkeypatch, 4, fails)
    with pytest.raises(RunError, match="on purpose"):
        run(load_recipe(recipe(tmp_path), SETS), output=tmp_path / "run")
    saved = newest(tmp_path / "run" / "checkpoints", _no_warning)
    assert saved is not None and saved.values["step"] == 2


def test_what_cannot_be_written_ends_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EFFCOMPRESS_FAULT", "save.tensors:2:disk_full")
    monkeypatch.setattr(fault, "_seen", Counter())
    path = recipe(tmp_path)
    with pytest.raises(RunError, match=r"checkpoint of step 4 cannot be written.*No space"):
        run(load_recipe(path, SETS), output=tmp_path / "run")
    assert [p.name for p in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-00000002"]
    monkeypatch.delenv("EFFCOMPRESS_FAULT")
    run(load_recipe(path, SETS[1:]), output=tmp_path / "run", resume=True)
    assert events(tmp_path / "run", "end")[-1]["status"] == "success"


def test_the_copy_is_in_the_plan(tmp_path: Path) -> None:
    path = recipe(tmp_path)
    plain, aside = (plan(load_recipe(path, s)).data["memory_bytes"] for s in ([], SETS))
    for phase in ("backward", "update", "cut", "checkpoint"):
        held = plain[phase]
        wanted = held["weights"] + held["moments"] + held["grams"] + held["saliency"]
        assert aside[phase]["saving"] == wanted > 0, phase
    assert aside["loading"]["saving"] == aside["evaluation"]["saving"] == 0


def _at_step(monkeypatch: pytest.MonkeyPatch, step: int, act: Any) -> None:
    real, calls = train.update, [0]

    def update(*given: Any) -> float:
        calls[0] += 1
        if calls[0] == step:
            act()
        return real(*given)

    monkeypatch.setattr(train, "update", update)


def _no_warning(text: str) -> None:
    raise AssertionError(text)


def test_a_checkpoint_holds_every_counter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a resumed run goes on counting: left out of a checkpoint, it would begin at zero."""
    monkeypatch.setattr(story, "export_and_prove", lambda *_: None)
    out = tmp_path / "run"
    run(load_recipe(recipe(tmp_path), ["save.every=2"]), output=out)
    saved = newest(out / "checkpoints", _no_warning)
    assert saved is not None
    values, cuts = saved.values, events(out, "cut")
    assert values["groups_cut"] == sum(sum(cut["removed"].values()) for cut in cuts) > 0
    assert values["removed"] == {
        kind: sum(cut["removed"].get(kind, 0) for cut in cuts) for kind in values["removed"]
    }
    assert (values["left_out"], values["sparse"]) == (0, [])
    assert values["target_reached"] in (True, False) and values["since_commit"] == 0
    assert values["step"] == events(out, "step")[-1]["step"] and values["seconds"] > 0


def test_other_text_is_refused_on_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, out = recipe(tmp_path), tmp_path / "run"
    with monkeypatch.context() as patch:
        _at_step(patch, 6, _fails)
        with pytest.raises(RunError, match="gone wrong"):
            run(load_recipe(path, ["save.every=2"]), output=out)
    letters = tmp_path / "letters.jsonl"
    letters.write_text(letters.read_text().replace("alpha", "omega"))
    with pytest.raises(RunError, match="the training text is not the one this run began with"):
        run(load_recipe(path, ["save.every=2"]), output=out, resume=True)


def _fails() -> None:
    raise RunError("gone wrong")
