"""From the record of a run to its facts, whatever the record lacks."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from effcompress.report.comparison.facts import Facts, Tokens, read

_spec = importlib.util.spec_from_file_location("synthetic", Path(__file__).parent / "synthetic.py")
synthetic = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(synthetic)


def saved(folder: Path, *more: dict[str, Any], **options: Any) -> Path:
    """A made-up run of twenty steps; ``more`` events come before its end."""
    run = synthetic.full_run(20, 10, **options)
    run.metrics[-1:-1] = more
    return synthetic.save(folder, run)


def facts(folder: Path) -> Facts:
    found = read(folder, seed=0, shown="runs/x")
    assert found.done and found.facts is not None, found.reason
    return found.facts


SPARSIFY = {
    "event": "sparsify", "method": "wanda", "sparsity": 0.5, "pattern": None, "weights": 18,
    "zeroed": 4, "seconds": 1.0, "memory_bytes": None, "layers": [],
}  # fmt: skip


def test_a_record_of_an_earlier_version(tmp_path: Path) -> None:
    """It has no hashes and no operations; that is unknown, not zero."""
    found = facts(saved(tmp_path))
    assert (found.source, found.dense_params) == ("SmolLM-135M", 134_515_008)
    assert (found.source_hash, found.measures, found.shares, found.flops) == (None,) * 4
    assert (found.prune_seconds, found.prune_memory) == (None, None)
    assert found.heldout == {"prose": Tokens(None, 8192), "code": Tokens(None, 8192)}
    assert found.before == {"prose": 21.37, "code": 9.82}
    assert found.trained == 20 * 4096 and len(found.losses) == 20
    assert found.calibration == frozenset() and found.zeroed == 0
    assert found.seconds == 742.0 and found.method["criterion"] == "taylor2"


def test_cost_is_that_of_all_events_of_pruning(tmp_path: Path) -> None:
    more = [
        {"event": "cut", "step": 9, "tokens": 9, "params": 5, "removed": {}, "share_removed": {},
         "saliency": {}, "seconds": 1.5, "memory_bytes": 700},
        {**SPARSIFY, "seconds": 2.0, "memory_bytes": 900},
        {"event": "commit", "max_logit_difference": 0.0, "seconds": 0.25, "memory_bytes": 800},
        {"event": "commit", "max_logit_difference": 0.0, "seconds": 0.0, "memory_bytes": None},
        {"event": "checkpoint", "step": 9, "seconds": 50.0, "bytes": 5},
    ]  # fmt: skip
    run = synthetic.full_run(20, 0)
    run.metrics = [e for e in run.metrics if e["event"] != "commit"]
    run.metrics[-1:-1] = more
    found = facts(synthetic.save(tmp_path / "all", run))
    assert (found.prune_seconds, found.prune_memory) == (3.75, 900)
    # Some cuts of an earlier version, without their cost: unknown, not less.
    assert facts(saved(tmp_path / "some", *more)).prune_seconds is None


def test_a_dense_evaluation_from_the_cache_is_charged_for(tmp_path: Path) -> None:
    """Whichever run of a comparison came first measured it; all of them are told the same time."""
    times = {}
    for known in (False, True):
        run = synthetic.full_run(20, 10)
        if known:
            next(e for e in run.metrics if e.get("when") == "before")["known"] = True
        times[known] = facts(synthetic.save(tmp_path / str(known), run)).seconds
    assert times == {False: 742.0, True: 742.0 + 14.2}


def test_calibration_text_counts_once_and_says_that_there_was_some(tmp_path: Path) -> None:
    one = {"event": "calibration", "step": 0, "sequences": 2, "tokens": 64, "hash": "ab" * 8}
    found = facts(saved(tmp_path, one, one))
    assert found.calibration == {Tokens("ab" * 8, 64)} and found.measures == "calibration"


def test_tasks(tmp_path: Path) -> None:
    score = {"value": 0.5, "stderr": 0.01, "metric": "acc_norm", "examples": 100}
    tasks = {"scores": {"arc": score}, "mean": None, "protocol": {"limit": 100}}
    found = facts(saved(tmp_path, synthetic.evaluation("after", 9, tasks=tasks)))
    assert found.tasks_after == {"arc": 0.5} and found.tasks_protocol == {"limit": 100}
    assert found.tasks_before is None


def test_layers_that_lost_something(tmp_path: Path) -> None:
    def layers(plans: list[dict[str, list[int]]], *more: dict[str, Any], zeroed: int = 0) -> Any:
        run = synthetic.full_run(4, 0)
        run.metrics[0]["widths"] = {**run.metrics[0]["widths"], "layer.0": 1, "layer.1": 1}
        run.metrics[-1]["zeroed"] = zeroed
        run.metrics[-1:-1] = more
        empty = {"saliency": {}, "removed": {}, "scores": {}, "params": 9}
        run.plans = [{"step": 0, "tokens": 0, "plan": plan, **empty} for plan in plans]
        found = facts(synthetic.save(tmp_path, run))
        assert found.all_layers == 2
        return found.layers

    assert layers([]) == set()
    assert layers([{"ffn.1": [3]}, {"ffn.0": []}]) == {1}
    assert layers([{"ffn.1": [3]}, {"hidden": [3]}]) == {0, 1}
    rows = [{"layer": 0, "weights": 9, "zeroed": 0}, {"layer": 1, "weights": 9, "zeroed": 4}]
    assert layers([], {**SPARSIFY, "layers": rows}, zeroed=4) == {1}
    assert layers([], zeroed=4) is None


def test_what_a_run_that_did_not_end_well_leaves(tmp_path: Path) -> None:
    gone = read(tmp_path / "none", seed=3, shown="runs/x")
    assert not gone.done and (gone.seed, gone.target, gone.facts) == (3, None, None)
    assert "metrics.jsonl is missing" in gone.reason
    folder = saved(tmp_path / "run")
    lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    record = folder / "metrics.jsonl"
    record.write_text("".join(lines[:-1]))
    stopped = read(folder, seed=0, shown="x")
    assert stopped.reason == "it has not been run to its end" and stopped.facts is not None
    assert stopped.target == json.loads(lines[0])["target_params"]
    end = {
        "event": "end",
        "status": "failed",
        "reason": "/home/a/x.py:3: a\n  '/b/c'",
        "seconds": 1.0,
    }
    record.write_text("".join([*lines[:-1], json.dumps(end) + "\n"]))
    assert read(folder, seed=0, shown="x").reason == "x.py:3: a 'c'"
    assert read(folder, seed=0, shown="x", reason="killed").reason == "killed"
    record.write_text("")
    assert read(folder, seed=0, shown="x").reason == "it has not been run to its end"


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("/home/me/models/toy", "toy"),
        ("random weights, shape of /data/a/b", "random weights, shape of b"),
        ("HuggingFaceTB/SmolLM2-135M@main", "HuggingFaceTB/SmolLM2-135M@main"),
    ],
)
def test_a_comparison_travels_without_the_folders_above(
    tmp_path: Path, said: str, shown: str
) -> None:
    run = synthetic.full_run(4, 0)
    run.metrics[0]["model"] = said
    assert facts(synthetic.save(tmp_path, run)).source == shown
