"""Schedules in whole toy runs: the curve in the record obeys the law to the step."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from effcompress import load_recipe, run
from tests.runner.toys import events, recipe

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
