"""Schedules in whole toy runs: the curve in the record obeys the law to the step."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from effcompress import load_recipe, run
from effcompress.errors import EffcompressError, RunError
from effcompress.estimate.check import check
from tests.runner.toys import events, recipe, repeatable

PER_STEP = 4 * 32
HEADS = 8 * 2
"""Columns of the output projection that a KV group of the toy owns: two query heads of 8."""


def cuts(tmp_path: Path, schedule: str, extra: str = "", **changes: object) -> list[dict]:
    path = recipe(tmp_path, extra, schedule=schedule, **changes)
    run(load_recipe(path), output=tmp_path / "out")
    assert events(tmp_path / "out", "end")[0]["status"] == "success"
    return events(tmp_path / "out", "cut")


def test_cost_aware_pauses(tmp_path: Path) -> None:
    found = cuts(
        tmp_path,
        "{name: cost_aware, every: 2, start: 256}",
        "",
        tokens=140 * PER_STEP,
        kv=2,
    )
    spent = 0
    for cut in found:
        assert cut["step"] == 256 // PER_STEP + 2 * spent, cut
        spent += sum(
            {"attention": HEADS, "ffn": 1, "hidden": 2}[kind] * n
            for kind, n in cut["removed"].items()
        )
    kinds = [kind for cut in found for kind in cut["removed"]]
    assert set(kinds) == {"attention", "ffn", "hidden"} and len(kinds) == len(found)


@pytest.mark.parametrize("name", ["constant_rate", "cubic"])
def test_sizes_follow_the_curve(tmp_path: Path, name: str) -> None:
    found = cuts(tmp_path, f"{{name: {name}, every: 3, start: 256, end: 2048}}", tokens=2560)
    (begin,) = events(tmp_path / "out", "run")
    first, last = begin["params"], begin["target_params"]
    sizes = [first, *(cut["params"] for cut in found)]
    largest = max(a - b for a, b in itertools.pairwise(sizes))
    for cut in found:
        share = min(1.0, (cut["tokens"] - 256) / (2048 - 256))
        left = 1 - share if name == "constant_rate" else (1 - share) ** 3
        asked = last + (first - last) * left
        assert cut["params"] <= max(asked, last * 1.005)
        assert cut["params"] > asked - largest  # no more than one mini-group beyond
        assert cut["step"] % 3 == 0 or cut["tokens"] == 2048
    assert found[-1]["tokens"] <= 2048
    assert found[-1]["params"] == pytest.approx(last, rel=0.005)


def test_stages(tmp_path: Path) -> None:
    path = recipe(tmp_path, schedule="{name: continuous, groups: 2}", tokens=1)
    text = path.read_text().replace(
        "  tokens: 1\n", "  stages: {warmup: 512, pruning: 1024, continued: 640}\n"
    )
    path.write_text(text)
    run(load_recipe(path), output=tmp_path / "out")
    out = tmp_path / "out"
    told = [(e["name"], e["tokens"]) for e in events(out, "stage")]
    assert told == [("warmup", 0), ("pruning", 512), ("continued", 1536)]
    found = events(out, "cut")
    assert min(c["tokens"] for c in found) == 512
    assert max(c["tokens"] for c in found) == 1536  # the rest, at once
    assert any("pruning stage ends" in e["text"] for e in events(out, "warning"))
    assert events(out, "step")[-1]["tokens"] == 512 + 1024 + 640
    assert found[-1]["params"] == pytest.approx(events(out, "run")[0]["target_params"], rel=0.005)


STAGES = [
    "train.tokens=null",
    "train.stages={warmup: 512, pruning: 1280, continued: 512}",
    "prune.schedule={name: constant_rate}",
    "prune.space=[{name: attention, until: 20%}, {name: ffn, finish_on: 8, scope: per_layer}, "
    "{name: hidden, finish_on: 4, after: 10%}]",
    "save.every=3",
]


def test_resume_in_every_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Broken off once before, twice while and once after pruning: the same plan, the same record,
    the same weights; and the widths end on their multiples.
    """
    from effcompress.runner import run as story

    loaded = load_recipe(recipe(tmp_path, selector="least_salient"), STAGES)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    run(loaded, output=whole)
    real, breaks = story.train_step, [16, 11, 7, 3]

    def breaks_off(state, *rest):
        if breaks and state.step == breaks[-1]:
            breaks.pop()
            raise RunError("interrupted")
        return real(state, *rest)

    monkeypatch.setattr(story, "train_step", breaks_off)
    for _ in range(4):
        with pytest.raises(RunError, match="interrupted"):
            run(loaded, output=broken, resume=broken.exists())
    run(loaded, output=broken, resume=True)
    for name in ("model.safetensors", "plans.jsonl", "config.json"):
        assert (broken / name).read_bytes() == (whole / name).read_bytes(), name
    for kind in ("stage", "cut", "warning"):
        assert repeatable(events(broken, kind)) == repeatable(events(whole, kind)), kind
    assert [e["tokens"] for e in events(whole, "stage")] == [0, 512, 1792]
    cut = events(whole, "cut")
    assert min(c["tokens"] for c in cut) > 512 and max(c["tokens"] for c in cut) <= 1792
    end, begin = events(whole, "end")[0], events(whole, "run")[0]
    assert end["params"] == pytest.approx(begin["target_params"], rel=0.005)
    assert all(end["widths"][f"ffn.{i}"] % 8 == 0 for i in range(2))
    assert end["widths"]["hidden"] % 4 == 0


def test_kinds_wait_inside_one_event(tmp_path: Path) -> None:
    """Everything at once, and still the stream only goes when a tenth is gone."""
    sets = ["prune.space=[{name: ffn, until: 10%}, {name: hidden, after: 10%}]"]
    path = recipe(tmp_path, schedule="{name: once, at: 256}", tokens=512)
    run(load_recipe(path, sets), output=tmp_path / "out")
    (cut,), (begin,) = events(tmp_path / "out", "cut"), events(tmp_path / "out", "run")
    one = 2 * 3 * 32 / begin["params"]  # an FFN channel of both layers
    gone = cut["removed"]["ffn"] * one
    assert 0.1 <= gone < 0.1 + one and cut["removed"]["hidden"] > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("prune.schedule=once", "measured nothing yet"),
        ("prune.schedule={name: cubic, end: 512}", "ends at 512 tokens and starts at 512"),
        ("prune.schedule={name: continuous, start: 2k}", "the pruning stage ends at 1,792"),
        ("prune.schedule={name: continuous, every: 9}", "too few mini-groups within the stage"),
        ("prune.space.0.after=20%", "is not below until"),
        ("train.tokens=2k", "exactly one of tokens, stages"),
        ("train.stages=null", "exactly one of tokens, stages"),
    ],
)
def test_what_cannot_be_meant_is_refused(tmp_path: Path, change: str, message: str) -> None:
    warm = "train.stages.warmup=0" if "once" in change else "seed=0"
    with pytest.raises(EffcompressError, match=message) as error:
        check(load_recipe(recipe(tmp_path), [*STAGES, warm, change]))
    assert error.value.fix and len(str(error.value).splitlines()) <= 3
